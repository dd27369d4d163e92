"""Flows of couplings: NICE and RealNVP."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ..arguments import check_counts
from ..bijectors import Affine as AffineBijector
from ..bijectors import Bend, Shift, Tails
from ..nets import Activation, SteadyNet
from ..transforms import Affine, Compose, Elementwise
from ..transforms.coupling import Net
from .stacks import couplings, scalar

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
