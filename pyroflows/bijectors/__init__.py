"""Bijectors: increasing maps of the real line, pure tensor maths without modules or context."""

from .affine import Affine, Shift
from .base import Bijector
from .bend import Bend, LeakyReLU
from .mixtures import MixtureCDF
from .monotone import Chain
from .slopes import Bernstein, MonotoneNet, SumOfSquares
from .spline.spline import RQSpline
from .tails import Tails

__all__ = [
    "Affine",
    "Bend",
    "Bernstein",
    "Bijector",
    "Chain",
    "LeakyReLU",
    "MixtureCDF",
    "MonotoneNet",
    "RQSpline",
    "Shift",
    "SumOfSquares",
    "Tails",
]
