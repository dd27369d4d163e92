"""Distributions whose draws a flow moves, and the bases that they start from."""

from .component_bases import ComponentBase, MixtureBase, ProductBase
from .flow_distribution import FlowDistribution
from .flow_mixture import FlowMixture
from .learnable_bases import ClassBase, StudentTBase
from .support import standard_normal

__all__ = [
    "ClassBase",
    "ComponentBase",
    "FlowDistribution",
    "FlowMixture",
    "MixtureBase",
    "ProductBase",
    "StudentTBase",
    "standard_normal",
]
