"""Recipes: whole flows by name, each a Compose that mixes every dimension; the identity at first, but for ``net=``."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from .bijectors import Affine as AffineBijector
from .bijectors import Bend, RQSpline, Shift, Tails
from .nets import Activation, SteadyNet
from .numeric import check_counts
from .stacks import affine_autoregressive, autoregressives, couplings, scalar
from .transforms import Affine, Compose, Elementwise, LowerTriangular
from .transforms.coupling import Net

# The width of the networks of `steady`.
STEADY = 32
# The mean of sqrt(1 + (x - 1)^2) over a standard normal x.
MEAN_ROOT = 1.6237


def nice(
    input_dim: int,
    context_dim: int = 0,
    *,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    net: Net | None = None,
) -> Compose:
    """Additive couplings, then a learnable loc and scale: fast both ways, volume kept but for the scale.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back to the loc and scale alone.
        context_dim: size of the context, 0 for none.
        layers: number of couplings, at least 2.
        hidden_dims: widths of the networks' hidden layers.
        activation: makes the networks' non-linearity.
        net: makes the networks from ``(inputs, outputs)``, see :class:`~pyroflows.transforms.Coupling`.

    Raises:
        ValueError: if ``layers`` is below 2.

    References:
        NICE: Non-linear Independent Components Estimation. Dinh, Krueger, Bengio, 2015.
        https://arxiv.org/abs/1410.8516
    """
    options = {"hidden_dims": hidden_dims, "activation": activation}
    last = Affine(input_dim, context_dim, **options)
    if input_dim == 1:
        return Compose([last])
    return Compose([*couplings(input_dim, context_dim, Shift(), layers, net=net, **options), last])


def realnvp(
    input_dim: int,
    context_dim: int = 0,
    *,
    layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    net: Net | None = None,
    bound: float = 3.0,
    bends: int = 2,
    tails: bool = False,
) -> Compose:
    """Affine couplings with random half masks, each followed by its complement: fast both ways.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back to an elementwise spline and a loc and scale,
            since stacked affine maps of one dimension are one affine map.
        context_dim: size of the context, 0 for none.
        layers: number of couplings, at least 2.
        hidden_dims: widths of the networks' hidden layers.
        activation: makes the networks' non-linearity.
        net: makes the networks from ``(inputs, outputs)``, see :class:`~pyroflows.transforms.Coupling`.
        bound: largest absolute log scale of one coupling.
        bends: smooth bends of each dimension at the end, evenly placed from -1 to 1: they give it skewness, which
            affine couplings express badly.
        tails: let both tails of each dimension be heavier or lighter than the base's, see
            :class:`~pyroflows.bijectors.Tails`. With neither these nor bends, the flow is the affine couplings alone.

    Raises:
        ValueError: if ``layers`` is below 2.

    References:
        Density estimation using Real NVP. Dinh, Sohl-Dickstein, Bengio, 2017.
        https://arxiv.org/abs/1605.08803

    Example:
        >>> realnvp(4, layers=2)(torch.ones(4)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    options = {"hidden_dims": hidden_dims, "activation": activation}
    check_counts("realnvp", {"bends": 0}, bends=bends)
    places = torch.linspace(-1.0, 1.0, bends).tolist() if bends != 1 else [0.0]
    each = [*map(Bend, places), *([Tails()] if tails else [])]
    last = [Elementwise(input_dim, bijector, context_dim, **options) for bijector in each]
    if input_dim == 1:
        return Compose([*scalar(context_dim, **options), *last])
    return Compose([*couplings(input_dim, context_dim, AffineBijector(bound), layers, net=net, **options), *last])


def with_tails(input_dim: int, context_dim: int = 0) -> Compose:
    """:func:`realnvp` with ``tails``, the default of ``fit``: positive and bounded parameters have such tails."""
    return realnvp(input_dim, context_dim, tails=True)


def maf(
    input_dim: int,
    context_dim: int = 0,
    *,
    layers: int = 5,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    bound: float = 3.0,
) -> Compose:
    """Affine autoregressive layers that score in one pass and sample incrementally: for densities of data.

    The order of the dimensions is random in the first layer and reversed from each layer to the next.
    Arguments are those of :func:`iaf`; the bound is wider, as densities are trained with less noise than guides.

    References:
        Masked Autoregressive Flow for Density Estimation. Papamakarios, Pavlakou, Murray, 2017.
        https://arxiv.org/abs/1705.07057
    """
    options = {"hidden_dims": hidden_dims, "activation": activation}
    return affine_autoregressive(input_dim, context_dim, "inverse", layers, bound, **options)


def iaf(
    input_dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    bound: float = 2.0,
) -> Compose:
    """Affine autoregressive layers that sample in one pass and score incrementally: for guides.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back as in :func:`realnvp`.
        context_dim: size of the context, 0 for none.
        layers: number of autoregressive layers; the order is random, and reversed from layer to layer.
        hidden_dims: widths of the networks' hidden layers, at least one.
        activation: makes the networks' elementwise non-linearity.
        bound: largest absolute log scale of one layer; more lets single draws run away in noisy training.

    Raises:
        ValueError: if ``layers`` is below 1.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow. Kingma et al., 2016.
        https://arxiv.org/abs/1606.04934
    """
    options = {"hidden_dims": hidden_dims, "activation": activation}
    return affine_autoregressive(input_dim, context_dim, "forward", layers, bound, **options)


def steady(input_dim: int, context_dim: int = 0) -> Compose:
    """Four affine couplings and bends that take small steps: the default of ``AutoFlow``, for plain loops of SVI.

    By a step of Adam they move less than the loc and scale of the guide's affine map, and its loc alone moves the mean
    of a normal base, for about all that these parts can be: large rates, the noise of one particle and a way of many
    posterior sds then harm little more than they harm a Gaussian.
    """
    net = partial(SteadyNet, width=STEADY, gain=0.5 / STEADY)
    first = couplings(input_dim, context_dim, AffineBijector(2.0), 4, net=net) if input_dim > 1 else []
    bends = [Bend(center, level=MEAN_ROOT) for center in (-1.0, 1.0)]
    return Compose([*first, *(Elementwise(input_dim, bend, context_dim, gain=0.1) for bend in bends)])


def nsf(
    input_dim: int,
    context_dim: int = 0,
    *,
    structure: str = "coupling",
    fast: str = "inverse",
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    bins: int = 8,
    bound: float = 4.0,
) -> Compose:
    """Rational quadratic spline layers and a learnable loc and scale: the most flexible layers here.

    Splines bend ``[-bound, bound]``: scale data to about unit variance first.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back to elementwise splines.
        context_dim: size of the context, 0 for none.
        structure: ``"coupling"`` (fast both ways) or ``"autoregressive"``.
        fast: for the autoregressive structure, the cheap direction: ``"forward"`` or ``"inverse"``.
        layers: number of spline layers, at least 2 for couplings.
        hidden_dims: widths of the networks' hidden layers.
        activation: makes the networks' non-linearity.
        bins: bins of each spline.
        bound: half width of the interval that is bent.

    Raises:
        ValueError: if ``structure``, ``fast`` or ``layers`` is out of range.

    References:
        Neural Spline Flows. Durkan, Bekasov, Murray, Papamakarios, 2019. https://arxiv.org/abs/1906.04032
    """
    spline, options = RQSpline(bins, bound), {"hidden_dims": hidden_dims, "activation": activation}
    if structure not in ("coupling", "autoregressive"):
        raise ValueError(f"nsf expected structure='coupling' or 'autoregressive', got {structure!r}")
    if input_dim == 1:
        return scalar(context_dim, spline, **options)
    if structure == "coupling":
        parts = couplings(input_dim, context_dim, spline, layers, **options)
    else:
        parts = autoregressives(input_dim, context_dim, spline, fast, layers, **options)
    return Compose([*parts, Affine(input_dim, context_dim, **options)])


def copula(
    input_dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (128,),
    activation: Activation = nn.SiLU,
    dropout: float = 0.0,
    bins: int = 16,
    bound: float = 6.0,
) -> Compose:
    """Affine autoregressive layers, a full covariance, and a spline for each dimension last: for tables of data.

    Without the layers this is a Gaussian copula with flexible marginals, which few rows suffice to learn. Scale
    data to about unit variance first. Scoring is one pass, sampling is incremental.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back to the spline and a loc and scale.
        context_dim: size of the context, 0 for none; the covariance does not depend on it.
        layers: number of autoregressive layers, at least 1.
        hidden_dims: widths of the networks' hidden layers.
        activation: makes the networks' non-linearity.
        dropout: the share of hidden units left out at each step of training, against overfitting.
        bins: bins of each spline.
        bound: half width of the interval that the splines bend.

    Raises:
        ValueError: if ``layers`` is below 1.
    """
    options = {"hidden_dims": hidden_dims, "activation": partial(_dropped, activation, dropout)}
    spline = RQSpline(bins, bound)
    if input_dim == 1:
        return scalar(context_dim, spline, **options)
    each = {"paired": not dropout, **options}
    parts = autoregressives(input_dim, context_dim, AffineBijector(), "inverse", layers, **each)
    return Compose([*parts, LowerTriangular(input_dim), Elementwise(input_dim, spline, context_dim, **options)])


def copula_with_dropout(input_dim: int, context_dim: int = 0) -> Compose:
    """:func:`copula` that leaves out three of ten hidden units in training, against learning few rows by heart."""
    return copula(input_dim, context_dim, dropout=0.3)


def _dropped(activation: Activation, dropout: float) -> nn.Module:
    return nn.Sequential(activation(), nn.Dropout(dropout)) if dropout else activation()


def full_rank(input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64)) -> Compose:
    """A lower triangular affine map alone: over a normal base, the full-rank Gaussian."""
    return Compose([LowerTriangular(input_dim, context_dim, hidden_dims=hidden_dims)])
