"""Where to start with globals and rows: the mode of the Laplace marginal, and its curvature there."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...model.rows import RowJoint
from ..starts.gaussian import Gaussian
from .climb import GAIN, Level, climb, root_at
from .marginal import laplace_marginal
from .scales import scales_start

# Where a run sees some rows only, so many show where to start, and so many steps on all of them follow.
ROUGH, REFINEMENTS = 4096, 6


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

    It is never the joint mode of all latents, which for centred hierarchies is at a scale of zero. Where globals are a
    hierarchy themselves, it is the mode of their scales.

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
        g, at = _refined(joint, g, at.carried, root @ root.mT)
    return Start(Gaussian(g, root), at.carried, float(at.value))


def _refined(joint: RowJoint, g: Tensor, z: Tensor, covariance: Tensor) -> tuple[Tensor, Level]:
    """Steps on all rows from the mode of some, whose curvature is about that of all."""
    at = laplace_marginal(joint, g, z)
    for _ in range(REFINEMENTS):
        step = covariance @ at.grad
        if step @ at.grad < GAIN:
            break
        there = laplace_marginal(joint, g + step, at.carried)
        if not there.value > at.value:
            break
        g, at = g + step, there
    return g, at
