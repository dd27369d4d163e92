"""Skewness and the weight of both tails by two numbers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..maths import clip, soft_clip
from .base import Bijector, check_bound

# Where a straight line goes on: far outside of any base, and soon enough that nothing overflows.
CUT = 100.0


@dataclass(frozen=True)
class SinhArcsinh(Bijector):
    """``y = sinh(w (arsinh(x) + s))``: ``s`` gives skewness, ``w`` tails that are heavier (above 1) or lighter.

    The parameters are ``s = soft_clip(skew, bound)`` and ``log w``, softly clipped to ``tail_bound``. Over a normal
    base the tails grow like those of ``|x|^w``. Closed form both ways, at the same cost. Beyond ``|x| = 100`` a
    straight line goes on.

    Args:
        bound: largest ``|s|``.
        tail_bound: largest ``|log w|``.

    References:
        Sinh-arcsinh distributions. Jones, Pewsey, 2009. https://doi.org/10.1093/biomet/asp053
    """

    bound: float = 1.5
    tail_bound: float = 0.5
    param_shapes = ((), ())

    def __post_init__(self) -> None:
        """Checks the bounds."""
        check_bound(self, self.bound)
        check_bound(self, self.tail_bound)

    def forward(self, x: Tensor, skew: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        inner = clip(x, -CUT, CUT)
        y, ladj = self._inner(inner, skew, tail)
        return y + ladj.exp() * (x - inner), ladj

    def inverse(self, y: Tensor, skew: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        low, high = (self._inner(torch.full_like(y, edge), skew, tail)[0] for edge in (-CUT, CUT))
        inner = torch.minimum(torch.maximum(y, low), high)
        weight = soft_clip(tail, self.tail_bound).exp()
        x = torch.sinh(torch.asinh(inner) / weight - soft_clip(skew, self.bound))
        ladj = -self._inner(x, skew, tail)[1]
        return x + ladj.exp() * (y - inner), ladj

    def _inner(self, x: Tensor, skew: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the log of the slope without the straight lines."""
        log_weight, before = soft_clip(tail, self.tail_bound), torch.asinh(x)
        after = log_weight.exp() * (before + soft_clip(skew, self.bound))
        return after.sinh(), log_weight + _log_cosh(after) - _log_cosh(before)


def _log_cosh(x: Tensor) -> Tensor:
    size = x.abs()
    return size + softplus(-2 * size) - math.log(2.0)
