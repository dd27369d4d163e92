"""The contract of a bijector: an increasing map of the real line with given parameters."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ..maths import clip


class Bijector(ABC):
    """A family of increasing scalar maps ``y = f(x; params)``, as pure tensor maths.

    A subclass is a frozen dataclass that holds only constants (bins, bounds). Its parameters come from
    outside as tensors that broadcast with ``x``: for ``x`` of shape ``(...)`` and ``param_shapes`` of
    ``((), (8,))`` the two parameters have shapes ``(...)`` and ``(..., 8)``. Four laws hold:

    1. everything broadcasts: the value has the broadcast shape, the ladj one that broadcasts to it;
    2. ladj is ``log |d out / d in|`` of the direction taken;
    3. parameters that are all zero give the identity, where the map is of a domain onto itself;
    4. slopes are bounded away from zero and infinity on every interval, whatever the parameters.

    A map that is not of the whole line onto itself says so by :attr:`domain` and :attr:`codomain`, one that decreases
    by a ``sign`` of -1, and one that wraps around a circle by 0; :attr:`fast` says which direction is cheap,
    ``"both"``, ``"forward"`` or ``"inverse"``. ``pyroflows.check_bijector`` tests the laws.
    See :doc:`write_a_bijector`.
    """

    sign, fast = 1, "both"

    @property
    def domain(self) -> Constraint:
        """Where ``x`` lies, a constraint of numbers; the whole line, unless a subclass overrides it."""
        return constraints.real

    @property
    def codomain(self) -> Constraint:
        """What the domain is mapped onto; the whole line, unless a subclass overrides it."""
        return constraints.real

    @property
    def inv(self) -> "Bijector":
        """The same map in the other direction: ``Exp().inv`` is the logarithm."""
        return Inverse(self)

    @property
    @abstractmethod
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each parameter for one scalar ``x``."""

    @abstractmethod
    def forward(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``, where ``ladj = log dy/dx``."""

    @abstractmethod
    def inverse(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``, where ``ladj = log dx/dy``."""

    @property
    def param_count(self) -> int:
        """How many numbers the parameters of one scalar take."""
        return sum(math.prod(shape) for shape in self.param_shapes)

    def unpack(self, flat: Tensor) -> list[Tensor]:
        """Cuts ``flat`` of shape ``(..., param_count)`` into the parameters."""
        if not any(self.param_shapes):
            return list(flat.unbind(-1))
        parts = flat.split([math.prod(shape) for shape in self.param_shapes], dim=-1)
        return [p.reshape(p.shape[:-1] + s) for p, s in zip(parts, self.param_shapes, strict=True)]

    def apply(self, z: Tensor, params: list[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        """Calls :meth:`inverse` or :meth:`forward`; the ladj takes the shape of the value."""
        value, ladj = self.inverse(z, *params) if inverse else self.forward(z, *params)
        return value, ladj.expand_as(value)


@dataclass(frozen=True)
class Inverse(Bijector):
    """A bijector with its directions swapped, made by :attr:`Bijector.inv`.

    Args:
        bijector: the map whose inverse this is.

    Example:
        >>> from pyroflows.bijectors import Exp
        >>> Exp().inv.forward(torch.tensor(1.0))[0]
        tensor(0.)
    """

    bijector: Bijector

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The bijector's."""
        return self.bijector.param_shapes

    @property
    def sign(self) -> int:
        """The bijector's."""
        return self.bijector.sign

    @property
    def fast(self) -> str:
        """The bijector's, turned around."""
        return {"forward": "inverse", "inverse": "forward"}.get(self.bijector.fast, self.bijector.fast)

    @property
    def domain(self) -> Constraint:
        """The bijector's codomain."""
        return self.bijector.codomain

    @property
    def codomain(self) -> Constraint:
        """The bijector's domain."""
        return self.bijector.domain

    @property
    def inv(self) -> Bijector:
        """The bijector itself."""
        return self.bijector

    def forward(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        return self.bijector.inverse(x, *params)

    def inverse(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return self.bijector.forward(y, *params)


class Elementary(Bijector):
    """A map without parameters, given by its value, the way back and the log of its slope."""

    param_shapes = ()

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor:
        """``f(x)``, inside the codomain in any precision."""

    @abstractmethod
    def _back(self, y: Tensor) -> Tensor:
        """The ``x`` with ``f(x) = y``."""

    @abstractmethod
    def _log_slope(self, x: Tensor) -> Tensor:
        """``log |f'(x)|``."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        return self._value(x), self._log_slope(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        x = self._back(y)
        return x, -self._log_slope(x)


def strictly(y: Tensor, low: float, high: float = math.inf) -> Tensor:
    """``y``, clipped to the numbers of its precision that lie strictly between two bounds.

    Tails round to the bounds; there the way back would be infinite.
    """
    kind = torch.finfo(y.dtype)
    edges = [side * max(abs(edge) * kind.eps, kind.tiny) for side, edge in ((1, low), (-1, high))]
    return clip(y, low + edges[0], kind.max if high == math.inf else high + edges[1])


def check_bound(bijector: Bijector, bound: float, below: float = math.inf) -> None:
    """Raises a ValueError unless a bound is positive and below another."""
    if not 0 < bound < below:
        raise ValueError(
            f"expected a bound above 0{'' if below == math.inf else f' and below {below}'}, got {bijector}"
        )
