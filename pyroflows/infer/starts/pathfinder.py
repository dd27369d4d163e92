"""Pathfinder: a Gaussian found on the way to a mode and judged by its ELBO."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .counted import Counted
from .gaussian import Gaussian, LogDensity, elbo, score, values
from .lbfgs import Path, climb

# Places on each path, of which every so many are looked at first, and pairs of draws to compare them by.
PLACES, STRIDE, PAIRS = 24, 4, 16
# Best places that are judged again, by more draws.
FINALISTS = 8
# Beyond so many dimensions the curvature is a diagonal, estimated along so many random directions.
DENSE, DIRECTIONS = 200, 32
# Widths of a Gaussian, as multiples of what the curvature says.
WIDTHS = 1.0, 0.3

Candidate = tuple[float, Tensor, Tensor]


def pathfinder(log_density: LogDensity, start: int | Tensor, *, work: float = 6.0) -> Gaussian:
    """The Gaussian of best ELBO on L-BFGS paths from four random starts, and from a given one.

    At some 24 places on each path, close at first and ever further apart, the Hessian is taken by differences of the
    score, with the absolute values of its eigenvalues. Its inverse is the covariance, around the place itself and
    around its Newton step. Every fourth place is looked at, then those around the best. The mode itself counts for
    nothing: hierarchical models may have none. Beyond 200 dimensions only the diagonal of the Hessian is estimated.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, each row by itself; differentiable, and finite near the starts.
        start: the number of dimensions, or a point of shape ``(D,)`` whose dtype and device are then used.
        work: when to stop looking, in seconds by counted operations, see :class:`~pyroflows.infer.Counted`; half of
            it is for the paths.

    Raises:
        ValueError: if ``start`` is neither.
        FloatingPointError: if no Gaussian has a finite ELBO.

    Example:
        >>> target = Gaussian(torch.tensor([300.0, -1.0]).double(), torch.tensor([[2.0, 0.0], [1.0, 0.1]]).double())
        >>> q = pathfinder(target.log_prob, torch.zeros(2).double())
        >>> torch.allclose(q.loc, target.loc), torch.allclose(q.scale_tril, target.scale_tril)
        (True, True)

    References:
        Pathfinder: parallel quasi-Newton variational inference. Zhang, Carpenter, Gelman, Vehtari, 2022.
        https://arxiv.org/abs/2108.03782 (the idea; the covariance here is not that of L-BFGS).
    """
    starts = _starts(log_density, start)
    log_density = Counted.of(log_density, starts[0])
    end = log_density.done + work
    paths = climb(log_density, starts, work=work / 2)
    finalists = candidates(log_density, paths, end)[:FINALISTS]
    gaussians = [Gaussian.from_root(loc, root) for level, loc, root in finalists if level > -math.inf]
    judged = [(elbo(log_density, gaussian), gaussian) for gaussian in gaussians]
    if max((level for level, _ in judged), default=-math.inf) == -math.inf:
        raise FloatingPointError(
            "pathfinder found no Gaussian with a finite ELBO: pass a start at which the log density is finite, and "
            "check that it is finite around it"
        )
    return max(judged, key=lambda pair: pair[0])[1]


def _starts(log_density: LogDensity, start: int | Tensor) -> Tensor:
    """A given point, and two points each from a wide and a narrow box: of 16 tries the first that has a density."""
    if isinstance(start, Tensor) and start.dim() == 1:
        given = start.detach()[None]
    elif isinstance(start, int) and start > 0:
        given = torch.zeros(0, start)
    else:
        raise ValueError(f"pathfinder expected the number of dimensions or a point of shape (D,), got {start!r}")
    width = given.new_tensor([2.0, 2.0, 0.2, 0.2])[:, None, None]
    tries = width * (2 * torch.rand(4, 16, given.shape[1]).to(given) - 1)
    finite = values(log_density, tries.flatten(0, 1)).isfinite().reshape(4, 16)
    return torch.cat([given, tries[range(4), finite.int().argmax(1)]])


def candidates(log_density: Counted, paths: list[Path], end: float) -> list[Candidate]:
    """The best Gaussian at each place on some paths that is looked at, best first.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``.
        paths: where L-BFGS went, see :func:`~pyroflows.infer.starts.lbfgs.climb`.
        end: when to stop, by the work that the log density has done, once one place has been looked at.

    Returns:
        The ELBO in nats, the mean and a root of the covariance of each.
    """
    places = [(rank, path, t) for path in paths for rank, t in enumerate(_spaced(len(path.points)))]
    noise = torch.randn(PAIRS, paths[0].points.shape[1]).to(paths[0].points)
    found: dict[int, Candidate] = {}

    def judge(chosen: Iterable[int]) -> None:
        for i in chosen:
            if not found or log_density.done < end:
                _, path, t = places[i]
                found[i] = _best_at(log_density, path.points[t], path.grads[t], torch.cat([noise, -noise]))

    judge(i for i, (rank, _, _) in enumerate(places) if rank % STRIDE == 0)
    best = max(found, key=lambda i: found[i][0])
    judge(i for i in range(max(best - STRIDE + 1, 0), min(best + STRIDE, len(places))) if i not in found)
    return sorted(found.values(), key=lambda candidate: -candidate[0])


def _spaced(length: int) -> list[int]:
    """Geometrically spaced places on a path, from its end back."""
    last = length - 1
    return sorted({round(last ** (i / (PLACES - 1))) for i in range(PLACES)} if last else {0}, reverse=True)


def _best_at(log_density: LogDensity, z: Tensor, grad: Tensor, noise: Tensor) -> Candidate:
    """ELBO, mean and root of the covariance of the best Gaussian at a place or its Newton step."""
    root = _dense_root(log_density, z) if len(z) <= DENSE else _diagonal_root(log_density, z)
    if not root.isfinite().all():
        return -math.inf, z, root
    tried = [(loc, width * root) for loc in (z, z + root @ (root.mT @ grad)) for width in WIDTHS]
    draws = torch.cat([loc + noise @ root.mT for loc, root in tried])
    means = values(log_density, draws).reshape(len(tried), len(noise)).mean(1)
    entropy = torch.linalg.slogdet(root).logabsdet.item()
    levels = [mean + entropy + len(z) * math.log(width) for mean, width in zip(means.tolist(), 2 * WIDTHS, strict=True)]
    best = max(range(len(tried)), key=levels.__getitem__)
    return levels[best], *tried[best]


def _dense_root(log_density: LogDensity, z: Tensor) -> Tensor:
    """A root of the inverse of the absolute Hessian; NaN where the score is not finite nearby."""
    step, changes = _differences(log_density, z, torch.eye(len(z)).to(z))
    hessian = changes / step[:, None]
    size = hessian.diagonal().abs().sqrt()
    size = torch.where(size > 0, size, 1.0)
    scaled = hessian / size / size[:, None]
    if not scaled.isfinite().all():
        return torch.full_like(scaled, math.nan)
    eigenvalues, vectors = torch.linalg.eigh((scaled + scaled.mT) / 2)
    return vectors * eigenvalues.abs().clamp_min(1e-8).rsqrt() / size[:, None]


def _diagonal_root(log_density: LogDensity, z: Tensor) -> Tensor:
    """The same from the diagonal of the Hessian alone.

    References:
        An estimator for the diagonal of a matrix. Bekas, Kokiopoulou, Saad, 2007.
        https://doi.org/10.1016/j.apnum.2007.01.003
    """
    signs = 2.0 * torch.randint(2, (DIRECTIONS, len(z))).to(z) - 1
    step, changes = _differences(log_density, z, signs)
    return ((signs * changes).mean(0) / step).abs().clamp_min(1e-8).rsqrt().diag()


def _differences(log_density: LogDensity, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Step sizes ``(D,)``, and by how much the score falls along each direction, in one batched call."""
    step = torch.finfo(z.dtype).eps ** (1 / 3) * z.abs().clamp_min(1.0)
    found, grads = score(log_density, torch.cat([z - step * directions, z + step * directions]))
    below, above = grads.chunk(2)
    return step, torch.where(found.isfinite().all(), (below - above) / 2, math.nan)
