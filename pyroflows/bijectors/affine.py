"""Bijectors that are a straight line, or two."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..maths import soft_clip
from .base import Bijector, check_bound


@dataclass(frozen=True)
class Affine(Bijector):
    """``y = shift + exp(s) x`` with ``s = soft_clip(log_scale, bound)``.

    The soft bound keeps a single junk value from overflowing while an autoregressive flow is inverted.

    Args:
        bound: largest absolute log scale; the default allows factors from 1/403 to 403.

    References:
        Density estimation using Real NVP. Dinh, Sohl-Dickstein, Bengio, 2017.
        https://arxiv.org/abs/1605.08803
    """

    bound: float = 6.0
    param_shapes = ((), ())

    def __post_init__(self) -> None:
        """Checks the bound."""
        check_bound(self, self.bound)

    def forward(self, x: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        log_scale = soft_clip(log_scale, self.bound)
        return shift + log_scale.exp() * x, log_scale

    def inverse(self, y: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        ladj = -soft_clip(log_scale, self.bound)
        return (y - shift) * ladj.exp(), ladj


@dataclass(frozen=True)
class Shift(Bijector):
    """``y = x + shift``: the additive map of NICE, which keeps volume (ladj 0).

    References:
        NICE: Non-linear Independent Components Estimation. Dinh, Krueger, Bengio, 2015.
        https://arxiv.org/abs/1410.8516
    """

    param_shapes = ((),)

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        return x + shift, torch.zeros_like(shift)

    def inverse(self, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return y - shift, torch.zeros_like(shift)
