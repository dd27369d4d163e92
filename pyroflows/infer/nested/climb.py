"""Uphill by BFGS, with something carried along, and the curvature at the top by differences of gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Most iterations, the gain in nats that ends them, and how far in spreads the first steps go.
ITERATIONS, GAIN, REACH = 200, 1e-4, 1.0
# Standard deviations between two gradients whose difference is a curvature.
APART = 0.2


class Level(NamedTuple):
    """What is found at a point: value ``()``, gradient ``(D,)``, and what searches nearby start from."""

    value: Tensor
    grad: Tensor
    carried: Any


Density = Callable[[Tensor, Any], Level]


def climb(density: Density, g: Tensor, carried: Any, metric: Tensor) -> tuple[Tensor, Level, Tensor]:
    """The mode of a log density ``(D,)``, what is found there, and an inverse curvature.

    Args:
        density: gives the level at a point, searched for from what another one has carried.
        g: where to start.
        carried: what the density starts its own search from there.
        metric: an inverse curvature, by which the first steps are measured.
    """
    at, spread = density(g, carried), metric.diagonal().sqrt()
    if not at.value.isfinite():
        raise ValueError("expected a finite Laplace marginal at the start, got one that is not: start elsewhere")
    reach, first = REACH, True
    for _ in range(ITERATIONS):
        step = metric @ at.grad
        slope = float(step @ at.grad)
        if not slope > GAIN:
            break
        length = min(1.0, reach / float((step / spread).norm()))
        new_g, new = _search(density, g, at, step, length, slope)
        if new is None:
            break
        moved, change, gain = new_g - g, at.grad - new.grad, float(new.value - at.value)
        metric, first = _updated(metric, moved, change, first)
        full = length == 1.0
        g, at, reach = new_g, new, 4 * reach
        if gain < GAIN and full:
            break
    return g, at, metric


def _search(
    density: Density, g: Tensor, at: Level, step: Tensor, length: float, slope: float
) -> tuple[Tensor, Level | None]:
    """A shorter and shorter step until it leads up; None where none does."""
    for _ in range(20):
        there = g + length * step
        found = density(there, at.carried)
        if found.value.isfinite() and found.grad.isfinite().all() and found.value > at.value + 1e-4 * length * slope:
            return there, found
        length *= 0.35
    return g, None


def _updated(metric: Tensor, moved: Tensor, change: Tensor, first: bool) -> tuple[Tensor, bool]:
    """The BFGS update of an inverse curvature; the first one also sets its scale."""
    curvature = moved @ change
    if curvature <= 1e-12 * change.square().sum():
        return metric, first
    if first:
        metric = metric * (curvature / (change @ metric @ change))
    left = torch.eye(len(moved)).to(metric) - torch.outer(moved, change) / curvature
    return left @ metric @ left.mT + torch.outer(moved, moved) / curvature, False


def root_at(density: Density, g: Tensor, carried: Any, metric: Tensor) -> Tensor:
    """The lower root of the covariance: inverse of the curvature, by differences of gradients along the metric's axes.

    Curvatures that are not positive, as of a density that is not at its mode, are taken from the metric.
    """
    root = torch.linalg.cholesky(positive(metric))
    bends = []
    for axis in root.mT:
        ahead, back = (density(g + sign * APART / 2 * axis, carried).grad for sign in (1.0, -1.0))
        bends.append((back - ahead) @ root / APART)
    bend = torch.stack(bends)
    values, vectors = torch.linalg.eigh((bend + bend.mT) / 2)
    values = torch.where(values.isfinite() & (values > 1e-3), values, 1.0)
    covariance = root @ (vectors / values) @ vectors.mT @ root.mT
    return torch.linalg.cholesky(positive(covariance))


def positive(matrix: Tensor) -> Tensor:
    """A symmetric matrix with a diagonal that makes it positive definite where rounding left it not."""
    matrix = (matrix + matrix.mT) / 2
    return matrix + 1e-10 * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
