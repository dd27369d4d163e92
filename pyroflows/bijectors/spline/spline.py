"""Monotone rational quadratic splines that survive single precision."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...autograd import is_compiled_backward, is_plain_backward
from ...maths import clip, soft_clip
from ..base import Bijector
from .curve import FACTOR, Curve, solve
from .gradient import written


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
        return self._map(x, False, widths, heights, slopes)

    def inverse(self, y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return self._map(y, True, widths, heights, slopes)

    def _map(self, z: Tensor, inverse: bool, *raw: Tensor) -> tuple[Tensor, Tensor]:
        # A network under autocast gives fewer digits than knots need.
        raw = [t.to(torch.promote_types(t.dtype, z.dtype)) for t in raw]
        if is_plain_backward(z, *raw) or is_compiled_backward():
            return written(self, inverse, z, *raw)
        return self.find(inverse, z, *raw)[:2]

    def find(self, inverse: bool, z: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        """The value, the ladj, and what :class:`~.spline_gradient.Found` holds besides."""
        inside = clip(z, -self.bound, self.bound)
        shares, table, knots = self._tables(torch.stack(torch.broadcast_tensors(widths, heights), dim=-2))
        index = (inside.unsqueeze(-1) >= knots[..., int(inverse), 1:-1]).sum(-1, keepdim=True)
        beside = index + torch.arange(-1, 2, device=z.device)
        sizes = _take(table, beside.unsqueeze(-2))
        x0, x1, y0, y1 = _take(knots, beside[..., 1:].unsqueeze(-2)).flatten(-2).unbind(-1)
        factors = _take(slopes, beside[..., :2])
        w, h = x1 - x0, y1 - y0  # not of sizes, that t + u is 1 to rounding
        d0, d1 = self._ends(sizes, factors, index.squeeze(-1))
        if inverse:
            t, u = solve((inside - y0) / h, (y1 - inside) / h, d0, d1)
        else:
            t, u = (clip(part / w, 0.0, 1.0) for part in (inside - x0, x1 - inside))
        curve = Curve.at(t, u, d0, d1)
        ladj = (curve.slope * h / w).log()
        # From the nearer end, and the identity where the input was clamped.
        value = torch.where(t <= u, x0 + w * t, x1 - w * u) if inverse else y0 + h * curve.value
        tail, ladj = z != inside, -ladj if inverse else ladj
        value, ladj = torch.where(tail, z, value), torch.where(tail, torch.zeros_like(ladj), ladj)
        return value, ladj, tail, index, shares, sizes, factors, d0, d1, t, u, *curve

    def _tables(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shares of the bins, their sizes, which sum to ``2 bound``, and the knots, one more, from free numbers."""
        shares = _softmax(raw)
        sizes = torch.add(2 * self.bound * self.min_bin / self.bins, shares, alpha=self.spread)
        return shares, sizes, _running(sizes, -self.bound)

    def _ends(self, sizes: Tensor, factors: Tensor, index: Tensor) -> list[Tensor]:
        """Slopes at both ends of the bin, relative to its secant.

        A knot's slope is its factor times the smaller of the secants beside it, and 1 at the ends of the interval.
        """
        before, secant, after = (sizes[..., 1, :] / sizes[..., 0, :]).unbind(-1)
        left, right = soft_clip(factors, FACTOR).exp().unbind(-1)
        outer = 1 / secant
        d0 = torch.where(index == 0, outer, left * clip(before * outer, high=1.0))
        d1 = torch.where(index == self.bins - 1, outer, right * clip(after * outer, high=1.0))
        return [d0, d1]

    @property
    def spread(self) -> float:
        """What the shares of the bins are spread over; the rest of the interval is the bins' least sizes."""
        return 2 * self.bound * (1 - self.min_bin)


def _softmax(raw: Tensor) -> Tensor:
    """Over the last dimension, of a handful: torch's own takes five times as long."""
    grown = (raw - raw.detach().amax(-1, keepdim=True)).exp()
    return grown / grown.sum(-1, keepdim=True)


def _is_differentiated() -> bool:
    """Whether torch.compile makes a gradient of what it sees, as where none is written."""
    return torch.compiler.is_compiling() and torch.is_grad_enabled()


def _running(sizes: Tensor, start: float) -> Tensor:
    """Where bins of these sizes begin and end, ``(..., K + 1)``."""
    if _is_differentiated():  # Inductor of torch 2.13 gets gradients of running sums wrong
        bins = torch.arange(sizes.shape[-1], device=sizes.device)
        before = bins < torch.arange(sizes.shape[-1] + 1, device=sizes.device).unsqueeze(-1)
        return start + torch.where(before, sizes.unsqueeze(-2), 0.0).sum(-1)
    return pad(sizes, (1, 0), value=start).cumsum(-1)


def _take(table: Tensor, index: Tensor) -> Tensor:
    """Entries of ``table`` ``(..., K)`` at each of ``index`` ``(..., n)``, clamped to the table; batches broadcast."""
    batch = torch.broadcast_shapes(table.shape[:-1], index.shape[:-1])
    index = index.clamp(0, table.shape[-1] - 1).expand(*batch, -1)
    if _is_differentiated():  # Inductor of torch 2.13 may read a gather's gradient before it is added up
        here = index.unsqueeze(-1) == torch.arange(table.shape[-1], device=table.device)
        return torch.where(here, table.unsqueeze(-2), 0.0).sum(-1)
    return table.expand(*batch, -1).gather(-1, index)
