"""Monotone rational quadratic splines that survive single precision."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax

from ..numeric import soft_clip
from .base import Bijector


@dataclass(frozen=True)
class RQSpline(Bijector):
    """A monotone rational quadratic spline on ``[-bound, bound]``, the identity outside.

    In the bin ``[x0, x1] -> [y0, y1]`` with secant slope ``s`` and knot slopes ``s d0`` and ``s d1``, at the
    fraction ``t = (x - x0) / (x1 - x0)``::

        y = y0 + (y1 - y0) * (t^2 + d0 t (1 - t)) / (1 + (d0 + d1 - 2) t (1 - t))

    Both directions are closed form and cost the same. Three choices keep float32 exact to rounding. Bin
    sizes are at least ``min_bin`` of the whole, and a knot slope follows the smaller of its two secants
    times a bounded factor, so no slope is extreme. The quadratic is solved from the nearer end of the bin,
    where its discriminant cannot vanish. Inputs are clamped before the maths, so the branch that is
    thrown away stays finite, and so does its gradient.

    Args:
        bins: number of bins, at least 2.
        bound: half width of the interval that is bent.
        min_bin: smallest width and height of a bin, as a fraction of the mean one.

    Raises:
        ValueError: if an argument is outside its range.

    References:
        Neural Spline Flows. Durkan, Bekasov, Murray, Papamakarios, 2019. https://arxiv.org/abs/1906.04032
    """

    bins: int = 8
    bound: float = 4.0
    min_bin: float = 0.15

    def __post_init__(self) -> None:
        """Checks the constants."""
        if self.bins < 2 or self.bound <= 0 or not 0 < self.min_bin < 1:
            raise ValueError(f"expected bins >= 2, bound > 0 and 0 < min_bin < 1, got {self}")

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Widths and heights of the bins, slopes at the inner knots."""
        return (self.bins,), (self.bins,), (self.bins - 1,)

    def forward(self, x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        inside = x.clamp(-self.bound, self.bound)
        x0, x1, y0, y1, d0, d1 = self._bin(inside, widths, heights, slopes, inverse=False)
        w, h = x1 - x0, y1 - y0
        ratio, log_slope = _ratio((inside - x0) / w, (x1 - inside) / w, d0, d1)
        return self._join(x, inside, y0 + h * ratio, log_slope + (h / w).log())

    def inverse(self, y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        inside = y.clamp(-self.bound, self.bound)
        x0, x1, y0, y1, d0, d1 = self._bin(inside, widths, heights, slopes, inverse=True)
        w, h = x1 - x0, y1 - y0
        below, above = (inside - y0) / h, (y1 - inside) / h
        near = below <= above
        root = _root(torch.where(near, below, above), torch.where(near, d0, d1), torch.where(near, d1, d0))
        t, u = torch.where(near, root, 1 - root), torch.where(near, 1 - root, root)
        _, log_slope = _ratio(t, u, d0, d1)
        return self._join(y, inside, torch.where(near, x0 + w * root, x1 - w * root), -log_slope - (h / w).log())

    def _join(self, z: Tensor, inside: Tensor, value: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the spline where ``z`` was not clamped and the identity elsewhere."""
        tail = z != inside
        return torch.where(tail, z, value), torch.where(tail, torch.zeros_like(ladj), ladj)

    def _bin(self, z: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        """The ends of the bin that holds ``z`` and its relative end slopes: ``x0, x1, y0, y1, d0, d1``."""
        sizes = [self._sizes(raw) for raw in (widths, heights)]
        knots = [pad(size.cumsum(-1), (1, 0)) - self.bound for size in sizes]
        index = (z.unsqueeze(-1) >= knots[inverse][..., 1:-1]).sum(-1, keepdim=True)
        beside = torch.cat([index - 1, index, index + 1], dim=-1)
        (x0, x1), (y0, y1) = (_take(knot, beside[..., 1:]) for knot in knots)
        (wl, w, wr), (hl, h, hr) = (_take(size, beside) for size in sizes)
        left, right = _take(soft_clip(slopes, math.log(10.0)).exp(), beside[..., :2])
        # A knot's slope is its factor times the smaller secant, and 1 at the ends; both relative to this bin's.
        secant, first, last = h / w, beside[..., 1] == 0, beside[..., 1] == self.bins - 1
        d0 = torch.where(first, 1 / secant, left * (hl / wl / secant).clamp(max=1))
        d1 = torch.where(last, 1 / secant, right * (hr / wr / secant).clamp(max=1))
        return x0, x1, y0, y1, d0, d1

    def _sizes(self, raw: Tensor) -> Tensor:
        """Turns ``bins`` free numbers into positive ones that sum to ``2 bound``."""
        return 2 * self.bound * (self.min_bin / self.bins + (1 - self.min_bin) * softmax(raw, dim=-1))


def _take(table: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """Entries of ``table`` ``(..., K)`` at each of ``index`` ``(..., n)``, clamped to the table; batches broadcast."""
    batch = torch.broadcast_shapes(table.shape[:-1], index.shape[:-1])
    index = index.clamp(0, table.shape[-1] - 1).expand(*batch, -1)
    return table.expand(*batch, -1).gather(-1, index).unbind(-1)


def _ratio(t: Tensor, u: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """The rational quadratic of the unit square at ``t = 1 - u``, and the log of its slope."""
    t, u = t.clamp(0, 1), u.clamp(0, 1)
    tu = t * u
    bottom = 1 + (d0 + d1 - 2) * tu
    slope = (d1 * t * t + 2 * tu + d0 * u * u) / (bottom * bottom)
    return (t * t + d0 * tu) / bottom, slope.log()


def _root(v: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Solves ``_ratio(t) = v`` for ``v <= 1/2``, that is ``(1 - b) t^2 + b t - v = 0``.

    With ``b = d0 - v (d0 + d1 - 2)``. Of the two forms of the root the one without cancellation is taken;
    the discriminant is a sum of positive terms for ``b <= 1`` and at least 1 beyond.
    """
    v = v.clamp(min=0)
    b = d0 - v * (d0 + d1 - 2)
    root = (b * b + 4 * (1 - b) * v).sqrt()
    positive = b > 0
    safe = b.clamp(max=0)
    return torch.where(positive, 2 * v / (b.clamp(min=0) + root), (root - safe) / (2 * (1 - safe)))
