"""What comes before the flow: the log joint in the right precision, coordinates, and a Gaussian to start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from .bases import ComponentBase
from .guides import AutoFlow
from .improper import check_proper
from .infer import (
    AllRows,
    Anchored,
    Annealed,
    Choice,
    Gaussian,
    LogJoint,
    Objective,
    TracedDensity,
    Untraceable,
    base_at,
    batch_and_match,
    elbo,
    find_modes,
)
from .latents import LatentSpace
from .noncentered import noncentered as noncentered_map
from .transforms import FlowTransform, LowerTriangular

Density = Callable[[Tensor], Tensor]
# Where plates are subsampled, so many rows, the same at each call, show where to start.
START_ROWS = 4096
# Draws by which a fit is judged, at least so many, and rows times draws that are scored for it.
DRAWS, LEAST_DRAWS, SCORED = 4000, 1000, 200_000_000
Start = Callable[[Density, Gaussian], Gaussian]


@dataclass(frozen=True)
class Place:
    """The coordinates in which a flow is fitted.

    Args:
        fixed: the map from them to unconstrained space, None for unconstrained space itself.
        density: the log density in them.
        start: a Gaussian in them where the model starts.
        rows: how many vectors a graph of the density takes, 0 for none.
        whole: where plates are subsampled, the density over all rows.
        anchored: and its estimate from some at each call, once there is a Gaussian to expand it around.
    """

    fixed: FlowTransform | None
    density: Density
    start: Gaussian
    rows: int = 0
    whole: AllRows | None = None
    anchored: Anchored | None = None

    @classmethod
    def of(cls, log_joint: LogJoint, fixed: FlowTransform | None, around: Gaussian, rows: int) -> "Place":
        """The log joint in other coordinates, traced for so many rows where it can be and they are not 0."""
        start = around if fixed is None else Gaussian(fixed.inv(around.loc), around.scale_tril)

        def batch(u: Tensor, choice: Choice | None = None) -> Tensor:
            z, ladj = (u, 0.0) if fixed is None else fixed.call_and_ladj(u)
            return log_joint.batch(z, choice) + (ladj if choice is None else ladj * choice.prior)

        if rows and log_joint.plates is not None:
            whole = AllRows(batch, log_joint.plates, rows, traced=True)
            return cls(fixed, whole.some(START_ROWS), start, rows, whole)
        return cls(fixed, _traced(batch, start.loc, rows), start, rows)

    def at(self, gaussian: Gaussian) -> "Place":
        """The same with a density from some rows at each call, if there are more, expanded around a Gaussian."""
        if self.whole is None:
            return self
        if self.anchored is not None:
            self.anchored.move(gaussian)
            return self
        anchored = Anchored(self.whole, gaussian)
        return replace(self, density=_traced(anchored, gaussian.loc, self.rows), anchored=anchored)


def _traced(density: Density, example: Tensor, rows: int) -> Density:
    """A density as a graph for so many rows where it can be and they are not 0."""
    try:
        return TracedDensity(density, example, rows) if rows else density
    except Untraceable:
        return density


def wide_log_joint(model: Callable, args: tuple, kwargs: dict, space: LatentSpace, precision: str) -> LogJoint:
    """The log joint, in double precision where that is wanted and the model can be run so."""
    own = LogJoint(model, args, kwargs, space)
    if precision == "single" or space.start.dtype == torch.float64:
        return own
    try:
        double = LogJoint(model, args, kwargs, space, dtype=torch.float64)
        z = double.space.start.detach()[None].requires_grad_()
        with torch.enable_grad():
            value = double.batch(z)
            torch.autograd.grad(value.sum(), z)  # which may fail where the value does not
    except (RuntimeError, TypeError, ValueError):  # the model holds tensors in single precision that do not mix
        return own
    return double if value.dtype == torch.float64 and value.isfinite().all() else own


def places_of(plain: Place, density: LogJoint, noncentered: bool | None, rows: int) -> list[Place]:
    """The coordinates to choose from: as the model has them, non-centred, or both."""
    fixed = None if noncentered is False else noncentered_map(density)
    if fixed is None:
        if noncentered:
            raise ValueError(
                "fit expected a site with a prior like Normal(loc, scale) whose scale depends on other latents for "
                "noncentered=True, got none: leave noncentered out"
            )
        return [plain]
    return [*([] if noncentered else [plain]), Place.of(density, fixed, plain.start, rows)]


def start_guide(
    guide: AutoFlow,
    places: list[Place],
    space: LatentSpace,
    objective: Objective,
    modes: int,
    known: Sequence[Gaussian],
    stages: tuple[Start | None, Start | None],
    bar: tqdm,
) -> Place:
    """Finds a Gaussian, or several modes, and starts the guide there; returns the best place, by the ELBO."""
    view, tried = objective.tempered if isinstance(objective, Annealed) else _as_it_is, []
    for place in places:
        gaussian, found = _start(guide, place, view, space, modes, known, stages, bar)
        tried.append((elbo(view(found.density), gaussian) if len(places) > 1 else 0.0, gaussian, found))
    _, gaussian, best = max(tried, key=lambda entry: entry[0])
    if best.fixed is not None:
        guide.within(best.fixed)
    guide.start_at(gaussian.loc, gaussian.scale_tril)
    return best


def _as_it_is(density: Density) -> Density:
    return density


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


def num_draws(log_joint: LogJoint) -> int:
    """How many draws a fit is judged by: fewer where each of them has to be scored on very many rows."""
    rows = 0 if log_joint.plates is None else sum(size for size, _ in log_joint.plates.sizes.values())
    return max(LEAST_DRAWS, min(DRAWS, SCORED // max(rows, 1)))


def model_parameters(density: LogJoint) -> list[Tensor]:
    """The unconstrained parameters that the model itself declares by pyro.param, pyro.module or PyroModule."""
    start = poutine.condition(density.model, data=density.constrain(density.space.start))
    with poutine.trace(param_only=True) as capture, torch.no_grad():
        start(*density.args, **density.kwargs)
    found = (node["value"].unconstrained() for node in capture.trace.nodes.values())
    return list({id(p): p for p in found}.values())


def choose_precision(guide: AutoFlow, precision: str) -> None:
    """Networks in single precision, unless double is wanted or a base of the user's own is in double."""
    if precision == "mixed" and guide.base is None:
        for part in (guide.core[0], guide.core[-1].params):
            part.float()
    elif precision == "double":
        guide.transform.double()
        if isinstance(guide.base, ComponentBase):
            guide.base = guide.base.to(torch.zeros((), dtype=torch.float64))
