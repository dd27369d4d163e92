"""Transforms: the structures that supply a bijector with its parameters, and how transforms combine."""

from .affine import Affine
from .autoregressive import Autoregressive
from .base import Conditioned, FlowTransform, Inverse
from .block_autoregressive import BlockAutoregressive
from .compose import Compose
from .coupling import Coupling
from .elementwise import Elementwise
from .foreign import Foreign, from_zuko
from .linear import LU, MatrixExponential, Rotation
from .nested_gaussian import NestedGaussian, Part
from .normalise import ActNorm, BatchNorm
from .onto import Onto
from .orthogonal import Orthogonal
from .permute import Permute
from .planar import Planar, Radial
from .reflections import QR, SVD, Householder
from .residual import Residual
from .sylvester import Sylvester
from .triangular import LowerTriangular

__all__ = [
    "LU",
    "QR",
    "SVD",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "BatchNorm",
    "BlockAutoregressive",
    "Compose",
    "Conditioned",
    "Coupling",
    "Elementwise",
    "FlowTransform",
    "Foreign",
    "Householder",
    "Inverse",
    "LowerTriangular",
    "MatrixExponential",
    "NestedGaussian",
    "Onto",
    "Orthogonal",
    "Part",
    "Permute",
    "Planar",
    "Radial",
    "Residual",
    "Rotation",
    "Sylvester",
    "from_zuko",
]
