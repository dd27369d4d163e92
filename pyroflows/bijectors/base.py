"""The contract of a bijector: an increasing map of the real line with given parameters."""

import math
from abc import ABC, abstractmethod

from torch import Tensor


class Bijector(ABC):
    """A family of increasing scalar maps ``y = f(x; params)``, as pure tensor maths.

    A subclass is a frozen dataclass that holds only constants (bins, bounds). Its parameters come from
    outside as tensors that broadcast with ``x``: for ``x`` of shape ``(...)`` and ``param_shapes`` of
    ``((), (8,))`` the two parameters have shapes ``(...)`` and ``(..., 8)``. Four laws hold:

    1. everything broadcasts: the value has the broadcast shape, the ladj one that broadcasts to it;
    2. ladj is ``log |d out / d in|`` of the direction taken;
    3. parameters that are all zero give the identity;
    4. slopes are bounded away from zero and infinity on every interval, whatever the parameters.

    ``pyroflows.check_bijector`` tests the laws. See :doc:`write_a_bijector`. :attr:`fast` says which direction is
    cheap, ``"both"`` or ``"forward"``.
    """

    fast = "both"

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


def check_bound(bijector: Bijector, bound: float, below: float = math.inf) -> None:
    """Raises a ValueError unless a bound is positive and below another."""
    if not 0 < bound < below:
        raise ValueError(
            f"expected a bound above 0{'' if below == math.inf else f' and below {below}'}, got {bijector}"
        )
