"""Bijectors: monotone maps of the real line or a part of it, pure tensor maths without modules or context."""

from .affine import Affine, Shift
from .base import Bijector, Inverse
from .bend import Bend, LeakyReLU
from .cdf import DistributionCDF, ExponentialCDF, NormalCDF
from .circular import CircularShift
from .elementary import ELU, Cos, Exp, Power, Sigmoid, Softplus, Tanh
from .inline import Inline
from .mixtures import MixtureCDF
from .monotone import Chain
from .skew import SinhArcsinh
from .slopes import Bernstein, MonotoneNet, SumOfSquares
from .spline import CubicSpline, LinearRationalSpline, LinearSpline, QuadraticSpline, RQSpline
from .stretched import Stretched
from .tails import Tails

__all__ = [
    "ELU",
    "Affine",
    "Bend",
    "Bernstein",
    "Bijector",
    "Chain",
    "CircularShift",
    "Cos",
    "CubicSpline",
    "DistributionCDF",
    "Exp",
    "ExponentialCDF",
    "Inline",
    "Inverse",
    "LeakyReLU",
    "LinearRationalSpline",
    "LinearSpline",
    "MixtureCDF",
    "MonotoneNet",
    "NormalCDF",
    "Power",
    "QuadraticSpline",
    "RQSpline",
    "Shift",
    "Sigmoid",
    "SinhArcsinh",
    "Softplus",
    "Stretched",
    "SumOfSquares",
    "Tails",
    "Tanh",
]
