"""Distributions whose draws a flow moves, and the bases that they start from."""

from .component_bases import ComponentBase, MixtureBase, ProductBase
from .flow_distribution import FlowDistribution
from .support import standard_normal

__all__ = [
    "ComponentBase",
    "FlowDistribution",
    "MixtureBase",
    "ProductBase",
    "standard_normal",
]
