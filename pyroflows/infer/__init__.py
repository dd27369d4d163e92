"""Inference on the log joint of a Pyro model."""

from .log_joint import LogJoint, log_joint
from .objectives import log_weights
from .trainer import History, Trainer

__all__ = ["History", "LogJoint", "Trainer", "log_joint", "log_weights"]
