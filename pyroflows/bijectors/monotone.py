"""Bijectors whose inverse is a root: what they have in common, and bijectors in a row."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..maths import clip
from ..solve import increasing_root
from .base import Bijector


class Monotone(Bijector):
    """An increasing curve on ``[-bound, bound]`` that goes on as a straight line: onto all numbers, never saturated.

    A subclass writes the curve, whose slope has positive bounds. Forward is closed form. The inverse is a root, found
    by :func:`pyroflows.solve.increasing_root` in 10 to 40 evaluations of the curve, with implicit gradients.
    """

    fast = "forward"
    bound: float

    def forward(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        inside = clip(x, -self.bound, self.bound)
        value, slope = self._curve(inside, *params)
        return value + slope * (x - inside), slope.log()

    def inverse(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        x = increasing_root(self.forward, y, *params)
        return x, -self.forward(x, *params)[1]

    @abstractmethod
    def _curve(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the slope (not its log) for ``|x| <= bound``."""


@dataclass(frozen=True)
class Chain(Bijector):
    """Bijectors one after the other, the first is applied first: as one map of a structure, with one network.

    Args:
        parts: the bijectors.

    Raises:
        ValueError: if there are none.

    Example:
        >>> from pyroflows.bijectors import Affine, Bend
        >>> Chain((Bend(), Affine())).param_count
        3
    """

    parts: tuple[Bijector, ...]

    def __post_init__(self) -> None:
        """Checks that there is something to chain."""
        if not self.parts or not all(isinstance(part, Bijector) for part in self.parts):
            raise ValueError(f"Chain expected a tuple of bijectors, got {self.parts!r}")

    @property
    def fast(self) -> str:
        """``"both"`` where both directions of all parts are."""
        return "both" if all(part.fast == "both" for part in self.parts) else "forward"

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Those of the parts."""
        return tuple(shape for part in self.parts for shape in part.param_shapes)

    def forward(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        return self._map(x, False, params)

    def inverse(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        return self._map(y, True, params)

    def _map(self, z: Tensor, inverse: bool, params: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        total, steps, first = 0.0, [], 0
        for part in self.parts:
            steps.append((part, list(params[first : first + len(part.param_shapes)])))
            first += len(part.param_shapes)
        for part, own in reversed(steps) if inverse else steps:
            z, ladj = part.apply(z, own, inverse)
            total = total + ladj
        return z, total
