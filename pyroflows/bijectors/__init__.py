"""Bijectors: increasing maps of the real line, pure tensor maths without modules or context."""

from .affine import Affine, LeakyReLU, Shift
from .base import Bijector
from .bend import Bend
from .spline import RQSpline
from .tails import Tails

__all__ = ["Affine", "Bend", "Bijector", "LeakyReLU", "RQSpline", "Shift", "Tails"]
