"""Inference on the log joint of a Pyro model."""

from .compiled_elbo import CompiledTrace_ELBO
from .gaussian import Gaussian
from .graph import Graph, capture, flatten
from .guard import Untraceable
from .log_joint import LogJoint, log_joint
from .objectives import log_weights
from .polish import ascend, polish
from .speed import SpeedUp
from .starts import Attempt, best_start
from .stopping import reason_to_stop, trend
from .traced import TracedDensity
from .trainer import History, Trainer

__all__ = [
    "Attempt",
    "CompiledTrace_ELBO",
    "Gaussian",
    "Graph",
    "History",
    "LogJoint",
    "SpeedUp",
    "TracedDensity",
    "Trainer",
    "Untraceable",
    "ascend",
    "best_start",
    "capture",
    "flatten",
    "log_joint",
    "log_weights",
    "polish",
    "reason_to_stop",
    "trend",
]
