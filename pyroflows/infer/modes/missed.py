"""Modes that a flow missed."""

import torch
from torch import Tensor

from ...distributions import FlowDistribution
from ..starts.counted import Counted
from ..starts.gaussian import Gaussian, LogDensity, values
from ..starts.lbfgs import Path, climb
from .search import APART, FAINT, Mode, crossed, is_apart, paths_up, refine_ends

# A place is one that the flow missed where it has less than exp(-3) of what it should have.
BLIND = 3.0
# A Gaussian on a path that leads far away from it stands at no mode: it counts only if it holds about a quarter.
QUARTER = 1.1
# Draws of a Gaussian, and of the flow. Most starts that are draws of the flow with numbers swapped or turned, which
# with the others make 64, and most numbers in all of them.
DRAWS, RELATIVES, NUMBERS = 64, 30, 5000
# Most numbers of a mode that are shown, and draws of the flow that say which.
SHOWN, SPREAD = 6, 256


def missed_modes(
    posterior: FlowDistribution,
    log_density: LogDensity,
    start: Gaussian,
    level: float,
    *,
    rough: LogDensity | None = None,
    paths: int = 32,
    work: float = 1.0,
) -> list[Mode]:
    """Modes that hold mass of which a flow has no idea, best first.

    Paths lead up from draws of ``start``, widened, and from the flow's best draw with two numbers swapped or one turned
    to its negative, as modes often are each other's mirror images. Their ends are compared with the flow first; only
    where it has next to no density is a Gaussian put.

    Args:
        posterior: the flow.
        log_density: maps ``(B, D)`` to ``(B,)``; differentiable.
        start: where paths begin.
        level: the flow's ELBO. A mode counts if its own is at most 5 nats lower, and if half of the draws around it
            have log weights under the flow that are 3 nats higher than this.
        rough: a cheaper density with about the same modes, such as that of some rows: paths are led by it first, and
            only those of which the flow has no idea lead on by the density itself.
        paths: how many paths begin at draws of ``start``.
        work: when to stop, in seconds by counted operations, see :class:`~pyroflows.infer.Counted`. With a rough
            density they are its own, and the density itself gets as many evaluations.

    Returns:
        The ELBO and the Gaussian of each.

    Example:
        >>> from pyroflows import flows
        >>> two = lambda z: torch.logaddexp(-8 * (z[:, 0] - 3) ** 2, -8 * (z[:, 0] + 3) ** 2)
        >>> flow = flows.full_rank(1)
        >>> _ = flow[0].frame_(torch.tensor([3.0]), torch.tensor([[0.25]]))
        >>> around = Gaussian(torch.zeros(1).double(), torch.eye(1).double())
        >>> [(_, missed)] = missed_modes(FlowDistribution(transform=flow), two, around, -0.8)
        >>> round(missed.loc.item(), 1)
        -3.0
    """
    try:
        density = Counted.of(log_density, start.loc)
        first = density if rough is None else Counted.of(rough, start.loc)
        end = density.done + work * density.price / first.price
        unseen = _unseen(posterior, density, _ends(posterior, first, start, paths, first.done + work), level)
        if unseen and rough is not None:
            points = torch.stack([path.points[-1] for path in unseen])
            unseen = _unseen(posterior, density, climb(density, points, work=(end - density.done) / 2), level)
        found = refine_ends(density, unseen, [], end)
        return [mode for mode in found if _is_missed(posterior, density, mode, unseen, level)]
    except torch.linalg.LinAlgError:  # a matrix far out, which must not take the fit with it
        return []


def _ends(posterior: FlowDistribution, density: Counted, start: Gaussian, paths: int, end: float) -> list[Path]:
    """Paths up from many places, and those from crossings of their ends."""
    draws = posterior.sample((DRAWS,)).to(start.loc)
    best = draws[values(density, draws).argmax()]
    starts = torch.cat([start.loc + 2 * (start.sample(paths) - start.loc), _relatives(best)])
    work = end - density.done
    ends = paths_up(density, starts, start, work)
    return ends + (crossed(density, ends, end - work / 4) if len(ends) > 1 else [])


def _relatives(z: Tensor) -> Tensor:
    """A vector turned to its negative, those with one number turned, and those with two neighbours swapped."""
    size = len(z)
    count = max(min(RELATIVES, NUMBERS // size) // 2, 1)
    turned = torch.linspace(0, size - 1, min(count, size), device=z.device).round().long()
    signs = torch.ones(len(turned), size).to(z).scatter(1, turned[:, None], -1.0)
    order = torch.arange(size, device=z.device).expand(len(turned), size).clone()
    first, second = turned.clamp_max(max(size - 2, 0)), (turned + 1).clamp_max(size - 1)
    rows = range(len(turned))
    order[rows, first], order[rows, second] = second, first
    return torch.cat([-z[None], signs * z, z[order]])


def _unseen(posterior: FlowDistribution, density: Counted, ends: list[Path], level: float) -> list[Path]:
    """The paths at whose ends the flow has next to no density."""
    points = [path.points[-1] for path in ends]
    blind = _weights(posterior, density, torch.stack(points)) > level + BLIND if points else ()
    return [path for path, is_blind in zip(ends, blind, strict=True) if is_blind]


@torch.no_grad()
def _weights(posterior: FlowDistribution, density: Counted, z: Tensor) -> Tensor:
    """Log weights under the flow at ``(B, D)``, of shape ``(B,)``: infinite where the flow has no density."""
    found = values(density, z) - posterior.log_prob(z.to(posterior.sample()))
    return found.nan_to_num(torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _is_missed(posterior: FlowDistribution, density: Counted, mode: Mode, unseen: list[Path], level: float) -> bool:
    """Whether a Gaussian holds mass, at a top of the density, and the flow has next to none there."""
    own, gaussian = mode
    has_top = any(not is_apart(path.points[-1], gaussian) for path in unseen)
    if not own > level - (FAINT if has_top else QUARTER):
        return False
    return bool(_weights(posterior, density, gaussian.sample(DRAWS)).median() > level + BLIND)


def place_of(mode: Gaussian, draws: Tensor) -> str:
    """The numbers of a mode, or, of many, the first of those that lie far from all draws, by index."""
    loc = {i: round(x, 2) for i, x in enumerate(mode.loc.tolist())}
    if len(loc) <= SHOWN:
        return str([*loc.values()])
    off = (mode.loc.to(draws) - draws.mean(0)).abs() / draws.std(0)
    far = off.square() / 2 > APART
    return str({i: loc[i] for i in (far if far.any() else off >= off.max()).nonzero()[:SHOWN, 0].tolist()})


def shares(posterior: FlowDistribution, modes: list[Mode], level: float) -> dict[str, float]:
    """By place, what part of the mass each missed mode has beside that of the flow, about."""
    draws = posterior.sample((SPREAD,))
    levels = torch.tensor([level, *(own for own, _ in modes)], dtype=torch.float64).softmax(0).tolist()
    return {place_of(gaussian, draws): share for (_, gaussian), share in zip(modes, levels[1:], strict=True)}
