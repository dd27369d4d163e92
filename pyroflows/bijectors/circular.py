"""Turns of a circle."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ..maths import clip
from .base import Bijector, check_bound


@dataclass(frozen=True)
class CircularShift(Bijector):
    """``y = x + shift``, wrapped to ``[-bound, bound]``: a turn of a circle, which keeps volume (ladj 0).

    Its ``sign`` is 0: it neither increases nor decreases where it wraps.

    Args:
        bound: half the circumference.

    References:
        Normalizing Flows on Tori and Spheres. Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer,
        2020. https://arxiv.org/abs/2002.02428

    Example:
        >>> CircularShift().forward(torch.tensor(3.0), torch.tensor(1.0))[0]
        tensor(-2.2832)
    """

    bound: float = math.pi
    sign = 0
    param_shapes = ((),)

    def __post_init__(self) -> None:
        """Checks the bound."""
        check_bound(self, self.bound)

    @property
    def domain(self) -> Constraint:
        """The interval whose ends are one point."""
        return constraints.interval(-self.bound, self.bound)

    @property
    def codomain(self) -> Constraint:
        """The domain."""
        return self.domain

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        turned, around = x + shift, 2 * self.bound
        turned = turned - around * torch.floor((turned + self.bound).detach() / around)
        return clip(turned, -self.bound, self.bound), torch.zeros_like(shift)

    def inverse(self, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return self.forward(y, -shift)
