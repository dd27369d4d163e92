"""Flows of flexible scalar maps whose inverse is a root: for densities that splines or affine maps fit badly."""

from collections.abc import Sequence

from torch import nn

from ..arguments import check_counts
from ..bijectors import Affine, Bernstein, Bijector, Chain, MixtureCDF, MonotoneNet, SumOfSquares
from ..nets import Activation
from ..transforms import Affine as AffineMap
from ..transforms import BlockAutoregressive, Compose, Elementwise, LowerTriangular, Permute
from .stacks import autoregressives, couplings, scalar, towards

# The largest log scale of the affine map that follows each curve.
BOUND = 3.0


def naf(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    components: int = 8,
    depth: int = 2,
) -> Compose:
    """Neural autoregressive flow of deep sigmoidal curves, each ``depth`` mixtures of logistics in a row.

    A network gives each dimension its curve, from the dimensions before it. One direction is one pass of closed form,
    the other goes dimension by dimension, with a root in each: 10 to 40 evaluations of the curve. Choose it where
    one-dimensional conditionals have several modes; :func:`~pyroflows.flows.nsf` is cheaper and does nearly as well.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back to one curve.
        context_dim: size of the context, 0 for none.
        fast: the cheap direction, ``"inverse"`` to score data, ``"forward"`` to sample.
        layers: number of autoregressive layers; the order is random, and reversed from layer to layer.
        hidden_dims: widths of the networks' hidden layers, at least one.
        activation: makes the networks' elementwise non-linearity.
        components: of each mixture, see :class:`~pyroflows.bijectors.MixtureCDF`.
        depth: mixtures in a row.

    Raises:
        ValueError: if a number is out of range.

    References:
        Neural Autoregressive Flows. Huang, Krueger, Lacoste, Courville, 2018. https://arxiv.org/abs/1804.00779
    """
    curve = (MixtureCDF(components),) * depth
    return _autoregressive(input_dim, context_dim, curve, fast, layers, hidden_dims, activation)


def sospf(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    degree: int = 3,
) -> Compose:
    """Autoregressive polynomials whose slope is a sum of squares: smooth curves of few parameters.

    The ``degree`` is that of the polynomials that are squared, see :class:`~pyroflows.bijectors.SumOfSquares`.
    Directions, costs and other arguments are those of :func:`naf`. Choose it for smooth densities and little data.

    References:
        Sum-of-Squares Polynomial Flow. Jaini, Selby, Yu, 2019. https://arxiv.org/abs/1905.02325
    """
    return _autoregressive(input_dim, context_dim, (SumOfSquares(degree),), fast, layers, hidden_dims, activation)


def bpf(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    degree: int = 16,
) -> Compose:
    """Autoregressive Bernstein polynomials: smooth curves that are hard to unsettle, for noisy data.

    The ``degree`` is that of :class:`~pyroflows.bijectors.Bernstein`. Directions, costs and other arguments are those
    of :func:`naf`.

    References:
        Robust Normalizing Flows using Bernstein-type Polynomials. Ramasinghe, Fernando, Khan, Barnes, 2021.
        https://arxiv.org/abs/2102.03509
    """
    return _autoregressive(input_dim, context_dim, (Bernstein(degree),), fast, layers, hidden_dims, activation)


def unaf(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 2,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    width: int = 8,
) -> Compose:
    """Autoregressive integrals of positive networks: the freest curves here, and the slowest.

    The cheap direction evaluates a network of ``width`` hidden units at 32 points for each number, see
    :class:`~pyroflows.bijectors.MonotoneNet`. Directions and other arguments are those of :func:`naf`.

    References:
        Unconstrained Monotonic Neural Networks. Wehenkel, Louppe, 2019. https://arxiv.org/abs/1908.05164
    """
    return _autoregressive(input_dim, context_dim, (MonotoneNet(width),), fast, layers, hidden_dims, activation)


def flowpp(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    components: int = 8,
) -> Compose:
    """Couplings of Flow++: the logit of a mixture of logistics, then an affine map.

    Both directions are one pass of each network; one is closed form, the other a root for each number, 10 to 40
    evaluations of the curve. Choose it where samples have to be had faster than :func:`naf` gives them.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back to one curve.
        context_dim: size of the context, 0 for none.
        fast: the direction of closed form, ``"inverse"`` to score data, ``"forward"`` to sample.
        layers: number of couplings, at least 2.
        hidden_dims: widths of the networks' hidden layers.
        activation: makes the networks' non-linearity.
        components: of each mixture.

    Raises:
        ValueError: if a number is out of range.

    References:
        Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design.
        Ho, Chen, Srinivas, Duan, Abbeel, 2019. https://arxiv.org/abs/1902.00275
    """
    curve, options = _then_affine((MixtureCDF(components),)), {"hidden_dims": hidden_dims, "activation": activation}
    if input_dim == 1:
        return towards(fast, [scalar(context_dim, curve, **options)])
    return towards(fast, couplings(input_dim, context_dim, curve, layers, **options))


def gaussianization(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    components: int = 8,
) -> Compose:
    """Mixtures of normals in each dimension, and triangular maps between them: no networks, but for a context.

    Each layer makes marginals normal, the maps turn what is left to where the next layer can reach it. Arguments are
    those of :func:`flowpp`, layers from 1 on; the context moves the mixtures. Choose it for few rows: it has few
    parameters.

    References:
        Gaussianization Flows. Meng, Song, Song, Ermon, 2020. https://arxiv.org/abs/2003.01941
    """
    check_counts("gaussianization", {}, layers=layers)
    curve, parts = MixtureCDF(components, "normal"), []
    for _ in range(layers if input_dim > 1 else 1):
        each = Elementwise(input_dim, curve, context_dim, hidden_dims=hidden_dims, activation=activation)
        parts += [each, LowerTriangular(input_dim), Permute(input_dim, "reversed")]
    turned = [Permute(input_dim, "reversed")] if layers % 2 else []  # back in their places
    return towards(fast, [*parts, *turned])


def bnaf(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 2,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    units: int = 8,
    depth: int = 2,
) -> Compose:
    """Block neural autoregressive flow: one network for all dimensions, much smaller than that of :func:`naf`.

    One direction is one pass; the other takes a root in each dimension, each of 10 to 40 passes. ``units`` and
    ``depth`` are those of :class:`~pyroflows.transforms.BlockAutoregressive`, the networks are those of a context,
    other arguments those of :func:`naf`. Choose it where parameters are scarce and one direction will do.

    References:
        Block Neural Autoregressive Flow. De Cao, Titov, Aziz, 2019. https://arxiv.org/abs/1904.04676
    """
    check_counts("bnaf", {}, layers=layers)
    options, parts = {"hidden_dims": hidden_dims, "activation": activation}, []
    for _ in range(layers):
        layer = BlockAutoregressive(input_dim, context_dim, units=units, depth=depth, **options)
        parts += [layer, Permute(input_dim, "reversed")]
    turned = [Permute(input_dim, "reversed")] if layers % 2 else []
    return towards(fast, [*parts, *turned, AffineMap(input_dim, context_dim, **options)])


def _autoregressive(
    input_dim: int,
    context_dim: int,
    curve: tuple[Bijector, ...],
    fast: str,
    layers: int,
    hidden_dims: Sequence[int],
    activation: Activation,
) -> Compose:
    """Autoregressive layers of a curve and an affine map; one dimension has one curve."""
    curve, options = _then_affine(curve), {"hidden_dims": hidden_dims, "activation": activation}
    if input_dim == 1:
        return towards(fast, [scalar(context_dim, curve, **options)])
    return Compose(autoregressives(input_dim, context_dim, curve, fast, layers, **options))


def _then_affine(curve: tuple[Bijector, ...]) -> Chain:
    return Chain((*curve, Affine(BOUND)))
