"""Bijectors: increasing maps of the real line, pure tensor maths without modules or context."""

from .affine import Affine, Shift
from .base import Bijector
from .bend import Bend, LeakyReLU
from .spline.spline import RQSpline
from .tails import Tails

__all__ = [
    "Affine",
    "Bend",
    "Bijector",
    "LeakyReLU",
    "RQSpline",
    "Shift",
    "Tails",
]
