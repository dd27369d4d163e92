"""Densities of data with the habits of scikit-learn, which must be installed."""

from .flow_density import FlowDensity

__all__ = [
    "FlowDensity",
]
