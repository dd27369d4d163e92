"""Batch and match: a full-rank Gaussian learnt from scores, without a step size to tune."""

import math

import torch
from torch import Tensor

from .counted import Counted
from .gaussian import Gaussian, LogDensity, score

# Updates over which the weight of a batch falls to zero at the end, and those between two looks at the ELBO.
COOLING, LOOK = 50, 20
# An update may cost as many nats as there are dimensions, and so many more.
FALL = 10.0
# More draws than this are not worth their time in high dimensions, where updates then have low rank.
MOST_DRAWS = 256
# Seconds of an update beside the log density, for each ``batch * D * min(batch, D)``.
UPDATE = 2e-9


def batch_and_match(
    log_density: LogDensity, start: Gaussian, *, iterations: int = 150, work: float = math.inf
) -> Gaussian:
    """Moves a Gaussian until its score equals that of ``log_density`` at its own draws, as nearly as it can.

    Each update draws ``max(64, min(2 D, 256))`` points and solves for the Gaussian that matches their scores and
    stays near the one before. Batches count less and less. An update that is not finite, or after which the ELBO has
    fallen far or half of the draws have no density, is undone and the weight halved for good. Ends early when the
    ELBO is level or nothing moves. A target that is Gaussian is found exactly.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, each row by itself; differentiable.
        start: where to begin; its dtype and device are used throughout.
        iterations: most updates, one call for a batch of scores each.
        work: when to stop at the latest, in seconds by counted operations, see :class:`~pyroflows.infer.Counted`; it is
            felt beyond some 300 dimensions.

    Example:
        >>> target = Gaussian(torch.tensor([3.0, -1.0]).double(), torch.tensor([[2.0, 0.0], [1.0, 0.1]]).double())
        >>> q = batch_and_match(target.log_prob, Gaussian(torch.zeros(2).double(), torch.eye(2).double()))
        >>> torch.allclose(q.loc, target.loc), torch.allclose(q.scale_tril, target.scale_tril)
        (True, True)

    References:
        Batch and match: black-box variational inference with a score-based divergence. Cai, Modi, Pillaud-Vivien,
        Margossian, Gower, Blei, Saul, 2024. https://arxiv.org/abs/2402.14758 (algorithm 1 and equation 10).
    """
    log_density = Counted.of(log_density, start.loc)
    stop = log_density.done + work
    state = last = start.loc, start.scale_tril
    dim, t, end, shrink = len(start.loc), 0, iterations, 1.0
    batch, trace = max(64, min(2 * dim, MOST_DRAWS)), []
    while t < end and shrink > 1e-6 and log_density.done < stop:
        log_density.done += UPDATE * batch * dim * min(batch, dim)
        noise = torch.randn(batch, dim, dtype=start.loc.dtype, device=start.loc.device)
        value, grads = score(log_density, state[0] + noise @ state[1].mT)
        good, t = value.isfinite(), t + 1
        level = (value[good].mean() + torch.linalg.slogdet(state[1]).logabsdet).item()
        if 2 * int(good.sum()) < batch or (trace and level < trace[-1] - FALL - dim):
            state, shrink = last, shrink / 2
            continue
        trace.append(level)
        if end == iterations and _is_level(trace):
            end = min(t + COOLING, iterations)
        weight = shrink * batch * dim / t * min(1.0, (end + 1 - t) / COOLING) ** 2
        shift, change = _match(noise[good], grads[good] @ state[1], weight)
        if not (shift.isfinite().all() and change.isfinite().all()):
            shrink /= 2
            continue
        last, state = state, (state[0] + state[1] @ shift, state[1] @ change)
        if shift.norm() + torch.dist(change, torch.eye(dim).to(change)) < torch.finfo(change.dtype).eps ** 0.5:
            break
    return Gaussian.from_root(*state)


def _is_level(trace: list[float]) -> bool:
    """Whether the last estimates of the ELBO are no higher than those before, noise aside."""
    if len(trace) < 2 * LOOK:
        return False
    now, before = torch.tensor(trace[-LOOK:]), torch.tensor(trace[-2 * LOOK : -LOOK])
    return bool(now.mean() - before.mean() < 0.02 + before.std() / math.sqrt(LOOK))


def _match(noise: Tensor, slopes: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """One update in coordinates in which the Gaussian is standard normal.

    There the new covariance ``S`` solves ``S U S + S = V``. With ``V = A A'`` and the eigenvalues ``u`` of ``A' U A``
    it is ``A f(A' U A) A'``, ``f(u) = 2 / (1 + sqrt(1 + 4 u))``: positive definite by construction.

    Args:
        noise: draws in these coordinates, of shape ``(B, D)``.
        slopes: scores there, of shape ``(B, D)``.
        weight: how much the batch counts against the Gaussian before.

    Returns:
        The mean ``(D,)`` and a root ``(D, D)`` of the covariance in these coordinates; not finite if it failed.
    """
    spread, tension = _weighted(noise, weight), _weighted(slopes, weight)
    if not tension.isfinite().all():
        return torch.full_like(noise[0], math.nan), torch.full_like(noise[:0], math.nan)
    _, e, directions = torch.linalg.svd(spread, full_matrices=False)
    root = _stretched(torch.eye(noise.shape[1]).to(noise), directions, (1 + e.square()).sqrt())
    _, u, directions = torch.linalg.svd(tension @ root, full_matrices=False)
    root = _stretched(root, directions, (2 / (1 + (1 + 4 * u.square()).sqrt())).sqrt())
    return weight / (1 + weight) * (root @ (root.mT @ slopes.mean(0)) + noise.mean(0)), root


def _weighted(rows: Tensor, weight: float) -> Tensor:
    """Rows ``R`` with ``R' R = weight * covariance + weight / (1 + weight) * mean mean'``."""
    mean = rows.mean(0)
    spread, centre = math.sqrt(weight / len(rows)), math.sqrt(weight / (1 + weight))
    return torch.cat([spread * (rows - mean), centre * mean[None]])


def _stretched(matrix: Tensor, directions: Tensor, factors: Tensor) -> Tensor:
    """``matrix`` times the map that stretches orthonormal directions, the rows, by factors."""
    return matrix + (matrix @ directions.mT) * (factors - 1) @ directions
