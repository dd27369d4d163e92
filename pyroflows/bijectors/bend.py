"""A line that bends once, smoothly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..maths import soft_clip
from .base import Bijector, check_bound


@dataclass(frozen=True)
class Bend(Bijector):
    """``y = x + a (sqrt(1 + t^2) - level)`` with ``t = x - center``: a smooth leaky ReLU with two slopes.

    Far to the left the slope is ``1 - a``, far to the right ``1 + a``; a hyperbola joins them. The one parameter is the
    strength, with ``a = soft_clip(strength, bound)``. Two bends in a row, left and right of the middle, give a
    dimension skewness, and tails lighter or heavier than the base's: what couplings, whose maps are straight lines in
    each dimension, express badly. The inverse is closed form.

    Args:
        center: where it bends.
        bound: largest ``|a|``, below 1; the default allows slopes from 0.1 to 1.9.
        level: the height of the hyperbola that stays where it is; 1, that of its vertex, leaves the center in place.
    """

    center: float = 0.0
    bound: float = 0.9
    level: float = 1.0
    param_shapes = ((),)

    def __post_init__(self) -> None:
        """Checks the bound."""
        check_bound(self, self.bound, below=1)

    def forward(self, x: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        a, t = soft_clip(strength, self.bound), x - self.center
        root = torch.hypot(t, torch.ones_like(t))
        return x + a * (root - self.level), torch.log1p(a * t / root)

    def inverse(self, y: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        a = soft_clip(strength, self.bound)
        c, rest = y - self.center + a * self.level, 1 - a * a
        t = (c - a * torch.hypot(c, rest.sqrt())) / rest
        return self.center + t, -torch.log1p(a * t / torch.hypot(t, torch.ones_like(t)))


@dataclass(frozen=True)
class LeakyReLU(Bijector):
    """``y = x`` where ``x >= 0``, else ``slope * x``, with a learnable slope.

    ``slope = exp(soft_clip(log_slope, bound))`` is positive whatever the parameter, so the map never
    folds; a log slope of 0 is the identity. The density has a step at ``x = 0``.

    Args:
        bound: largest absolute log slope; the default allows slopes from 1/1000 to 1000.
    """

    bound: float = math.log(1000.0)
    param_shapes = ((),)

    def __post_init__(self) -> None:
        """Checks the bound."""
        check_bound(self, self.bound)

    def forward(self, x: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        return _bend(x, soft_clip(log_slope, self.bound))

    def inverse(self, y: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return _bend(y, -soft_clip(log_slope, self.bound))


def _bend(z: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
    """Scales the negative half line by ``exp(log_slope)``; the sign, and so the branch, is kept."""
    ladj = torch.where(z < 0, log_slope, torch.zeros_like(log_slope))
    return z * ladj.exp(), ladj
