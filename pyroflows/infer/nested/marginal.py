"""The Laplace marginal: the density of the globals with each row's latents integrated out by a Gaussian."""

import math
from functools import partial

import torch
from torch import Tensor

from ...model.rows import Pass, RowJoint
from .climb import Level
from .rows import STEPS, curved, newton


def row_density(joint: RowJoint, g: Tensor, index: Tensor | None, z: Tensor) -> Tensor:
    """The log density of each row ``(R,)`` at globals ``(Dg,)`` and latents ``(R, d)``."""
    terms = joint(g[None], z[None], index)
    return (terms.prior + terms.rest)[0]


def modes(joint: RowJoint, g: Tensor, z: Tensor, steps: int = STEPS) -> Tensor:
    """The rows' modes at globals ``(Dg,)``, searched for from ``z`` by at most so many steps."""
    found = z.clone()
    for some in joint.passes:
        found = some.put(found, newton(partial(row_density, joint, g.detach(), some.index), some.of(z), steps))
    return found


def laplace_marginal(joint: RowJoint, g: Tensor, z: Tensor) -> Level:
    """``log p(g) + sum_j [log p(z_j, data | g) - 1/2 log |curvature / 2 pi|]`` at the modes ``z_j`` of the rows.

    Its gradient follows the modes as the globals move, by the implicit function theorem.

    Args:
        joint: the model.
        g: globals ``(Dg,)``.
        z: where the rows' modes are searched from, ``(R, d)``.

    References:
        Approximate Bayesian Inference for Latent Gaussian Models by Using Integrated Nested Laplace Approximations.
        Rue, Martino, Chopin, 2009. https://doi.org/10.1111/j.1467-9868.2008.00700.x
    """
    value, grad, found = g.new_zeros(()), torch.zeros_like(g), z.clone()
    for number, some in enumerate(joint.passes):
        part, slope, mode = _pass(joint, g, some, some.of(z), first=number == 0)
        value, grad, found = value + part, grad + slope, some.put(found, mode)
    return Level(value, grad, found)


def _pass(joint: RowJoint, g: Tensor, some: Pass, z: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradient from some rows, with the globals' own terms the first time, and the rows' modes."""
    z = newton(partial(row_density, joint, g.detach(), some.index), z).requires_grad_()
    outer: list[Tensor] = []
    with torch.enable_grad():
        at = g.detach().requires_grad_()

        def rows(z: Tensor) -> Tensor:
            terms = joint(at[None], z[None], some.index)
            outer.append(terms.outer[0])
            return (terms.prior + terms.rest)[0]

        value, slope, bend = curved(rows, z, graph=True)
        constant = 0.5 * math.log(2 * math.pi) * z.shape[-1]
        total = ((value - 0.5 * log_size(-bend) + constant) * some.weight).sum() + (outer[0] if first else 0.0)
        grad, by_z = torch.autograd.grad(total, (at, z), retain_graph=True, materialize_grads=True)
        # A mode moves by the inverse of minus its curvature times the change of its slope; of what counts here, only
        # the size of the curvature changes with it.
        by_z = by_z - (slope * _column(some.weight)).detach()
        pull = -torch.linalg.solve(bend.detach(), by_z[..., None])[..., 0]
        (moved,) = torch.autograd.grad((slope * pull).sum(), at, materialize_grads=True)
    return total.detach(), grad + moved, z.detach()


def _column(weight: Tensor | float) -> Tensor | float:
    return weight[:, None] if isinstance(weight, Tensor) else weight


def log_size(precision: Tensor) -> Tensor:
    """``log |det|`` of each matrix ``(..., d, d)``."""
    if precision.shape[-1] == 1:
        return precision[..., 0, 0].abs().log()
    return torch.linalg.slogdet(precision).logabsdet
