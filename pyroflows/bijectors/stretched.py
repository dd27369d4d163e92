"""A bijector seen through a lens."""

from dataclasses import dataclass

from torch import Tensor
from torch.distributions.constraints import Constraint

from ..maths import soft_clip
from .base import Bijector, check_bound


@dataclass(frozen=True)
class Stretched(Bijector):
    """``y = c f(x / c)`` with a ``c = exp(soft_clip(log_c, bound))``, learnt: what happens at 1 then happens at ``c``.

    So a spline learns its bound. It costs what ``f`` costs, and the slope is that of ``f``.

    Args:
        bijector: ``f``, of the whole line, or the positive half, onto itself.
        bound: largest ``|log c|``.

    Example:
        >>> from pyroflows.bijectors import RQSpline
        >>> Stretched(RQSpline(bins=4)).param_shapes
        ((), (4,), (4,), (3,))
    """

    bijector: Bijector
    bound: float = 2.0

    def __post_init__(self) -> None:
        """Checks the bound."""
        check_bound(self, self.bound)

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """``log c``, and the bijector's."""
        return (), *self.bijector.param_shapes

    @property
    def domain(self) -> Constraint:
        """The bijector's."""
        return self.bijector.domain

    @property
    def codomain(self) -> Constraint:
        """The bijector's."""
        return self.bijector.codomain

    def forward(self, x: Tensor, log_c: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        return self._map(x, log_c, params, False)

    def inverse(self, y: Tensor, log_c: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return self._map(y, log_c, params, True)

    def _map(self, z: Tensor, log_c: Tensor, params: tuple[Tensor, ...], inverse: bool) -> tuple[Tensor, Tensor]:
        log_c = soft_clip(log_c, self.bound)
        value, ladj = self.bijector.apply(z * (-log_c).exp(), list(params), inverse)
        return value * log_c.exp(), ladj
