"""Inference on a log density: what to train for, where to start, and which modes there are."""

from ..compile import Graph, TracedDensity, TracedLoss, Untraceable, capture, fuse, lay_flat
from ..model import AllRows, Choice, LogJoint, Plates
from ..training import History, SpeedUp, Trainer
from .annealed import Annealed
from .control_variates import Anchored
from .goal import Goal
from .modes.bases import balance, base_at, mixture_at, product_at
from .modes.missed import missed_modes, shares
from .modes.search import find_modes
from .objectives import IWAE, ChiSquared, ForwardKL, Objective, Renyi, ReverseKL, log_weights
from .starts.batch_and_match import batch_and_match
from .starts.best_start import Attempt, best_start
from .starts.counted import Counted
from .starts.endless import improper
from .starts.gaussian import Gaussian, elbo, score
from .starts.pathfinder import pathfinder
from .starts.polish import ascend, polish

__all__ = [
    "IWAE",
    "AllRows",
    "Anchored",
    "Annealed",
    "Attempt",
    "ChiSquared",
    "Choice",
    "Counted",
    "ForwardKL",
    "Gaussian",
    "Goal",
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
    "log_weights",
    "missed_modes",
    "mixture_at",
    "pathfinder",
    "polish",
    "product_at",
    "score",
    "shares",
]
