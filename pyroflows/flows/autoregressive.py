"""Flows of affine autoregressive layers, for densities and for guides."""

from collections.abc import Sequence

from torch import nn

from ..nets import Activation
from ..transforms import Compose
from .stacks import affine_autoregressive


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
