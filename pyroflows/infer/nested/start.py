"""Where to start with globals and rows: the mode of the Laplace marginal, and its curvature there."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...model.rows import RowJoint
from ..starts.gaussian import Gaussian
from .marginal import Level, laplace_marginal

# Most iterations, the gain in nats that ends them, and how far in spreads the first steps go.
ITERATIONS, GAIN, REACH = 200, 1e-4, 1.0
# Where a run sees some rows only, so many show where to start, and so many steps on all of them follow.
ROUGH, REFINEMENTS = 4096, 6
# Standard deviations between two gradients whose difference is a curvature.
APART = 0.2


class Start(NamedTuple):
    """A nested Laplace approximation.

    Args:
        outer: the globals.
        z: the rows' modes at their mean, ``(R, d)``.
        value: the Laplace marginal there, in nats.
    """

    outer: Gaussian
    z: Tensor
    value: float


@torch.no_grad()
def nested_laplace(joint: RowJoint, spread: Tensor) -> Start:
    """Climbs the Laplace marginal by BFGS, with the rows' modes carried along, and takes differences of gradients.

    It is never the joint mode of all latents, which for centred hierarchies is at a scale of zero.

    Args:
        joint: the model.
        spread: rough scales of the globals, in which the first steps are made, ``(Dg,)``.
    """
    g, z = joint.start
    if len(z) < joint.structure.rows:
        z = z.new_zeros(joint.structure.rows, z.shape[-1]) + z.mean(0)
    some = joint.some(ROUGH)
    g, at, metric = _climb(some, g, z, spread)
    root = _root(some, g, at, metric)
    if len(some.passes) < len(joint.passes):
        g, at = _refined(joint, g, at.z, root @ root.mT)
    return Start(Gaussian(g, root), at.z, float(at.value))


def _climb(joint: RowJoint, g: Tensor, z: Tensor, spread: Tensor) -> tuple[Tensor, Level, Tensor]:
    """The mode of the marginal, what is found there, and an inverse curvature."""
    at, metric = laplace_marginal(joint, g, z), spread.square().diag()
    if not at.value.isfinite():
        raise ValueError("expected a finite Laplace marginal at the start, got one that is not: start elsewhere")
    reach, first = REACH, True
    for _ in range(ITERATIONS):
        step = metric @ at.grad
        slope = float(step @ at.grad)
        if not slope > GAIN:
            break
        length = min(1.0, reach / float((step / spread).norm()))
        new_g, new = _search(joint, g, at, step, length, slope)
        if new is None:
            break
        moved, change, gain = new_g - g, at.grad - new.grad, float(new.value - at.value)
        metric, first = _updated(metric, moved, change, first)
        full = length == 1.0
        g, at, reach = new_g, new, 4 * reach
        if gain < GAIN and full:
            break
    return g, at, metric


def _refined(joint: RowJoint, g: Tensor, z: Tensor, covariance: Tensor) -> tuple[Tensor, Level]:
    """Steps on all rows from the mode of some, whose curvature is about that of all."""
    at = laplace_marginal(joint, g, z)
    for _ in range(REFINEMENTS):
        step = covariance @ at.grad
        if step @ at.grad < GAIN:
            break
        there = laplace_marginal(joint, g + step, at.z)
        if not there.value > at.value:
            break
        g, at = g + step, there
    return g, at


def _search(
    joint: RowJoint, g: Tensor, at: Level, step: Tensor, length: float, slope: float
) -> tuple[Tensor, Level | None]:
    """A shorter and shorter step until it leads up; None where none does."""
    for _ in range(20):
        there = g + length * step
        found = laplace_marginal(joint, there, at.z)
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


def _root(joint: RowJoint, g: Tensor, at: Level, metric: Tensor) -> Tensor:
    """The lower root of the covariance: inverse of the curvature, by differences of gradients along the metric's axes.

    Curvatures that are not positive, as of a density that is not at its mode, are taken from the metric.
    """
    root = torch.linalg.cholesky(_positive(metric))
    bends = []
    for axis in root.mT:
        ahead, back = (laplace_marginal(joint, g + sign * APART / 2 * axis, at.z).grad for sign in (1.0, -1.0))
        bends.append((back - ahead) @ root / APART)
    bend = torch.stack(bends)
    values, vectors = torch.linalg.eigh((bend + bend.mT) / 2)
    values = torch.where(values.isfinite() & (values > 1e-3), values, 1.0)
    covariance = root @ (vectors / values) @ vectors.mT @ root.mT
    return torch.linalg.cholesky(_positive(covariance))


def _positive(matrix: Tensor) -> Tensor:
    """A symmetric matrix with a diagonal that makes it positive definite where rounding left it not."""
    matrix = (matrix + matrix.mT) / 2
    return matrix + 1e-10 * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
