"""Splines of other curves: straight lines, parabolas, cubics, and two hyperbolas to a bin."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...maths import clip, soft_clip
from ...solve import increasing_root
from .bins import Spline, running, take
from .curve import Curve, solve

# A cubic increases where its end slopes are below three times the secant.
STEEPEST = 2.5


@dataclass(frozen=True)
class LinearSpline(Spline):
    """Straight lines from knot to knot: ``y = y0 + (y1 - y0) t``, a density with a step at each knot.

    The cheapest spline, and the exact one both ways; densities come out as histograms. Arguments are those of
    :class:`RQSpline`; with linear tails the outer lines go on.

    References:
        Neural Importance Sampling. Mueller, McWilliams, Rousselle, Gross, Novak, 2019. https://arxiv.org/abs/1808.03856
    """

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Widths and heights of the bins."""
        return (self.bins,), (self.bins,)

    def _local(self, sizes: Tensor, index: Tensor) -> tuple[()]:
        return ()

    def _curve(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    def _solve(self, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        return below, above


@dataclass(frozen=True)
class QuadraticSpline(Spline):
    """Parabolas: the slope goes in straight lines from knot to knot, and with it the density of what is mapped.

    ``y = y0 + (y1 - y0) (t^2 + d0 t (1 - t))`` with ``d0 + d1 = 2``. Widths and slopes are free, and heights follow: it
    has fewer parameters than :class:`RQSpline`, whose arguments it takes. Closed form both ways.

    References:
        Neural Importance Sampling. Mueller, McWilliams, Rousselle, Gross, Novak, 2019. https://arxiv.org/abs/1808.03856
    """

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Widths of the bins, slopes at the knots."""
        return (self.bins,), self.slope_shape

    def _tables(self, widths: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        shares, widths, _ = self.split(widths)
        slopes = soft_clip(slopes, self.limit).exp()
        zero, length = torch.zeros_like(widths[..., :1]), 2 * self.bound
        spans = (torch.cat([zero, widths], dim=-1) + torch.cat([widths, zero], dim=-1)) / 2  # around each knot
        if self.tails == "circular":
            slopes = torch.cat([slopes, slopes[..., :1]], dim=-1)
        if self.tails == "identity":
            inner, ends = spans[..., 1:-1], spans[..., :1] + spans[..., -1:]
            slopes = slopes * (length - ends) / (slopes * inner).sum(-1, keepdim=True)
            one = torch.ones_like(slopes[..., :1])
            slopes = torch.cat([one, slopes, one], dim=-1)
        else:
            slopes = slopes * length / (slopes * spans).sum(-1, keepdim=True)
        heights = widths * (slopes[..., :-1] + slopes[..., 1:]) / 2
        table = torch.stack(torch.broadcast_tensors(widths, heights), dim=-2)
        return shares, table, running(table, -self.bound), slopes

    def _local(self, sizes: Tensor, index: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        width, height = sizes[..., 1].unbind(-1)
        d0, d1 = (take_one(slopes, index + step) * width / height for step in (0, 1))
        return d0, d1

    def _curve(self, t: Tensor, u: Tensor, d0: Tensor, d1: Tensor) -> Curve:
        return Curve.at(t, u, d0, d1)

    def _solve(self, below: Tensor, above: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
        return solve(below, above, d0, d1)


@dataclass(frozen=True)
class CubicSpline(Spline):
    """Cubics with one slope at each knot: ``y = y0 + (y1 - y0) (t^3 + (3 - d1) t^2 u + d0 t u^2)`` with ``u = 1 - t``.

    Forward is closed form; the inverse is Newton's method within a bin, in about ten steps and with exact gradients.
    Slopes are at most 2.5 times a secant beside them; where the identity goes on and the outer bin is flatter than
    that allows, the density has a step. Arguments are those of :class:`RQSpline`.

    References:
        Cubic-Spline Flows. Durkan, Bekasov, Murray, Papamakarios, 2019. https://arxiv.org/abs/1906.02145
    """

    limit, fast = math.log(STEEPEST), "forward"

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Widths and heights of the bins, slopes at the knots."""
        return (self.bins,), (self.bins,), self.slope_shape

    def _local(self, sizes: Tensor, index: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        return self._ends(sizes, index, slopes, STEEPEST)[1:]

    def _curve(self, t: Tensor, u: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
        value = t * (t * t + (3 - d1) * t * u + d0 * u * u)
        return value, d0 * u * u + d1 * t * t + 2 * t * u * (3 - d0 - d1)

    def _solve(self, below: Tensor, above: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
        near = below <= above
        ends = torch.where(near, d0, d1), torch.where(near, d1, d0)
        root = clip(increasing_root(self._endless, torch.where(near, below, above), *ends), 0.0, 1.0)
        return torch.where(near, root, 1 - root), torch.where(near, 1 - root, root)

    def _endless(self, t: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
        """The curve, going on in straight lines, and the log of its slope."""
        inner = clip(t, 0.0, 1.0)
        value, slope = self._curve(inner, 1 - inner, d0, d1)
        return value + slope * (t - inner), slope.log()


@dataclass(frozen=True)
class LinearRationalSpline(Spline):
    """Two hyperbolas to a bin, ``(a + b t) / (c + d t)`` each, which meet smoothly at a middle that is free.

    The inverse is of the same kind: closed form both ways without a root. Its slopes can be ten times those of
    :class:`RQSpline`, whose arguments it takes, and the round trip in float32 loses as much.

    References:
        Invertible Generative Modeling using Linear Rational Splines. Dolatabadi, Erfani, Leckie, 2020.
        https://arxiv.org/abs/2001.05168
    """

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Widths and heights of the bins, slopes at the knots, middles of the bins."""
        return (self.bins,), (self.bins,), self.slope_shape, (self.bins,)

    def _local(self, sizes: Tensor, index: Tensor, slopes: Tensor, middles: Tensor) -> tuple[Tensor, ...]:
        """The middle, its height, and the weights of the middle and of the end; that of the start is 1."""
        _, d0, d1 = self._ends(sizes, index, slopes)
        middle = 0.05 + 0.9 * take_one(middles, index).sigmoid()
        end = (d0 / d1).sqrt()
        height = middle * end / (1 - middle + middle * end)
        return middle, height, middle * d0 + (1 - middle) * end * d1, end

    def _mean(self, ratio: Tensor) -> Tensor:
        return ratio.sqrt()  # the curve is monotone whatever the slopes, and gentler with these

    def _curve(
        self, t: Tensor, u: Tensor, middle: Tensor, height: Tensor, weight: Tensor, end: Tensor
    ) -> tuple[Tensor, Tensor]:
        first, last = torch.minimum(t, middle), torch.minimum(u, 1 - middle)  # the other half stays finite
        below = middle - first + weight * first
        above = end * (1 - middle - last) + weight * last
        left = t <= middle
        value = torch.where(left, weight * height * first / below, 1 - weight * (1 - height) * last / above)
        slopes = middle * weight * height / below**2, (1 - middle) * end * weight * (1 - height) / above**2
        return value, torch.where(left, *slopes)

    def _solve(
        self, below: Tensor, above: Tensor, middle: Tensor, height: Tensor, weight: Tensor, end: Tensor
    ) -> tuple[Tensor, Tensor]:
        low = clip(torch.minimum(below, height), low=0.0)
        high = clip(torch.minimum(above, 1 - height), low=0.0)
        t = middle * low / (low + weight * (height - low))
        u = (1 - middle) * end * high / (end * high + weight * (1 - height - high))
        left = below <= height
        return torch.where(left, t, 1 - u), torch.where(left, 1 - t, u)


def take_one(table: Tensor, index: Tensor) -> Tensor:
    """The entry of ``table`` ``(..., K)`` at ``index`` ``(..., 1)``; batches broadcast."""
    return take(table, index).squeeze(-1)
