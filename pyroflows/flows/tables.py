"""Flows for tables of data: a copula with flexible marginals."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..bijectors import Affine as AffineBijector
from ..bijectors import RQSpline
from ..nets import Activation
from ..transforms import Compose, Elementwise, LowerTriangular
from .stacks import autoregressives, scalar


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
