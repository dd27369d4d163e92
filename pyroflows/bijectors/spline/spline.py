"""Monotone rational quadratic splines that survive single precision."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...autograd import is_compiled_backward, is_plain_backward
from .bins import Spline
from .curve import Curve, solve
from .gradient import written


@dataclass(frozen=True)
class RQSpline(Spline):
    """A monotone rational quadratic spline on ``[-bound, bound]``, by default the identity outside.

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
        bound: half width of the interval that is bent; :class:`~pyroflows.bijectors.Stretched` learns it.
        min_bin: smallest width and height of a bin, as a fraction of the mean one.
        tails: ``"identity"``; ``"linear"``, straight lines with learnt slopes; or ``"circular"``, for angles: the ends
            of the interval, which then is the domain, are one point.

    Raises:
        ValueError: if an argument is outside its range.

    References:
        Neural Spline Flows. Durkan, Bekasov, Murray, Papamakarios, 2019. https://arxiv.org/abs/1906.04032
        Normalizing Flows on Tori and Spheres. Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer,
        2020. https://arxiv.org/abs/2002.02428
    """

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Widths and heights of the bins, slopes at the knots."""
        return (self.bins,), (self.bins,), self.slope_shape

    def _map(self, z: Tensor, inverse: bool, *raw: Tensor) -> tuple[Tensor, Tensor]:
        if self.tails == "identity" and (is_plain_backward(z, *raw) or is_compiled_backward()):
            return written(self, inverse, z, *(t.to(torch.promote_types(t.dtype, z.dtype)) for t in raw))
        return super()._map(z, inverse, *raw)

    def _local(self, sizes: Tensor, index: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        return self._ends(sizes, index, slopes)

    def _curve(self, t: Tensor, u: Tensor, factors: Tensor, d0: Tensor, d1: Tensor) -> Curve:
        return Curve.at(t, u, d0, d1)

    def _solve(self, below: Tensor, above: Tensor, factors: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
        return solve(below, above, d0, d1)
