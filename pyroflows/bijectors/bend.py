"""A line that bends once, smoothly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numeric import soft_clip
from .base import Bijector


@dataclass(frozen=True)
class Bend(Bijector):
    """``y = x + a w (sqrt(1 + t^2) - 1)`` with ``t = (x - place) / w``: a smooth leaky ReLU with two slopes.

    Far to the left the slope is ``1 - a``, far to the right ``1 + a``; a hyperbola of width ``w`` joins them. Two
    bends in a row, left and right of the middle, give a dimension skewness, and tails lighter or heavier than the
    base's: what couplings, whose maps are straight lines in each dimension, express badly. The inverse is closed form.

    The parameters are the strength, with ``a = soft_clip(strength, bound)``, the place, added to ``center``, and the
    log of the width, which stays between ``exp(-2)`` and ``exp(2)``.

    Args:
        center: where it bends when the place is 0.
        bound: largest ``|a|``, below 1; the default allows slopes from 0.1 to 1.9.
    """

    center: float = 0.0
    bound: float = 0.9
    param_shapes = ((), (), ())

    def forward(self, x: Tensor, strength: Tensor, place: Tensor, log_width: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        a, place, width = self._shape(strength, place, log_width)
        t = (x - place) / width
        root = torch.hypot(t, torch.ones_like(t))
        return x + a * width * (root - 1), torch.log1p(a * t / root)

    def inverse(self, y: Tensor, strength: Tensor, place: Tensor, log_width: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        a, place, width = self._shape(strength, place, log_width)
        c, rest = (y - place) / width + a, 1 - a * a
        t = (c - a * torch.hypot(c, rest.sqrt())) / rest
        return place + width * t, -torch.log1p(a * t / torch.hypot(t, torch.ones_like(t)))

    def _shape(self, strength: Tensor, place: Tensor, log_width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return soft_clip(strength, self.bound), self.center + place, soft_clip(log_width, 2.0).exp()
