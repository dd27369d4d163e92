"""What comes before the flow: a Gaussian, or several modes, to start from."""

from collections.abc import Callable, Sequence

import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from ..guides import AutoFlow
from ..infer import Gaussian, Goal, base_at, batch_and_match, elbo, find_modes
from ..model import AllRows, LatentSpace, LogJoint
from ..transforms import LowerTriangular
from .coordinates import START_ROWS, Density, Place
from .improper import check_proper

Start = Callable[[Density, Gaussian], Gaussian]


def start_guide(
    guide: AutoFlow,
    places: list[Place],
    space: LatentSpace,
    goal: Goal,
    modes: int,
    known: Sequence[Gaussian],
    stages: tuple[Start | None, Start | None],
    bar: tqdm,
) -> Place:
    """Finds a Gaussian, or several modes, and starts the guide there; returns the best place, by the ELBO."""
    view, tried = goal.tempered, []
    for place in places:
        gaussian, found = _start(guide, place, view, space, modes, known, stages, bar)
        tried.append((elbo(view(found.density), gaussian) if len(places) > 1 else 0.0, gaussian, found))
    _, gaussian, best = max(tried, key=lambda entry: entry[0])
    if best.fixed is not None:
        guide.within(best.fixed)
    guide.start_at(gaussian.loc, gaussian.scale_tril)
    return best


def _start(
    guide: AutoFlow,
    place: Place,
    view: Callable[[Density], Density],
    space: LatentSpace,
    modes: int,
    known: Sequence[Gaussian],
    stages: tuple[Start | None, Start | None],
    bar: tqdm,
) -> tuple[Gaussian, Place]:
    """The Gaussian of the stages that are wanted; the guide gets a mixture as base where there are several modes."""
    gaussian = place.start
    found = find_modes(view(place.density), gaussian, paths=8 * modes, known=known) if modes > 1 else []
    if len(found) > 1:
        gaussian, mixture = base_at(view(place.density), found, modes)
        guide.base, stages = mixture.to(guide.space.start), (None, None)
    start, full_rank = stages if isinstance(guide.core[-1], LowerTriangular) else (None, None)
    # What some rows show is off by several standard deviations, which a match on all of them, or nearly so, mends.
    match = None if place.whole is None or start is None else batch_and_match
    for name, stage in ("start", start), ("all rows", match), ("full rank", full_rank):
        if stage is not None:
            bar.set_postfix_str(f"{name} ...")
            gaussian = stage(view(place.density), gaussian)
            check_proper(view(place.density), space, gaussian, place.start)
            place = place.at(gaussian)
    return gaussian, place if start or full_rank else place.at(gaussian)


def searched(log_joint: LogJoint, plain: Place) -> tuple[Density, Density | None]:
    """What is searched for further modes after a fit, all rows of it, and from some of them what leads there."""
    if log_joint.plates is None:
        return log_joint if plain.fixed else plain.density, None
    whole = AllRows(log_joint.batch, log_joint.plates, traced=True)
    return whole, whole.some(START_ROWS)


def gaussian_at(space: LatentSpace, scale: float | Tensor) -> Gaussian:
    """A Gaussian with independent dimensions where the model starts."""
    loc = space.start
    return Gaussian(loc, torch.diag_embed(torch.as_tensor(scale).to(loc).expand_as(loc)))


@torch.no_grad()
def gaussian_of(guide: AutoFlow, like: Tensor) -> Gaussian:
    """The Gaussian with the moments of a guide's draws, in the coordinates of its core and the dtype of a tensor."""
    z = guide.core_posterior().sample((max(1000, 4 * guide.space.size),)).to(like)
    return Gaussian.from_root(z.mean(0), torch.linalg.qr((z - z.mean(0)) / len(z) ** 0.5, mode="r").R.mT)


def model_parameters(density: LogJoint) -> list[Tensor]:
    """The unconstrained parameters that the model itself declares by pyro.param, pyro.module or PyroModule."""
    start = poutine.condition(density.model, data=density.constrain(density.space.start))
    with poutine.trace(param_only=True) as capture, torch.no_grad():
        start(*density.args, **density.kwargs)
    found = (node["value"].unconstrained() for node in capture.trace.nodes.values())
    return list({id(p): p for p in found}.values())
