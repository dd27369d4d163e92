"""Inference on the log joint of a Pyro model."""

from .compiled_elbo import CompiledTrace_ELBO
from .fused import fuse, lay_flat
from .graph import Graph, capture
from .guard import Untraceable
from .log_joint import LogJoint, log_joint
from .objectives import log_weights
from .speed import SpeedUp
from .svi import CompiledSVI
from .trainer import History, Trainer

__all__ = [
    "CompiledSVI",
    "CompiledTrace_ELBO",
    "Graph",
    "History",
    "LogJoint",
    "SpeedUp",
    "Trainer",
    "Untraceable",
    "capture",
    "fuse",
    "lay_flat",
    "log_joint",
    "log_weights",
]
