"""Flows of planar, radial and Sylvester maps, made for guides of few dimensions, and residual flows."""

from collections.abc import Callable, Sequence

from torch import nn

from ..arguments import check_counts
from ..nets import Activation
from ..transforms import Affine, Compose, FlowTransform, Planar, Radial, Residual, Sylvester
from .stacks import towards


def planar(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "forward",
    layers: int = 16,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
) -> Compose:
    """Planar maps, then a loc and scale: few parameters, each layer bends along one direction.

    Choose it for guides of few dimensions where every parameter counts, as where a network makes them from a context.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for none.
        fast: the direction of closed form, ``"forward"`` to sample or ``"inverse"`` to score data; the other takes a
            scalar root for each layer.
        layers: number of planar maps.
        hidden_dims: widths of the networks' hidden layers, used with a context.
        activation: makes the networks' non-linearity.

    Raises:
        ValueError: if a number is out of range.

    References:
        Variational Inference with Normalizing Flows. Rezende, Mohamed, 2015. https://arxiv.org/abs/1505.05770
    """
    return _bent(Planar, input_dim, context_dim, fast, layers, hidden_dims=hidden_dims, activation=activation)


def radial(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "forward",
    layers: int = 16,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
) -> Compose:
    """Radial maps, then a loc and scale: bumps and holes around centres, closed form both ways.

    Choose it for densities that are round about some places. Arguments are those of :func:`planar`.

    References:
        Variational Inference with Normalizing Flows. Rezende, Mohamed, 2015. https://arxiv.org/abs/1505.05770
    """
    return _bent(Radial, input_dim, context_dim, fast, layers, hidden_dims=hidden_dims, activation=activation)


def sylvester(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "forward",
    layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    rank: int | None = None,
    basis: str = "orthogonal",
) -> Compose:
    """Sylvester maps, then a loc and scale: planar ones in ``rank`` directions at once.

    Choose it over :func:`planar` from about four dimensions on. ``rank`` and ``basis`` are those of
    :class:`~pyroflows.transforms.Sylvester`, other arguments those of :func:`planar`.

    References:
        Sylvester Normalizing Flows for Variational Inference. van den Berg, Hasenclever, Tomczak, Welling, 2018.
        https://arxiv.org/abs/1803.05649
    """
    own = {"rank": rank, "basis": basis}
    return _bent(Sylvester, input_dim, context_dim, fast, layers, hidden_dims=hidden_dims, activation=activation, **own)


def residual(
    input_dim: int,
    context_dim: int = 0,
    *,
    fast: str = "inverse",
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    lipschitz: float = 0.8,
) -> Compose:
    """Residual maps, then a loc and scale: networks of all dimensions at once, with exact log-determinants.

    Choose it for smooth densities of up to some fifty dimensions without an order that suggests itself.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for none.
        fast: the direction without a fixed point in each layer, ``"inverse"`` to score data, ``"forward"`` to sample;
            either costs about ``D`` passes of each network for its log-determinant.
        layers: number of residual maps.
        hidden_dims: widths of the networks' hidden layers, at least one.
        lipschitz: largest slope of each network, below 1.

    Raises:
        ValueError: if a number is out of range.

    References:
        Invertible Residual Networks. Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, 2019.
        https://arxiv.org/abs/1811.00995
    """
    check_counts("residual", {}, layers=layers)
    parts = [Residual(input_dim, context_dim, lipschitz=lipschitz, hidden_dims=hidden_dims) for _ in range(layers)]
    return towards(fast, [*parts, Affine(input_dim, context_dim, hidden_dims=hidden_dims)])


def _bent(
    layer: Callable[..., FlowTransform], input_dim: int, context_dim: int, fast: str, layers: int, **options: object
) -> Compose:
    check_counts(layer.__name__.lower(), {}, layers=layers)
    parts = [layer(input_dim, context_dim, **options) for _ in range(layers)]
    last = {name: options[name] for name in ("hidden_dims", "activation")}
    return towards(fast, [*parts, Affine(input_dim, context_dim, **last)])
