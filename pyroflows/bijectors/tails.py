"""Tails that grow like squares, or like roots."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..maths import clip, soft_clip
from .base import Bijector, check_bound

# Where squares end and a straight line goes on: far outside of any base, and soon enough that nothing overflows.
CUT = 100.0
# Keeps the gradient of a root at zero finite; its own root still has a value in single precision.
TINY = 1e-30


@dataclass(frozen=True)
class Tails(Bijector):
    """``y = x sqrt(1 + a x^2)`` with one ``a`` left of zero and another right of it; the inverse where ``a < 0``.

    Straight near zero, like ``sqrt(a) x |x|`` far out. Over a normal base that gives tails that fall like an
    exponential, which is what a positive or bounded parameter has in unconstrained space, and what no map with bounded
    slopes can give. With negative ``a`` tails grow like a root and are lighter than the base's. Both directions are
    closed form. The parameters are the two strengths, with ``a = soft_clip(strength, bound)``.

    Args:
        bound: largest ``|a|``.
    """

    bound: float = 1.0
    param_shapes = ((), ())

    def __post_init__(self) -> None:
        """Checks the bound."""
        check_bound(self, self.bound)

    def forward(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        a = soft_clip(torch.where(x < 0, left, right), self.bound)
        heavy, light = clip(a, low=0.0), clip(-a, low=0.0)  # both have a gradient at zero
        reach = CUT * (1 + light * CUT * CUT).sqrt()
        inner = torch.minimum(torch.maximum(x, -reach), reach)
        root = (1 + heavy * inner * inner).sqrt()
        # The inverse: of the two solutions of a quadratic equation in x^2 the positive one, without cancellation.
        half = (0.5 + 0.5 * torch.hypot(torch.ones_like(x), 2 * (light + TINY).sqrt() * inner)).sqrt()
        stretched = a >= 0
        ladj = torch.where(stretched, _log_slope(root), -_log_slope(half))
        return torch.where(stretched, inner * root, inner / half) + ladj.exp() * (x - inner), ladj

    def inverse(self, y: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return self.forward(y, -left, -right)


def _log_slope(root: Tensor) -> Tensor:
    """``log(2 r - 1 / r)``, the log slope of the stretched side at ``r = sqrt(1 + a x^2)``."""
    return torch.log1p((root - 1) * (2 + 1 / root))
