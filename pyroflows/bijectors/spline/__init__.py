"""Rational quadratic splines: the curve of a bin, the bijector, its gradient written out."""

from .spline import RQSpline

__all__ = [
    "RQSpline",
]
