"""Maps without parameters, onto a half line or an interval or out of one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid, softplus

from ..maths import clip
from .base import Elementary, strictly


@dataclass(frozen=True)
class Exp(Elementary):
    """``y = exp(x)``, from the line onto the positive numbers; ``log dy/dx = x``. Closed form both ways.

    What would overflow or vanish stays at the largest or smallest number there is.
    """

    codomain = constraints.positive

    def _value(self, x: Tensor) -> Tensor:
        kind = torch.finfo(x.dtype)
        return clip(x, math.log(kind.tiny), math.log(kind.max) * (1 - kind.eps)).exp()

    def _back(self, y: Tensor) -> Tensor:
        return strictly(y, 0.0).log()

    def _log_slope(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Softplus(Elementary):
    """``y = log(1 + exp(x))``, from the line onto the positive numbers; all but ``x`` far right. Closed form both ways.

    Draws far out then have the tails of the base, and not those of its exponential, as with :class:`Exp`.
    """

    codomain = constraints.positive

    def _value(self, x: Tensor) -> Tensor:
        return strictly(softplus(x), 0.0)

    def _back(self, y: Tensor) -> Tensor:
        y = strictly(y, 0.0)
        return y + (-torch.expm1(-y)).log()

    def _log_slope(self, x: Tensor) -> Tensor:
        return logsigmoid(x)


@dataclass(frozen=True)
class Sigmoid(Elementary):
    """``y = 1 / (1 + exp(-x))``, from the line onto the numbers from 0 to 1. Closed form both ways."""

    codomain = constraints.unit_interval

    def _value(self, x: Tensor) -> Tensor:
        return strictly(x.sigmoid(), 0.0, 1.0)

    def _back(self, y: Tensor) -> Tensor:
        y = strictly(y, 0.0, 1.0)
        return y.log() - torch.log1p(-y)

    def _log_slope(self, x: Tensor) -> Tensor:
        return logsigmoid(x) + logsigmoid(-x)


@dataclass(frozen=True)
class Tanh(Elementary):
    """``y = tanh(x)``, from the line onto the numbers from -1 to 1. Closed form both ways."""

    codomain = constraints.interval(-1.0, 1.0)

    def _value(self, x: Tensor) -> Tensor:
        return strictly(x.tanh(), -1.0, 1.0)

    def _back(self, y: Tensor) -> Tensor:
        return strictly(y, -1.0, 1.0).atanh()

    def _log_slope(self, x: Tensor) -> Tensor:
        return math.log(4.0) + logsigmoid(2 * x) + logsigmoid(-2 * x)


@dataclass(frozen=True)
class Power(Elementary):
    """``y = x^p`` of positive numbers onto themselves; ``Power(2.0)`` is the square. Closed form both ways.

    It decreases where ``p`` is negative.

    Args:
        exponent: ``p``, not 0.

    Raises:
        ValueError: if the exponent is 0 or not finite.
    """

    exponent: float = 2.0
    domain = codomain = constraints.positive

    def __post_init__(self) -> None:
        """Checks the exponent."""
        if not math.isfinite(self.exponent) or self.exponent == 0:
            raise ValueError(f"Power expected a finite exponent other than 0, got {self.exponent}")

    @property
    def sign(self) -> int:
        """That of the exponent."""
        return 1 if self.exponent > 0 else -1

    def _value(self, x: Tensor) -> Tensor:
        return strictly(strictly(x, 0.0) ** self.exponent, 0.0)

    def _back(self, y: Tensor) -> Tensor:
        return strictly(strictly(y, 0.0) ** (1 / self.exponent), 0.0)

    def _log_slope(self, x: Tensor) -> Tensor:
        return math.log(abs(self.exponent)) + (self.exponent - 1) * strictly(x, 0.0).log()


@dataclass(frozen=True)
class ELU(Elementary):
    """``y = x`` where ``x >= 0``, else ``alpha (exp(x) - 1)``: from the line onto the numbers above ``-alpha``.

    Closed form both ways. The density has a step at ``x = 0`` unless ``alpha`` is 1.

    Args:
        alpha: positive.

    Raises:
        ValueError: if alpha is not positive.

    References:
        Fast and Accurate Deep Network Learning by Exponential Linear Units (ELUs). Clevert, Unterthiner, Hochreiter,
        2016. https://arxiv.org/abs/1511.07289
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Checks alpha."""
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"ELU expected a positive alpha, got {self.alpha}")

    @property
    def codomain(self) -> Constraint:
        """The numbers above ``-alpha``."""
        return constraints.greater_than(-self.alpha)

    def _value(self, x: Tensor) -> Tensor:
        return strictly(torch.where(x < 0, self.alpha * torch.expm1(clip(x, high=0.0)), x), -self.alpha)

    def _back(self, y: Tensor) -> Tensor:
        below = clip(strictly(y, -self.alpha), high=0.0)
        return torch.where(y < 0, torch.log1p(below / self.alpha), y)

    def _log_slope(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, x + math.log(self.alpha), torch.zeros_like(x))


@dataclass(frozen=True)
class Cos(Elementary):
    """``y = cos(x)``, from the numbers from 0 to pi onto those from -1 to 1; it decreases. Closed form both ways."""

    sign = -1
    domain = constraints.interval(0.0, math.pi)
    codomain = constraints.interval(-1.0, 1.0)

    def _value(self, x: Tensor) -> Tensor:
        return x.cos()

    def _back(self, y: Tensor) -> Tensor:
        return strictly(y, -1.0, 1.0).acos()

    def _log_slope(self, x: Tensor) -> Tensor:
        return strictly(x.sin(), 0.0).log()
