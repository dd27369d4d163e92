"""What comes before the flow: the log joint in the right precision, coordinates, and a Gaussian to start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .bases import ComponentBase
from .guides import AutoFlow
from .improper import check_proper
from .infer import Annealed, Gaussian, LogJoint, Objective, TracedDensity, Untraceable, base_at, elbo, find_modes
from .latents import LatentSpace
from .noncentered import noncentered as noncentered_map
from .transforms import FlowTransform, LowerTriangular

Density = Callable[[Tensor], Tensor]
Start = Callable[[Density, Gaussian], Gaussian]


@dataclass(frozen=True)
class Place:
    """The coordinates in which a flow is fitted.

    Args:
        fixed: the map from them to unconstrained space, None for unconstrained space itself.
        density: the log density in them.
        start: a Gaussian in them where the model starts.
    """

    fixed: FlowTransform | None
    density: Density
    start: Gaussian

    @classmethod
    def of(cls, log_joint: LogJoint, fixed: FlowTransform | None, around: Gaussian, rows: int) -> "Place":
        """The log joint in other coordinates, traced for so many rows where it can be and they are not 0."""
        start, density = around, log_joint
        if fixed is not None:
            start = Gaussian(fixed.inv(around.loc), around.scale_tril)

            def density(u: Tensor) -> Tensor:
                z, ladj = fixed.call_and_ladj(u)
                return log_joint(z) + ladj

        try:
            return cls(fixed, TracedDensity(density, start.loc, rows) if rows else density, start)
        except Untraceable:
            return cls(fixed, density, start)


def wide_log_joint(model: Callable, args: tuple, kwargs: dict, space: LatentSpace, precision: str) -> LogJoint:
    """The log joint, in double precision where that is wanted and the model can be run so."""
    own = LogJoint(model, args, kwargs, space)
    if precision == "single" or space.start.dtype == torch.float64:
        return own
    try:
        double = LogJoint(model, args, kwargs, space, dtype=torch.float64)
        z = double.space.start.detach()[None].requires_grad_()
        with torch.enable_grad():
            value = double(z)
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
    tried = []
    for place in places:
        density = objective.tempered(place.density) if isinstance(objective, Annealed) else place.density
        gaussian = _start(guide, density, space, place.start, modes, known, stages, bar)
        tried.append((elbo(density, gaussian) if len(places) > 1 else 0.0, gaussian, place))
    _, gaussian, best = max(tried, key=lambda entry: entry[0])
    if best.fixed is not None:
        guide.within(best.fixed)
    guide.start_at(gaussian.loc, gaussian.scale_tril)
    return best


def _start(
    guide: AutoFlow,
    density: Density,
    space: LatentSpace,
    around: Gaussian,
    modes: int,
    known: Sequence[Gaussian],
    stages: tuple[Start | None, Start | None],
    bar: tqdm,
) -> Gaussian:
    """The Gaussian of the stages that are wanted; the guide gets a mixture as base where there are several modes."""
    gaussian = around
    found = find_modes(density, gaussian, paths=8 * modes, known=known) if modes > 1 else []
    if len(found) > 1:
        gaussian, mixture = base_at(density, found, modes)
        guide.base, stages = mixture.to(guide.space.start), (None, None)
    for name, stage in zip(("start", "full rank"), stages, strict=True):
        if stage is not None and isinstance(guide.core[-1], LowerTriangular):
            bar.set_postfix_str(f"{name} ...")
            gaussian = stage(density, gaussian)
            check_proper(density, space, gaussian, around)
    return gaussian


def gaussian_at(space: LatentSpace, scale: float | Tensor) -> Gaussian:
    """A Gaussian with independent dimensions where the model starts."""
    loc = space.start
    return Gaussian(loc, torch.diag_embed(torch.as_tensor(scale).to(loc).expand_as(loc)))


def choose_precision(guide: AutoFlow, precision: str) -> None:
    """Networks in single precision, unless double is wanted or a base of the user's own is in double."""
    if precision == "mixed" and guide.base is None:
        for part in (guide.core[0], guide.core[-1].params):
            part.float()
    elif precision == "double":
        guide.transform.double()
        if isinstance(guide.base, ComponentBase):
            guide.base = guide.base.to(torch.zeros((), dtype=torch.float64))
