"""Inference on the log joint of a Pyro model."""

from .all_rows import AllRows
from .batch_and_match import batch_and_match
from .compiled_elbo import CompiledTrace_ELBO
from .control_variates import Anchored
from .endless import improper
from .flow_elbo import FlowELBO
from .fused import fuse, lay_flat
from .gaussian import Gaussian, elbo, score
from .graph import Graph, capture
from .guard import Untraceable
from .log_joint import LogJoint, log_joint
from .missed import missed_modes, shares
from .mixtures import balance, base_at, mixture_at, product_at
from .modes import find_modes
from .objectives import IWAE, Annealed, ChiSquared, ForwardKL, Objective, Renyi, ReverseKL, log_weights
from .pathfinder import pathfinder
from .plates import Choice, Plates
from .polish import ascend, polish
from .speed import SpeedUp
from .starts import Attempt, best_start
from .stopping import reason_to_stop, trend
from .svi import CompiledSVI
from .traced import TracedDensity
from .traced_loss import TracedLoss
from .trainer import History, Trainer
from .work import Counted, work_of

__all__ = [
    "IWAE",
    "AllRows",
    "Anchored",
    "Annealed",
    "Attempt",
    "ChiSquared",
    "Choice",
    "CompiledSVI",
    "CompiledTrace_ELBO",
    "Counted",
    "FlowELBO",
    "ForwardKL",
    "Gaussian",
    "Graph",
    "History",
    "LogJoint",
    "Objective",
    "Plates",
    "Renyi",
    "ReverseKL",
    "SpeedUp",
    "TracedDensity",
    "TracedLoss",
    "Trainer",
    "Untraceable",
    "ascend",
    "balance",
    "base_at",
    "batch_and_match",
    "best_start",
    "capture",
    "elbo",
    "find_modes",
    "fuse",
    "improper",
    "lay_flat",
    "log_joint",
    "log_weights",
    "missed_modes",
    "mixture_at",
    "pathfinder",
    "polish",
    "product_at",
    "reason_to_stop",
    "score",
    "shares",
    "trend",
    "work_of",
]
