"""What becomes of a fit that breaks off."""

import contextlib
import warnings
from collections.abc import Iterator

from ..guides import AutoFlow
from ..infer import Gaussian
from ..model import LogJoint
from ..training import History, Listener, Trainer
from .faults import faults
from .improper import IMPROPER

INTERRUPTED = "interrupted"


def is_ended(listener: Listener, history: History) -> bool:
    """Whether the user, or a callback, wants no more steps."""
    return bool(listener.stopped) or history.stopped == INTERRUPTED


@contextlib.contextmanager
def explained(density: LogJoint, guide: AutoFlow, start: Gaussian) -> Iterator[None]:
    """Adds to errors of numbers that are not finite what is wrong with the model."""
    try:
        yield
    except FloatingPointError as error:
        found = faults(density, guide, start)
        if IMPROPER in found:
            raise ValueError(f"expected a proper posterior.{found}") from error
        raise FloatingPointError(f"{error}.{found}") from error


@contextlib.contextmanager
def kept(trainer: Trainer) -> Iterator[None]:
    """Ends training with the average of the steps so far, and a warning, where the user or bad steps break it off."""
    try:
        yield
    except (KeyboardInterrupt, FloatingPointError) as error:
        trainer.finish()
        reason = str(error) or INTERRUPTED
        trainer.history.stopped = reason.split(":")[0]
        warnings.warn(
            f"fit: broken off after {trainer.safe.done} steps of the flow: the posterior is that of the steps so far "
            f"({reason})",
            stacklevel=5,
        )
