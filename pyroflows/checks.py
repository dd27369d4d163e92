"""What ``fit`` is given, checked before it starts, and what becomes of a fit that breaks off."""

import contextlib
import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from .faults import faults
from .guides import AutoFlow
from .improper import IMPROPER
from .infer import Gaussian, LogJoint, Trainer
from .latents import LatentSpace, Model, trace_of
from .numeric import seed_of, seeded

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
    if torch.get_default_dtype() not in (torch.float32, torch.float64):
        raise ValueError(
            f"fit expected single or double precision as default, got {torch.get_default_dtype()}: call "
            f"torch.set_default_dtype(torch.float32)"
        )
    if not 0 < lr < math.inf:
        raise ValueError(f"fit expected a learning rate lr > 0, got {lr!r}")
    if not tolerance >= 0:
        raise ValueError(f"fit expected tolerance >= 0, got {tolerance!r}")
    if not isinstance(guide, AutoFlow | None):
        raise TypeError(f"fit expected guide to be an AutoFlow, got {type(guide).__name__}: train others with SVI")
    if not (objective is None or callable(objective)):
        raise TypeError(f"fit expected objective to be None or one of pyroflows.infer.objectives, got {objective!r}")


def check_arguments(model: Callable, kwargs: dict[str, object], options: Iterable[str]) -> None:
    """Raises if there is an argument by a name that neither ``fit`` nor the model takes."""
    try:
        taken = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters
    except (TypeError, ValueError):  # of what is not written in Python
        return
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    by_name = [name for name, p in taken.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in kwargs.keys() - set(by_name):
        near = difflib.get_close_matches(name, [*options, *by_name], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the model takes {', '.join(by_name) or 'none by name'}"
        raise TypeError(
            f"fit expected options of its own or arguments of the model, got {name!r}, which is neither: {hint}"
        )


def check_guide(guide: AutoFlow, model: Model, args: tuple, kwargs: dict) -> None:
    """Raises unless a guide was set up for the latents of this model."""
    with pyro.validation_enabled(False):  # only names and shapes matter here
        space = LatentSpace.of(trace_of(model, args, kwargs))
    own, wanted = ({s.name: tuple(s.shape) for s in found.sites} for found in (guide.space, space))
    if own != wanted:
        raise ValueError(f"fit expected a guide of the model's latents {wanted}, got one of {own}: use a new guide")
    for one, other in zip(guide.space.sites, space.sites, strict=True):
        same = one.size == other.size and (not one.held or torch.equal(one.held.free, other.held.free))
        if not same:
            raise ValueError(
                f"fit expected a guide with the model's entries of {one.name!r}, got one with other entries that "
                f"obs_mask says are seen: use a new guide"
            )


def check_slope(density: LogJoint) -> None:
    """Raises unless the log joint depends on the latents in a way that gradients can follow."""
    z = density.space.start.detach()[None].requires_grad_()
    with torch.enable_grad():
        moves = density.batch(z).requires_grad
    if not moves:
        raise ValueError(
            "expected a log density with a gradient, got one that no latent moves: values pass through .detach(), "
            ".item(), NumPy or an integer"
        )


def check_repeatable(density: LogJoint) -> None:
    """Raises if the log joint is another one at each call, for the same latents and the same rows of minibatches."""
    first, *others = _runs(density, 3)
    for name, node in first.nodes.items():
        if node["type"] != "sample" or _has_rows_of_its_own(node, first):
            continue
        expected = node["log_prob"]
        for other in others:
            again = other.nodes[name]["log_prob"] if name in other.nodes else expected.new_full((), math.nan)
            if _differ(expected, again):
                raise ValueError(
                    f"fit expected a log joint that is the same whenever it is computed, got another one at the site "
                    f"{name!r}: {expected.sum().item():.6g}, then {again.sum().item():.6g}, for the same latents. The "
                    f"model draws random numbers of its own, or counts its calls: draw them once, before the model; "
                    f"take minibatches by pyro.plate(name, size, subsample_size=...); put dropout into .eval()"
                )


def _differ(expected: Tensor, again: Tensor) -> bool:
    """Whether two log densities differ by more than rounding."""
    size = expected.abs().nan_to_num(posinf=0.0).max().item() if expected.numel() else 0.0
    near = torch.finfo(expected.dtype).eps ** 0.5 * size
    return expected.shape != again.shape or not torch.allclose(expected, again, rtol=0.0, atol=near, equal_nan=True)


@torch.no_grad()
def _runs(density: LogJoint, count: int) -> list[poutine.Trace]:
    """Runs of a model near its start, with the same latents and the same choice of rows, from several seeds."""
    found, rows, device = [], {}, density.space.start.device
    with seeded(seed_of("where a log joint is repeated"), device):
        values = density.constrain(density.space.start + 0.1 * torch.randn_like(density.space.start))
    with pyro.validation_enabled(False):
        for turn in range(count):
            with seeded(seed_of(f"noise {turn} of a log joint"), device):
                found.append(density.trace({**values, **rows}))
            found[-1].compute_log_prob()
            rows = {name: node["value"] for name, node in found[0].nodes.items() if site_is_subsample(node)}
    return found


def _has_rows_of_its_own(node: dict, trace: poutine.Trace) -> bool:
    """Whether a site stands in a plate whose rows the model chose by itself, which no handler can repeat."""
    return any(f.full_size not in (None, f.size) and f.name not in trace.nodes for f in node["cond_indep_stack"])


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
            stacklevel=5,
        )
