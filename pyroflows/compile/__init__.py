"""A function of tensors as one graph, replayed or compiled; knows torch alone."""

from .captured import capture
from .errors import Untraceable
from .graph import Graph
from .optimizer_step import fuse, lay_flat
from .traced_function import TracedDensity, TracedLoss

__all__ = [
    "Graph",
    "TracedDensity",
    "TracedLoss",
    "Untraceable",
    "capture",
    "fuse",
    "lay_flat",
]
