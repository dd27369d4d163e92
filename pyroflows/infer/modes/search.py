"""Several modes: finding them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..starts.batch_and_match import batch_and_match
from ..starts.counted import ROWS, Counted
from ..starts.gaussian import Gaussian, LogDensity, elbo, values
from ..starts.lbfgs import GAIN, Path, climb
from ..starts.pathfinder import candidates

# Means closer than this many nats down from a Gaussian's top, about four standard deviations, are of one mode.
APART = 8.0
# A mode of less than exp(-5), or 0.7 %, of the mass does not count.
FAINT = 5.0
# More paths begin while they have taken less work than this, at draws that are so much wider.
CHEAP, WIDE = 0.125, 3
# Updates of a Gaussian that stands at a mode already.
MATCHES = 60
# Times that modes are crossed, of which the first lead to a better place to cross from, and most modes and latents.
CROSSINGS, PARTNERS, LATENTS = 4, 32, 256

# The ELBO and the Gaussian of a mode.
Mode = tuple[float, Gaussian]


def find_modes(
    log_density: LogDensity,
    start: Gaussian,
    *,
    paths: int = 16,
    work: float = 6.0,
    known: Sequence[Gaussian] = (),
) -> list[Mode]:
    """Gaussians at the ends of L-BFGS paths that lie apart, with their ELBOs, best first.

    Where modes differ in many latents independently, random paths hardly ever end at one of the best. So modes are
    crossed: paths begin at the best one, too, with one latent at a time moved to where another mode has it.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, each row by itself; differentiable.
        start: paths begin at draws from it, widened to twice its scale.
        paths: how many paths.
        work: when to stop, in seconds by counted operations, see :class:`~pyroflows.infer.Counted`; at most three
            quarters of it are for the paths.

        known: Gaussians at modes that are known already, which are refined, too.

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
    ends = paths_up(log_density, starts, start, work)
    ends += crossed(log_density, ends, end - work / 4) if len(ends) > 1 else []
    found = [refined(log_density, gaussian, end) for gaussian in known]
    return refine_ends(log_density, ends, found, end)


def paths_up(log_density: Counted, starts: Tensor, start: Gaussian, work: float) -> list[Path]:
    """Paths from ``(K, D)``, and, where these are cheap, from more and wider draws of a Gaussian.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``.
        starts: where the first paths begin.
        start: where others do.
        work: of the whole search, of which half is for the first paths.
    """
    ends, end = [], log_density.done + min(work / 8, CHEAP)
    while True:
        starts = starts[values(log_density, starts).isfinite()]
        ends += climb(log_density, starts, work=work / 2) if len(starts) else []
        if not ends or log_density.done > end:
            return ends
        starts = start.loc + WIDE * (start.sample(ROWS) - start.loc)


def refine_ends(log_density: Counted, ends: list[Path], found: list[Mode], end: float) -> list[Mode]:
    """ELBOs and Gaussians of modes found before and of those at the ends of paths that lie apart, best first.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``.
        ends: the paths.
        found: the modes found before.
        end: when to stop, by the work that the log density has done, once there is one mode.
    """
    best = max((level for level, _ in found), default=-math.inf)
    for path in sorted(ends, key=height, reverse=True):
        if found and log_density.done > end:
            break
        if all(is_apart(path.points[-1], other) for _, other in found):
            for level, gaussian in _around(log_density, path, end):
                best = max(best, level)
                # What is too faint to count stays as it is, so that its other paths end there, too.
                faint = level < best - 2 * FAINT
                found = [*found, (level, gaussian) if faint else refined(log_density, gaussian, end)]
    apart: list[Mode] = []
    for level, gaussian in sorted(found, key=lambda pair: -pair[0]):
        if level > -math.inf and all(is_apart(gaussian.loc, other) for _, other in apart):
            apart.append((level, gaussian))
    return apart


def crossed(log_density: Counted, ends: list[Path], end: float) -> list[Path]:
    """Paths from crossings of the best mode with the others, from the crossings' best with all, and so on."""
    found: list[Path] = []
    ends = sorted(ends, key=height, reverse=True)[:PARTNERS]
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
        better = [path.points[-1] - top.points[-1] for path in new if height(path) > height(top) + GAIN]
        if not better:
            break
        # What is better in one latent each is often better in all of them.
        both = top.points[-1] + torch.stack(better).sum(0)
        found += climb(log_density, both[None], work=work / 4)
        top = max([top, *found], key=height)
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


def height(path: Path) -> float:
    """The log density where a path ends."""
    return path.values[-1].item()


def _around(log_density: Counted, path: Path, end: float) -> list[Mode]:
    """The best Gaussian on a path, with its ELBO; none if that is not finite."""
    level, loc, root = candidates(log_density, [path], end)[0]
    return [(level, Gaussian.from_root(loc, root))] if level > -math.inf else []


def refined(log_density: Counted, gaussian: Gaussian, end: float) -> Mode:
    """The better by ELBO of a Gaussian and its match."""
    matched = batch_and_match(log_density, gaussian, iterations=MATCHES, work=end - log_density.done)
    return max(((elbo(log_density, g), g) for g in (gaussian, matched)), key=lambda pair: pair[0])


def is_apart(z: Tensor, gaussian: Gaussian) -> bool:
    """Whether a point is more than about four standard deviations from a Gaussian."""
    top, here = gaussian.log_prob(torch.stack([gaussian.loc, z])).tolist()
    return top - here > APART
