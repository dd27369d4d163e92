"""Bijectors: monotone maps of the real line or a part of it, pure tensor maths without modules or context."""

from .affine import Affine, Shift
from .base import Bijector, Inverse
from .bend import Bend, LeakyReLU
from .cdf import DistributionCDF, ExponentialCDF, NormalCDF
from .elementary import ELU, Cos, Exp, Power, Sigmoid, Softplus, Tanh
from .inline import Inline
from .skew import SinhArcsinh
from .spline.spline import RQSpline
from .tails import Tails

__all__ = [
    "ELU",
    "Affine",
    "Bend",
    "Bijector",
    "Cos",
    "DistributionCDF",
    "Exp",
    "ExponentialCDF",
    "Inline",
    "Inverse",
    "LeakyReLU",
    "NormalCDF",
    "Power",
    "RQSpline",
    "Shift",
    "Sigmoid",
    "SinhArcsinh",
    "Softplus",
    "Tails",
    "Tanh",
]
