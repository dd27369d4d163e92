"""The rational quadratic of the unit square, which a spline has in each of its bins."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...maths import clip

FACTOR = math.log(10.0)  # bounds the log of a knot's slope by the smaller secant beside it


class Curve(NamedTuple):
    """A curve from (0, 0) to (1, 1) with end slopes ``d0`` and ``d1``, at ``t = 1 - u``.

    Args:
        value: ``(t^2 + d0 t u) / bottom``.
        slope: ``top / bottom^2``.
        top: of the slope.
        bottom: ``1 + bend t u``.
        bend: ``d0 + d1 - 2``.
        tu: ``t u``.
    """

    value: Tensor
    slope: Tensor
    top: Tensor
    bottom: Tensor
    bend: Tensor
    tu: Tensor

    @classmethod
    def at(cls, t: Tensor, u: Tensor, d0: Tensor, d1: Tensor) -> "Curve":
        """The curve at points of [0, 1]; ``u`` is given, as ``1 - t`` would lose digits."""
        tu, bend = t * u, d0 + d1 - 2
        bottom = 1 + bend * tu
        top = d1 * t * t + 2 * tu + d0 * u * u
        return cls((t * t + d0 * tu) / bottom, top / (bottom * bottom), top, bottom, bend, tu)


def solve(below: Tensor, above: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """The point ``t, u`` where the curve has the value ``below = 1 - above``, solved from the nearer end."""
    near = below <= above
    root = _root(torch.where(near, below, above), torch.where(near, d0, d1), torch.where(near, d1, d0))
    return torch.where(near, root, 1 - root), torch.where(near, 1 - root, root)


def _root(v: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Solves ``value = v`` for ``v <= 1/2``, that is ``(1 - b) t^2 + b t - v = 0``.

    With ``b = d0 - v (d0 + d1 - 2)``. Of the two forms of the root the one without cancellation is taken;
    the discriminant is a sum of positive terms for ``b <= 1`` and at least 1 beyond.
    """
    v = clip(v, low=0.0)
    b = d0 - v * (d0 + d1 - 2)
    root = (b * b + 4 * (1 - b) * v).sqrt()
    safe = clip(b, high=0.0)
    return torch.where(b > 0, 2 * v / (clip(b, low=0.0) + root), (root - safe) / (2 * (1 - safe)))
