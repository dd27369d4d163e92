"""A few hyperparameters and a latent field that depends on itself: a nested Laplace approximation of both."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...transforms.nested_gaussian import NestedGaussian
from .climb import Level, climb, positive, root_at

# Most steps to the field's mode, the gain in nats that ends them, and how often a step is cut.
STEPS, GAIN, CUTS = 60, 1e-7, 12
# A step that gains less than this share of what it should takes a new curvature.
STALE = 0.5
# Differences: of the field's gradient, and of hyperparameters, in rough spreads.
NEAR, APART = 1e-4, 1e-2
# How far about a point curvatures are looked at, in rough spreads, and what is zero, relative to those of a dimension.
NUDGE, ZERO = 0.1, 1e-7

Density = Callable[[Tensor], Tensor]


class Peak(NamedTuple):
    """The field's mode at some hyperparameters.

    Args:
        z: all latents, ``(D,)``.
        value: the log density, ``()``.
        slope: its gradient, ``(D,)``.
        root: the lower root of minus the field's curvature.
    """

    z: Tensor
    value: Tensor
    slope: Tensor
    root: Tensor


class Columns(NamedTuple):
    """Columns of a symmetric matrix in groups of which no two have a number in the same row.

    As of a series whose steps depend on the one before: three gradients then give all its curvatures.

    Args:
        group: of each column, ``(T,)``.
        filled: which numbers may differ from zero, ``(T, T)``; None for all.
        count: how many groups there are.

    References:
        What Color Is Your Jacobian? Gebremedhin, Manne, Pothen, 2005. https://doi.org/10.1137/S0036144504444711
    """

    group: Tensor
    filled: Tensor | None
    count: int

    @classmethod
    def dense(cls, size: int, device: torch.device) -> "Columns":
        """Each column by itself."""
        return cls(torch.arange(size, device=device), None, size)

    @classmethod
    def of(cls, matrix: Tensor) -> "Columns":
        """The groups of a matrix ``(T, T)`` of sizes, each column in the first one where it fits."""
        size = len(matrix)
        unit = matrix.diagonal().abs().clamp_min(torch.finfo(matrix.dtype).tiny).sqrt()
        filled = matrix > ZERO * unit[:, None] * unit
        filled |= filled.mT | torch.eye(size, dtype=torch.bool, device=matrix.device)
        near = (filled.float() @ filled.float() > 0).cpu().numpy()
        group = np.full(size, -1)
        for column in range(size):
            taken = set(group[near[column]].tolist())
            group[column] = next(k for k in range(size) if k not in taken)
        count = int(group.max()) + 1
        if 2 * count > size:
            return cls.dense(size, matrix.device)
        return cls(torch.as_tensor(group, device=matrix.device), filled, count)

    def apart(self, sums: Tensor) -> Tensor:
        """The columns ``(T, T)``, given sums over those of each group, ``(count, T)``."""
        columns = sums[self.group].mT
        return columns if self.filled is None else columns * self.filled


class Field:
    """A log density of hyperparameters and a field, with the field integrated out by a Gaussian at its mode.

    Args:
        density: maps ``(B, D)`` to ``(B,)``, differentiable, in double precision.
        few: the places of the hyperparameters, ``(G,)``.
        size: ``D``.
        spread: rough scales of all latents, ``(D,)``.
    """

    def __init__(self, density: Density, few: Tensor, size: int, spread: Tensor) -> None:
        self.density, self.few, self.spread = density, few, spread
        self.many = torch.tensor([k for k in range(size) if k not in set(few.tolist())], device=few.device)
        self._columns = Columns.dense(len(self.many), few.device)

    def __call__(self, g: Tensor, carried: Peak) -> Level:
        """The Laplace marginal at hyperparameters ``(G,)``, its gradient, and the peak there."""
        peak = self.peak(g, carried)
        value = peak.value - _log_size(peak.root)
        by = APART * self.spread[self.few]
        # Where the field's mode goes as a hyperparameter moves, to first order; there its curvature is another.
        ends = peak.z.repeat(len(g), 1).index_put((torch.arange(len(g)), self.few), g + by)
        pull = self.slopes(ends)[:, self.many] - peak.slope[self.many]
        ends[:, self.many] += torch.cholesky_solve(pull.mT, peak.root).mT
        sizes = torch.stack([_log_size(self._root(end)) for end in ends])
        return Level(value, peak.slope[self.few] - (sizes - _log_size(peak.root)) / by, peak)

    def slopes(self, z: Tensor) -> Tensor:
        """Gradients at vectors ``(B, D)``."""
        return self._levels(z)[1]

    def _levels(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            value = self.density(at)
            (slope,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), slope

    def learn_columns(self, z: Tensor) -> None:
        """Finds out which of the field's curvatures are zero wherever it is, off ``(D,)`` and two points about it."""
        self._columns = Columns.dense(len(self.many), z.device)
        points = (z + NUDGE * sign * self.spread * torch.arange(1.0, len(z) + 1).to(z).sin() for sign in (1.0, -1.0))
        self._columns = Columns.of(sum(self._bend(point).abs() for point in points))

    def _bend(self, z: Tensor) -> Tensor:
        """Minus the field's curvature at ``(D,)``, by differences of gradients."""
        by, columns = NEAR * self.spread[self.many], self._columns
        away = torch.zeros(columns.count, len(z), dtype=z.dtype, device=z.device)
        away[columns.group, self.many] = by
        ends = self.slopes(torch.cat([z - away, z + away]))[:, self.many]
        bend = columns.apart(ends[: columns.count] - ends[columns.count :]) / (2 * by)
        return (bend + bend.mT) / 2

    def _root(self, z: Tensor) -> Tensor:
        """The lower root of minus the field's curvature at ``(D,)``."""
        bend = self._bend(z)
        root, failed = torch.linalg.cholesky_ex(bend)
        if not failed:
            return root
        values, vectors = torch.linalg.eigh(bend)
        size = values.abs().clamp_min(1e-6 * float(values.abs().max()))
        return torch.linalg.cholesky(positive((vectors * size) @ vectors.mT))

    def peak(self, g: Tensor, carried: Peak) -> Peak:
        """The field's mode at hyperparameters ``(G,)``, uphill from another one by steps of its curvature."""
        z, root = carried.z.index_copy(0, self.few, g), carried.root
        (value,), (slope,) = self._levels(z[None])
        fresh = False
        for _ in range(STEPS):
            step = torch.cholesky_solve(slope[self.many, None], root)[:, 0]
            gain = 0.5 * float(step @ slope[self.many])
            if fresh and gain < GAIN:
                break
            z, found, slope = self._search(z, value, slope, step)
            fresh = float(found - value) < STALE * gain or gain < GAIN
            root, value = self._root(z) if fresh else root, found
        return Peak(z, value, slope, root if fresh else self._root(z))

    def _search(self, z: Tensor, value: Tensor, slope: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A shorter and shorter step until it leads up."""
        length = 1.0
        for _ in range(CUTS):
            there = z.index_add(0, self.many, length * step)
            (found,), (new,) = self._levels(there[None])
            if found >= value:
                return there, found, new
            length *= 0.4
        return z, value, slope


@torch.no_grad()
def nested_field(density: Density, few: Tensor, start: Tensor, spread: Tensor) -> tuple[NestedGaussian, float]:
    """The map from standard normals to hyperparameters and field, and the Laplace marginal at its mode.

    Args:
        density: maps ``(B, D)`` to ``(B,)``, differentiable, in double precision.
        few: the places of the hyperparameters, ``(G,)``.
        start: where to climb from, ``(D,)``.
        spread: rough scales of all latents, ``(D,)``.
    """
    field = Field(density, few, len(start), spread)
    field.learn_columns(start)
    first = Peak(start, start.new_zeros(()), start, torch.diag_embed(1 / spread[field.many]))
    g, at, metric = climb(field, start[few], field.peak(start[few], first), spread[few].square().diag())
    root = root_at(field, g, at.carried, metric)
    made = NestedGaussian(len(start), few).to(start)
    made.loc, made.root, made.centre = g, root, at.carried.z[field.many]
    made.centre_root = _covariance_root(at.carried.root)
    _expand(made, field, at.carried)
    return made, float(at.value)


def _expand(made: NestedGaussian, field: Field, middle: Peak) -> None:
    """Fills in how the field's Gaussian moves with the hyperparameters, to second order, by differences."""
    count = len(made.loc)
    unit = torch.eye(count).to(made.loc)

    def at(*steps: Tensor) -> list[Tensor]:
        peak = field.peak(made.loc + made.root @ sum(steps), middle)
        turned = torch.linalg.solve_triangular(made.centre_root, _covariance_root(peak.root), upper=False)
        return [peak.z[field.many] - made.centre, turned.diagonal().log(), turned.tril(-1)]

    ahead, back = [at(one) for one in unit], [at(-one) for one in unit]
    parts = made.slopes, made.sizes, made.shears
    for k in range(count):
        for part, plus, minus in zip(parts, ahead[k], back[k], strict=True):
            part[k] = (plus - minus) / 2
    for place, (i, j) in enumerate(zip(*(index.tolist() for index in made.pairs), strict=True)):
        both = back[i] if i == j else at(unit[i], unit[j])
        for part, plus, other, corner in zip(parts, ahead[i], ahead[j], both, strict=True):
            part[count + place] = plus + corner if i == j else corner - plus - other


def _covariance_root(root: Tensor) -> Tensor:
    """The lower root of the covariance, given that of the precision."""
    return torch.linalg.cholesky(positive(torch.cholesky_inverse(root)))


def _log_size(root: Tensor) -> Tensor:
    return root.diagonal().log().sum()
