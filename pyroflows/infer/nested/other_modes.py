"""Modes of rows beside those that were found, which no weights of draws around these tell of."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ...model.rows import RowJoint
from ...seeds import seed_of, seeded
from .marginal import log_size, row_density
from .rows import Curved, curved, newton

# Random starts for each row, how far they spread in prior or, without one, posterior sds, and how far apart in
# posterior sds two modes are two.
STARTS, WIDE, NARROW, APART = 4, 2.0, 10.0, 3.0
# Curvatures that differ by less, relative to the largest, are those of a parabola.
STRAIGHT = 1e-6


@torch.no_grad()
def other_modes(joint: RowJoint, g: Tensor, z: Tensor) -> Tensor:
    """The share of each row's mass, by Laplace's approximation, at the largest other mode that was found, ``(R,)``.

    Each row is climbed from its prior's mean, from the other side of it, and from draws around it. A row whose log
    density is a parabola has no other mode.

    Args:
        joint: the model.
        g: globals, ``(Dg,)``.
        z: the rows' modes there, ``(R, d)``.
    """
    found = z.new_zeros(len(z))
    with seeded(seed_of("other modes of rows"), z.device):
        for some in joint.passes:
            density, here = partial(row_density, joint, g, some.index), some.of(z)
            at = curved(density, here)
            width = at.bend.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-12).rsqrt()
            away = curved(density, here + width).bend
            if torch.allclose(away, at.bend, rtol=STRAIGHT, atol=STRAIGHT * float(at.bend.abs().max())):
                continue
            share = torch.zeros_like(at.value)
            for start in _starts(joint, g, some.index, here, width):
                there = newton(density, start)
                apart = ((there - here) / width).abs().amax(-1) > APART
                share = share.maximum(torch.where(apart, _share(curved(density, there), at), 0.0))
            some.put(found, share) if some.index is not None else found.copy_(share)
    return found


def _starts(joint: RowJoint, g: Tensor, index: Tensor | None, here: Tensor, width: Tensor) -> Iterator[Tensor]:
    """Points from which rows are climbed, each ``(R, d)``."""
    pull, precision = (part[0] for part in joint.prior_parts(g[None], index))
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    known = diagonal > 0
    ridge = torch.diag_embed(torch.where(known, 0.0, 1.0))
    mean = torch.where(known, torch.linalg.solve(precision + ridge, pull[..., None])[..., 0], here)
    spread = torch.where(known, WIDE * diagonal.clamp_min(1e-12).rsqrt(), NARROW * width)
    yield mean
    yield 2 * mean - here
    for _ in range(STARTS):
        yield mean + spread * torch.randn_like(mean)


def _share(other: Curved, own: Curved) -> Tensor:
    """The mass at one point of that at both, ``(R,)``; nothing where it is no mode."""
    levels = [at.value - 0.5 * log_size(-at.bend) for at in (other, own)]
    peak = torch.linalg.eigvalsh(-other.bend).amin(-1) > 0
    share = torch.sigmoid(levels[0] - levels[1])
    return torch.where(peak & share.isfinite(), share, 0.0)
