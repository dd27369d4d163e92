"""Inference on the log joint of a Pyro model."""

from .compiled_elbo import CompiledTrace_ELBO
from .graph import Graph, capture, flatten
from .guard import Untraceable
from .log_joint import LogJoint, log_joint
from .objectives import log_weights
from .speed import SpeedUp
from .trainer import History, Trainer

__all__ = [
    "CompiledTrace_ELBO",
    "Graph",
    "History",
    "LogJoint",
    "SpeedUp",
    "Trainer",
    "Untraceable",
    "capture",
    "flatten",
    "log_joint",
    "log_weights",
]
