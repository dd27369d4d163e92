"""Inference on the log joint of a Pyro model."""

from .batch_and_match import batch_and_match
from .compiled_elbo import CompiledTrace_ELBO
from .fused import fuse, lay_flat
from .gaussian import Gaussian, elbo, score
from .graph import Graph, capture
from .guard import Untraceable
from .log_joint import LogJoint, log_joint
from .objectives import log_weights
from .pathfinder import pathfinder
from .polish import ascend, polish
from .speed import SpeedUp
from .starts import Attempt, best_start
from .stopping import reason_to_stop, trend
from .svi import CompiledSVI
from .traced import TracedDensity
from .trainer import History, Trainer

__all__ = [
    "Attempt",
    "CompiledSVI",
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
    "batch_and_match",
    "best_start",
    "capture",
    "elbo",
    "fuse",
    "lay_flat",
    "log_joint",
    "log_weights",
    "pathfinder",
    "polish",
    "reason_to_stop",
    "score",
    "trend",
]
