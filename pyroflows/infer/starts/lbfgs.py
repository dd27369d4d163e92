"""L-BFGS paths uphill on a log density, from several starts at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .counted import Counted
from .gaussian import LogDensity, score

# Pairs of steps and gradient changes that make up the metric.
MEMORY = 10
# A path ends when so many steps together gain less than this, in nats.
STEPS, GAIN = 20, 0.01
# Seconds of an iteration beside the log density.
ITERATION = 1e-3


@dataclass(frozen=True)
class Path:
    """The iterates of one path: points and gradients of shape ``(T, D)``, values of shape ``(T,)``."""

    points: Tensor
    values: Tensor
    grads: Tensor


def climb(log_density: LogDensity, starts: Tensor, *, work: float, iterations: int = 2000) -> list[Path]:
    """Paths of L-BFGS from each row of ``(K, D)``, all evaluated together, one call for each step of the search.

    A path ends when it gains little, or where no step leads up; all end after ``iterations``, or so many seconds'
    ``work``, see :class:`~pyroflows.infer.Counted`.
    Points at which the log density is not finite are never stepped on.

    Example:
        >>> (path,) = climb(lambda z: -z.square().sum(-1), torch.ones(1, 2), work=1.0)
        >>> path.points[-1].allclose(torch.zeros(2), atol=1e-2)
        True

    References:
        Nonsmooth optimization via quasi-Newton methods. Lewis, Overton, 2013 (the line search).
        https://doi.org/10.1007/s10107-012-0514-2
    """
    log_density = Counted.of(log_density, starts[0])
    end = log_density.done + work
    found = [(starts, *score(log_density, starts))]
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    alive = found[0][1].isfinite()
    lengths = alive.new_zeros(len(starts), dtype=torch.long)
    while alive.any() and len(found) <= iterations and log_density.done < end:
        log_density.done += ITERATION
        z, value, grad = found[-1]
        direction = torch.where(alive[:, None], _direction(grad, pairs), 0.0)
        found.append(_search(log_density, z, value, grad, direction))
        step, change = found[-1][0] - z, grad - found[-1][2]
        curvature = (step * change).sum(-1, keepdim=True)
        bent = curvature > 1e-12 * change.square().sum(-1, keepdim=True)
        pairs = [*pairs[1 - MEMORY :], (step, change, torch.where(bent, 1 / curvature, 0.0))]
        lengths += alive
        alive &= found[-1][1] > value
        if len(found) > STEPS:
            alive &= found[-1][1] > found[-1 - STEPS][1] + GAIN
    points, values, grads = map(torch.stack, zip(*found, strict=True))
    return [Path(points[:n, k], values[:n, k], grads[:n, k]) for k, n in enumerate((lengths + 1).tolist())]


def _direction(grads: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse metric times the gradients, by the two loops; a pair whose third part is zero counts nothing."""
    q, weights = grads, []
    scale = 1 / grads.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(grads.dtype).tiny)
    for step, change, inverse in reversed(pairs):
        weights.append(inverse * (step * q).sum(-1, keepdim=True))
        q = q - weights[-1] * change
    for _, change, inverse in pairs:
        scale = torch.where(inverse > 0, 1 / (inverse * change.square().sum(-1, keepdim=True)), scale)
    q = scale * q
    for (step, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - inverse * (change * q).sum(-1, keepdim=True)) * step
    return q


def _search(
    log_density: LogDensity, z: Tensor, value: Tensor, grad: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weak Wolfe line search of Lewis and Overton, for every row by itself; a row that finds nothing stays."""
    slope = (grad * direction).sum(-1)
    low, high, t = torch.zeros_like(slope), torch.full_like(slope, math.inf), torch.ones_like(slope)
    best, searching = (z, value, grad), slope > 0
    for _ in range(20):
        if not searching.any():
            break
        trial = z + t[:, None] * direction
        found = (trial, *score(log_density, trial))
        enough = found[1] >= value + 1e-4 * t * slope
        steep = (found[2] * direction).sum(-1) > 0.9 * slope
        taken = searching & enough
        masks = taken[:, None], taken, taken[:, None]
        best = tuple(map(torch.where, masks, found, best))
        searching = searching & (steep | ~enough)
        low, high = torch.where(enough, t, low), torch.where(enough, high, t)
        t = torch.where(searching, torch.where(high.isinf(), 2 * low, (low + high) / 2), t)
    return best
