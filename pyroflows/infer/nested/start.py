"""Where to start with globals and rows: the mode of the marginal of the globals, and its curvature there."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...model.rows import RowJoint
from ..starts.gaussian import Gaussian
from .climb import GAIN, Density, Level, climb, root_at
from .marginal import laplace_marginal
from .quadrature import Rule, quadrature_marginal
from .scales import scales_start

# Where a run sees some rows only, so many show where to start, and so many steps on all of them follow.
ROUGH, REFINEMENTS = 4096, 6
# How far, in standard deviations, the mode of the globals is to move for rows to be integrated by more than one node.
MOVED = 0.02
# Rows whose integral is that of a Gaussian to so many nats, over all of them, are Gaussian.
GAUSSIAN = 0.01


class Start(NamedTuple):
    """A nested Laplace approximation.

    Args:
        outer: the globals.
        z: the rows' modes at their mean, ``(R, d)``.
        value: the marginal there, in nats.
        rule: by which rows were integrated, None for a Gaussian at their modes.
    """

    outer: Gaussian
    z: Tensor
    value: float
    rule: Rule | None = None


@torch.no_grad()
def nested_laplace(joint: RowJoint, spread: Tensor) -> Start:
    """Climbs the Laplace marginal by BFGS, with the rows' modes carried along, and takes differences of gradients.

    It is never the joint mode of all latents, which for centred hierarchies is at a scale of zero. Where globals are a
    hierarchy themselves, it is the mode of their scales. Rows of up to three latents that are not Gaussian are then
    integrated out by quadrature.

    Args:
        joint: the model.
        spread: rough scales of the globals, in which the first steps are made, ``(Dg,)``.
    """
    g, z = joint.start
    if len(z) < joint.structure.rows:
        z = z.new_zeros(joint.structure.rows, z.shape[-1]) + z.mean(0)
    some = joint.some(ROUGH)
    density = partial(laplace_marginal, some)
    g, at, metric = climb(density, g, z, spread.square().diag())
    if joint.structure.outer.relative is not None:
        return Start(*scales_start(joint, g, at.carried, metric))
    root = root_at(density, g, at.carried, metric)
    if len(some.passes) < len(joint.passes):
        g, at = _refined(partial(laplace_marginal, joint), g, at.carried, root @ root.mT)
    return _by_nodes(joint, some, Start(Gaussian(g, root), at.carried, float(at.value)))


def _by_nodes(joint: RowJoint, some: RowJoint, start: Start) -> Start:
    """The start by quadrature of rows, where that moves the mode: rows of many latents stay as they are."""
    rule = Rule.of(joint.structure.width, start.z, less=1)
    if rule is None:
        return start
    g, root, z = start.outer.loc, start.outer.scale_tril, start.z
    density = partial(quadrature_marginal, rule, joint)
    at = density(g, z)
    sound = at.value.isfinite() and at.grad.isfinite().all()  # not so where the model has no values at some node
    if not sound or abs(float(at.value) - start.value) < GAUSSIAN:
        return start
    if (root.mT @ at.grad).norm() > MOVED:
        g, at = _refined(density, g, z, root @ root.mT, at)
        root = root_at(partial(quadrature_marginal, rule, some), g, at.carried, root @ root.mT)
        g, at = _refined(density, g, at.carried, root @ root.mT, at)
    return Start(Gaussian(g, root), at.carried, float(at.value), rule)


def _refined(
    density: Density, g: Tensor, z: Tensor, covariance: Tensor, at: Level | None = None
) -> tuple[Tensor, Level]:
    """Steps uphill from about the mode, by a covariance that is about that of the density."""
    at = at or density(g, z)
    for _ in range(REFINEMENTS):
        step = covariance @ at.grad
        if step @ at.grad < GAIN:
            break
        there = density(g + step, at.carried)
        if not there.value > at.value:
            break
        g, at = g + step, there
    return g, at
