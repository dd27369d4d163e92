"""Transforms: the structures that supply a bijector with its parameters, and how transforms combine."""

from .affine import Affine
from .autoregressive import Autoregressive
from .base import Conditioned, FlowTransform, Inverse
from .block_autoregressive import BlockAutoregressive
from .compose import Compose
from .coupling import Coupling
from .elementwise import Elementwise
from .nested_gaussian import NestedGaussian, Part
from .onto import Onto
from .permute import Permute
from .planar import Planar, Radial
from .residual import Residual
from .sylvester import Sylvester
from .triangular import LowerTriangular

__all__ = [
    "Affine",
    "Autoregressive",
    "BlockAutoregressive",
    "Compose",
    "Conditioned",
    "Coupling",
    "Elementwise",
    "FlowTransform",
    "Inverse",
    "LowerTriangular",
    "NestedGaussian",
    "Onto",
    "Part",
    "Permute",
    "Planar",
    "Radial",
    "Residual",
    "Sylvester",
]
