"""Several modes: finding them, and those that a flow missed."""

import math
import warnings

import torch
from torch import Tensor

from ..distributions import FlowDistribution
from .batch_and_match import batch_and_match
from .gaussian import Gaussian, LogDensity, elbo, values
from .lbfgs import GAIN, Path, climb
from .pathfinder import candidates
from .work import Counted

# Means closer than this many nats down from a Gaussian's top, about four standard deviations, are of one mode.
APART = 8.0
# A mode is missed if it holds at least exp(-5), or 0.7 %, of the mass, and the flow there less than exp(-3) of its own.
FAINT, BLIND = 5.0, 3.0
# Most numbers of a mode that a message shows, and draws of the flow that say which.
SHOWN, SPREAD = 6, 256
# Updates of a Gaussian that stands at a mode already.
MATCHES = 60
# Times that modes are crossed, of which the first lead to a better place to cross from, and most modes and latents.
CROSSINGS, PARTNERS, LATENTS = 4, 32, 256


def find_modes(
    log_density: LogDensity, start: Gaussian, *, paths: int = 16, work: float = 6.0
) -> list[tuple[float, Gaussian]]:
    """Gaussians at the ends of L-BFGS paths that lie apart, with their ELBOs, best first.

    Where modes differ in many latents independently, random paths hardly ever end at one of the best. So modes are
    crossed: paths begin at the best one, too, with one latent at a time moved to where another mode has it.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, each row by itself; differentiable.
        start: paths begin at draws from it, widened to twice its scale.
        paths: how many paths.
        work: when to stop, in seconds by counted operations, see :class:`~pyroflows.infer.Counted`; at most three
            quarters of it are for the paths.

    Returns:
        The ELBO in nats, a lower bound of the log mass around the mode, and the Gaussian, of each. Empty if no path
        ends where a Gaussian has a finite ELBO.

    Example:
        >>> two = lambda z: torch.logaddexp(-8 * (z[:, 0] - 3) ** 2, -8 * (z[:, 0] + 3) ** 2 - 1)
        >>> found = find_modes(two, Gaussian(torch.zeros(1).double(), torch.eye(1).double()))
        >>> [round(gaussian.loc.item(), 1) for _, gaussian in found]
        [3.0, -3.0]
    """
    log_density = Counted.of(log_density, start.loc)
    end = log_density.done + work
    starts = start.loc + 2 * (start.sample(paths) - start.loc)
    starts = starts[values(log_density, starts).isfinite()]
    ends = climb(log_density, starts, work=work / 2) if len(starts) else []
    ends += _crossed(log_density, ends, end - work / 4) if len(ends) > 1 else []
    found: list[tuple[float, Gaussian]] = []
    best = -math.inf
    for path in sorted(ends, key=_height, reverse=True):
        if found and log_density.done > end:
            break
        if all(_apart(path.points[-1], other) for _, other in found):
            for level, gaussian in _around(log_density, path, end):
                best = max(best, level)
                # What is too faint to count stays as it is, so that its other paths end there, too.
                faint = level < best - 2 * FAINT
                found.append((level, gaussian) if faint else _refined(log_density, gaussian, end))
    apart: list[tuple[float, Gaussian]] = []
    for level, gaussian in sorted(found, key=lambda pair: -pair[0]):
        if level > -math.inf and all(_apart(gaussian.loc, other) for _, other in apart):
            apart.append((level, gaussian))
    return apart


def _crossed(log_density: Counted, ends: list[Path], end: float) -> list[Path]:
    """Paths from crossings of the best mode with the others, from the crossings' best with all, and so on."""
    found: list[Path] = []
    ends = sorted(ends, key=_height, reverse=True)[:PARTNERS]
    top = ends[0]
    for _ in range(CROSSINGS):
        points = torch.stack([path.points[-1] for path in ends])
        around = _around(log_density, top, end)
        starts = torch.cat([points[:0], *(_crossings(log_density, gaussian, points) for _, gaussian in around)])
        work = end - log_density.done
        if not len(starts) or work <= 0:
            break
        new = climb(log_density, starts, work=work / 2)
        found += new
        better = [path.points[-1] - top.points[-1] for path in new if _height(path) > _height(top) + GAIN]
        if not better:
            break
        # What is better in one latent each is often better in all of them.
        both = top.points[-1] + torch.stack(better).sum(0)
        found += climb(log_density, both[None], work=work / 4)
        top = max([top, *found], key=_height)
    return found


def _crossings(log_density: LogDensity, gaussian: Gaussian, points: Tensor) -> Tensor:
    """A Gaussian's mean with one latent moved to where other points have it, if that is far; the others follow.

    Of the points up and those down in a latent, those that lead to the highest log density: ``(at most 2 D, D)``.
    """
    covariance = gaussian.scale_tril @ gaussian.scale_tril.mT
    variances, found = covariance.diagonal(), []
    off = points - gaussian.loc
    for sign in (1, -1):
        depth = torch.where(off * sign > 0, off.square() / variances / 2, 0.0)
        deepest, which = depth.amax(0).topk(min(LATENTS, len(variances)))
        far, which = depth > APART, which[deepest > APART]
        if not len(which):
            continue
        moved = gaussian.loc + (off / variances).T[which, :, None] * covariance[which, None]
        heights = values(log_density, moved.flatten(0, 1)).view(moved.shape[:2])
        heights, best = torch.where(far.T[which], heights, -math.inf).max(1)
        found.append(moved[range(len(which)), best][heights.isfinite()])
    return torch.cat(found) if found else points[:0]


def _height(path: Path) -> float:
    return path.values[-1].item()


def _around(log_density: Counted, path: Path, end: float) -> list[tuple[float, Gaussian]]:
    """The best Gaussian on a path, with its ELBO; none if that is not finite."""
    level, loc, root = candidates(log_density, [path], end)[0]
    return [(level, Gaussian.from_root(loc, root))] if level > -math.inf else []


def _refined(log_density: Counted, gaussian: Gaussian, end: float) -> tuple[float, Gaussian]:
    """The better by ELBO of a Gaussian and its match."""
    matched = batch_and_match(log_density, gaussian, iterations=MATCHES, work=end - log_density.done)
    return max(((elbo(log_density, g), g) for g in (gaussian, matched)), key=lambda pair: pair[0])


def _apart(z: Tensor, gaussian: Gaussian) -> bool:
    top, here = gaussian.log_prob(torch.stack([gaussian.loc, z])).tolist()
    return top - here > APART


@torch.no_grad()
def missed_modes(
    posterior: FlowDistribution, log_density: LogDensity, modes: list[tuple[float, Gaussian]], level: float
) -> list[Gaussian]:
    """Modes that hold mass of which a flow has no idea.

    Args:
        posterior: the flow.
        log_density: maps ``(B, D)`` to ``(B,)``.
        modes: what :func:`find_modes` found.
        level: the flow's ELBO. A mode counts if its own is at most 5 nats lower, and if half of the draws around it
            have log weights under the flow that are 3 nats higher than this.
    """
    missed = []
    for own, gaussian in modes:
        z = gaussian.sample(64)
        log_q = posterior.log_prob(z.to(posterior.sample()))
        if own > level - FAINT and (values(log_density, z) - log_q).median() > level + BLIND:
            missed.append(gaussian)
    return missed


def _place(mode: Gaussian, draws: Tensor) -> str:
    """The numbers of a mode, or, of many, the first of those that lie far from all draws, by index."""
    loc = {i: round(x, 2) for i, x in enumerate(mode.loc.tolist())}
    if len(loc) <= SHOWN:
        return str([*loc.values()])
    off = (mode.loc.to(draws) - draws.mean(0)).abs() / draws.std(0)
    far = off.square() / 2 > APART
    return str({i: loc[i] for i in (far if far.any() else off >= off.max()).nonzero()[:SHOWN, 0].tolist()})


def warn_of_modes(
    posterior: FlowDistribution, log_density: LogDensity, start: Gaussian, level: float, finished: bool = True
) -> None:
    """Searches for modes, for a second's work at most, and warns of those that a flow missed.

    Args:
        posterior: the flow.
        log_density: maps ``(B, D)`` to ``(B,)``; differentiable.
        start: where to search, see :func:`find_modes`.
        level: the flow's ELBO.
        finished: whether it had stopped rising; else more steps may be all that it takes.
    """
    try:
        found = find_modes(log_density, start, paths=8, work=1.0)
        missed = missed_modes(posterior, log_density, found, level)
    except torch.linalg.LinAlgError:  # a matrix far out, which must not take the fit with it
        return
    if missed:
        places = ", ".join(_place(mode, posterior.sample((SPREAD,))) for mode in missed[:4])
        cause, first = (
            ("several modes", "") if finished else ("several modes, or a fit that is not done", "more steps, ")
        )
        warnings.warn(
            f"{cause}: there is mass around {len(missed)} where the flow has next to none (in unconstrained "
            f"space, {places}): try {first}fit(..., modes={max(4, 2 * len(found))}), or objective=infer.Annealed()",
            stacklevel=3,
        )
