"""What ``fit`` is given, checked before it starts."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable

import pyro
import torch
from torch import nn

from ..flows.linear import FULL_RANK_LIMIT
from ..guides import AutoFlow, AutoPlateFlow
from ..model import LatentSpace, LogJoint, Model
from ..model.sites import trace_of


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
    if not isinstance(guide, AutoFlow | AutoPlateFlow | None):
        raise TypeError(
            f"fit expected guide to be an AutoFlow or AutoPlateFlow, got {type(guide).__name__}: train others with SVI"
        )
    if not (objective is None or callable(objective)):
        raise TypeError(f"fit expected objective to be None or one of pyroflows.infer.objectives, got {objective!r}")


def check_plates(plates: bool | str | None, guide: object, usual: bool) -> None:
    """Raises unless ``plates`` is of a kind that is known, and goes with the other options."""
    if not isinstance(plates, bool | str | None):
        raise TypeError(f"fit expected plates to be None, True, False or the name of a plate, got {plates!r}")
    if plates and not usual:
        raise ValueError(
            f"fit expected plates={plates!r} without a flow, guide, base, objective, modes, start, full_rank, "
            f"noncentered or init_scale, which are for one flow over all latents: leave these out, or plates"
        )
    if plates is False and isinstance(guide, AutoPlateFlow):
        raise ValueError("fit expected plates=False without a guide by plate, got an AutoPlateFlow: leave plates out")


def check_arguments(model: Callable, kwargs: dict[str, object], options: Iterable[str], caller: str = "fit") -> None:
    """Raises if there is an argument by a name that neither the caller, of these options, nor the model takes."""
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
            f"{caller} expected options of its own or arguments of the model, got {name!r}, which is neither: {hint}"
        )


def check_modes(modes: int, movable: bool) -> None:
    """Raises if modes are searched for where a fit cannot start at several."""
    if modes > 1 and not movable:
        raise ValueError(
            "fit expected modes=1 with a guide or base of your own, a model with parameters, minibatches, or more "
            f"than {FULL_RANK_LIMIT} latents, got modes={modes}"
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
