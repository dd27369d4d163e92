"""Splines: what they share, the curve of a bin, the families, and the gradient of one written out."""

from .families import CubicSpline, LinearRationalSpline, LinearSpline, QuadraticSpline
from .spline import RQSpline

__all__ = [
    "CubicSpline",
    "LinearRationalSpline",
    "LinearSpline",
    "QuadraticSpline",
    "RQSpline",
]
