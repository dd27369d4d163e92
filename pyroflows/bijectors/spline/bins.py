"""What all splines share: bins from free numbers, the search for one, and what happens outside."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import pad

from ...maths import clip, soft_clip
from ..base import Bijector
from .curve import FACTOR

TAILS = ("identity", "linear", "circular")


@dataclass(frozen=True)
class Spline(Bijector):
    """A monotone spline on ``[-bound, bound]``: in each bin a curve from corner to corner, of a family's own.

    Args:
        bins: number of bins, at least 2.
        bound: half width of the interval that is bent; :class:`~pyroflows.bijectors.Stretched` learns it.
        min_bin: smallest width and height of a bin, as a fraction of the mean one.
        tails: what happens outside: ``"identity"`` leaves all as it is; ``"linear"`` goes on in straight lines whose
            slopes are learnt; ``"circular"`` joins the ends of the interval, which then is all that is mapped.

    Raises:
        ValueError: if an argument is outside its range.
    """

    bins: int = 8
    bound: float = 4.0
    min_bin: float = 0.15
    tails: str = "identity"

    limit = FACTOR  # of the log of a knot's slope by the smaller secant beside it

    def __post_init__(self) -> None:
        """Checks the constants."""
        if self.bins < 2 or self.bound <= 0 or not 0 < self.min_bin < 1 or self.tails not in TAILS:
            raise ValueError(f"expected bins >= 2, bound > 0, 0 < min_bin < 1 and tails in {TAILS}, got {self}")

    @property
    def domain(self) -> Constraint:
        """The whole line, or the interval of circular tails."""
        return constraints.interval(-self.bound, self.bound) if self.tails == "circular" else constraints.real

    @property
    def codomain(self) -> Constraint:
        """The domain."""
        return self.domain

    @property
    def slope_shape(self) -> tuple[int, ...]:
        """How many slopes at knots are free: those inside, all, or all but one of the two that are joined."""
        return (self.bins + {"identity": -1, "linear": 1, "circular": 0}[self.tails],)

    @abstractmethod
    def _local(self, sizes: Tensor, index: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """What shapes the curve of a bin, found among the rest of what :meth:`_tables` returns."""

    @abstractmethod
    def _curve(self, t: Tensor, u: Tensor, *local: Tensor) -> tuple[Tensor, ...]:
        """The value, the slope and whatever else of the curve at ``t = 1 - u``, from (0, 0) to (1, 1)."""

    @abstractmethod
    def _solve(self, below: Tensor, above: Tensor, *local: Tensor) -> tuple[Tensor, Tensor]:
        """The point ``t, u`` where the curve has the value ``below = 1 - above``."""

    def forward(self, x: Tensor, *raw: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        return self._map(x, False, *raw)

    def inverse(self, y: Tensor, *raw: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return self._map(y, True, *raw)

    def _map(self, z: Tensor, inverse: bool, *raw: Tensor) -> tuple[Tensor, Tensor]:
        # A network under autocast gives fewer digits than knots need.
        return self.find(inverse, z, *(t.to(torch.promote_types(t.dtype, z.dtype)) for t in raw))[:2]

    def find(self, inverse: bool, z: Tensor, *raw: Tensor) -> tuple[Tensor, ...]:
        """The value, the ladj, and what :class:`~.gradient.Found` holds besides."""
        inside = clip(z, -self.bound, self.bound)
        shares, table, knots, *rest = self._tables(*raw)
        index = (inside.unsqueeze(-1) >= knots[..., int(inverse), 1:-1]).sum(-1, keepdim=True)
        beside = index + torch.arange(-1, 2, device=z.device)
        around = beside % self.bins if self.tails == "circular" else beside
        sizes = take(table, around.unsqueeze(-2))
        x0, x1, y0, y1 = take(knots, beside[..., 1:].unsqueeze(-2)).flatten(-2).unbind(-1)
        w, h = x1 - x0, y1 - y0  # not of sizes, that t + u is 1 to rounding
        local = self._local(sizes, index, *rest)
        if inverse:
            t, u = self._solve((inside - y0) / h, (y1 - inside) / h, *local)
        else:
            t, u = (clip(part / w, 0.0, 1.0) for part in (inside - x0, x1 - inside))
        if self.tails == "linear":  # at an end to the digit, as both directions go on from there
            beyond = torch.where(z > self.bound, 1.0, 0.0), torch.where(z < -self.bound, 1.0, 0.0)
            t, u = (torch.where(z != inside, end, part) for end, part in zip(beyond, (t, u), strict=True))
        curve = self._curve(t, u, *local)
        ladj = (curve[1] * h / w).log()
        # From the nearer end, and a straight line where the input was clamped.
        value = torch.where(t <= u, x0 + w * t, x1 - w * u) if inverse else y0 + h * curve[0]
        tail, ladj = z != inside, -ladj if inverse else ladj
        if self.tails == "linear":
            value = value + torch.where(tail, ladj.exp() * (z - inside), 0.0)
        elif self.tails == "identity":
            value, ladj = torch.where(tail, z, value), torch.where(tail, torch.zeros_like(ladj), ladj)
        return value, ladj, tail, index, shares, sizes, *local, t, u, *curve

    def _tables(self, widths: Tensor, heights: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Shares of the bins, their sizes, the knots, and the rest, from free numbers."""
        return *self.split(torch.stack(torch.broadcast_tensors(widths, heights), dim=-2)), *rest

    def split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shares of the bins, their sizes, which sum to ``2 bound``, and the knots, one more, from free numbers."""
        shares = _softmax(raw)
        sizes = torch.add(2 * self.bound * self.min_bin / self.bins, shares, alpha=self.spread)
        return shares, sizes, running(sizes, -self.bound)

    def _ends(self, sizes: Tensor, index: Tensor, slopes: Tensor, most: float = torch.inf) -> tuple[Tensor, ...]:
        """The raw slopes at both ends of the bin, and what comes of them, relative to its secant.

        A knot's slope is its factor times the mean that :meth:`_mean` takes of the secants beside it, and 1 where the
        identity goes on, or the nearest to it that is at most ``most`` times the secant.
        """
        before, secant, after = (sizes[..., 1, :] / sizes[..., 0, :]).unbind(-1)
        factors = self._at_ends(slopes, index)
        left, right = soft_clip(factors, self.limit).exp().unbind(-1)
        outer, index = 1 / secant, index.squeeze(-1)
        d0, d1 = (factor * self._mean(next_ * outer) for factor, next_ in ((left, before), (right, after)))
        if self.tails == "identity":
            end = clip(outer, high=most)
            d0, d1 = torch.where(index == 0, end, d0), torch.where(index == self.bins - 1, end, d1)
        return factors, d0, d1

    def _mean(self, ratio: Tensor) -> Tensor:
        """A mean of 1 and a ratio of secants, the same from both sides: the smaller one."""
        return clip(ratio, high=1.0)

    def _at_ends(self, slopes: Tensor, index: Tensor) -> Tensor:
        """Of slopes of knots, as many as are free, those at both ends of a bin."""
        places = index + torch.arange(2, device=index.device)
        if self.tails == "identity":
            return take(slopes, places - 1)
        return take(slopes, places % self.bins if self.tails == "circular" else places)

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


def running(sizes: Tensor, start: float) -> Tensor:
    """Where bins of these sizes begin and end, ``(..., K + 1)``."""
    if _is_differentiated():  # Inductor of torch 2.13 gets gradients of running sums wrong
        bins = torch.arange(sizes.shape[-1], device=sizes.device)
        before = bins < torch.arange(sizes.shape[-1] + 1, device=sizes.device).unsqueeze(-1)
        return start + torch.where(before, sizes.unsqueeze(-2), 0.0).sum(-1)
    return pad(sizes, (1, 0), value=start).cumsum(-1)


def take(table: Tensor, index: Tensor) -> Tensor:
    """Entries of ``table`` ``(..., K)`` at each of ``index`` ``(..., n)``, clamped to the table; batches broadcast."""
    batch = torch.broadcast_shapes(table.shape[:-1], index.shape[:-1])
    index = index.clamp(0, table.shape[-1] - 1).expand(*batch, -1)
    if _is_differentiated():  # Inductor of torch 2.13 may read a gather's gradient before it is added up
        here = index.unsqueeze(-1) == torch.arange(table.shape[-1], device=table.device)
        return torch.where(here, table.unsqueeze(-2), 0.0).sum(-1)
    return table.expand(*batch, -1).gather(-1, index)
