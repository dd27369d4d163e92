"""What ``fit`` is given, checked before it starts, and what becomes of a fit that breaks off."""

import contextlib
import math
import warnings
from collections.abc import Iterator

import pyro
import torch

from .faults import faults
from .guides import AutoFlow
from .improper import IMPROPER
from .infer import Gaussian, LogJoint, Trainer
from .latents import LatentSpace, Model, trace_of

INTERRUPTED = "interrupted"


def check_options(
    precision: str, compile: bool | None, *, lr: float, tolerance: float, guide: object, objective: object
) -> None:
    """Raises unless what ``fit`` is given is of the kinds that it knows."""
    for name, value, known in (
        ("precision", precision, ("mixed", "single", "double")),
        ("compile", compile, (None, True, False)),
    ):
        if value not in known:
            raise ValueError(f"fit expected {name} to be one of {', '.join(map(repr, known))}, got {value!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"fit expected a learning rate lr > 0, got {lr!r}")
    if not tolerance >= 0:
        raise ValueError(f"fit expected tolerance >= 0, got {tolerance!r}")
    if not isinstance(guide, AutoFlow | None):
        raise TypeError(f"fit expected guide to be an AutoFlow, got {type(guide).__name__}: train others with SVI")
    if not (objective is None or callable(objective)):
        raise TypeError(f"fit expected objective to be None or one of pyroflows.infer.objectives, got {objective!r}")


def check_guide(guide: AutoFlow, model: Model, args: tuple, kwargs: dict) -> None:
    """Raises unless a guide was set up for the latents of this model."""
    with pyro.validation_enabled(False):  # only names and shapes matter here
        space = LatentSpace.of(trace_of(model, args, kwargs))
    own, wanted = ({s.name: tuple(s.shape) for s in found.sites} for found in (guide.space, space))
    if own != wanted:
        raise ValueError(f"fit expected a guide of the model's latents {wanted}, got one of {own}: use a new guide")


def check_slope(density: LogJoint) -> None:
    """Raises unless the log joint depends on the latents in a way that gradients can follow."""
    z = density.space.start.detach()[None].requires_grad_()
    with torch.enable_grad():
        moves = density(z).requires_grad
    if not moves:
        raise ValueError(
            "expected a log density with a gradient, got one that no latent moves: values pass through .detach(), "
            ".item(), NumPy or an integer"
        )


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
            f"fit: broken off after {trainer.done} steps of the flow: the posterior is that of the steps so far "
            f"({reason})",
            stacklevel=4,
        )
