"""Training that does not break: by steps on an ELBO, by epochs on minibatches."""

from .batches import Batches
from .checkpoint import Checkpoint, described
from .epochs import EpochLog, Epochs
from .history import History
from .listener import Callback, Listener
from .safe_step import SafeStep
from .speed import SpeedUp
from .steps import Trainer
from .threads import Threads

__all__ = [
    "Batches",
    "Callback",
    "Checkpoint",
    "EpochLog",
    "Epochs",
    "History",
    "Listener",
    "SafeStep",
    "SpeedUp",
    "Threads",
    "Trainer",
    "described",
]
