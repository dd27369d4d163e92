"""A log density that counts its work, so that searches end by that and not by a clock."""

import math

from torch import Tensor

from ...training.work import work_of
from .gaussian import LogDensity, score

# Rows that a log density is priced by.
ROWS = 64


class Counted:
    """A log density that counts the work of its calls, so that searches end by that and not by a clock.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, differentiable.
        example: a vector ``(D,)`` at which its price is found.

    Example:
        >>> import torch
        >>> density = Counted(lambda z: -z.square().sum(-1), torch.zeros(2))
        >>> end = density.done + 0.1
        >>> while density.done < end:
        ...     value = density(torch.ones(5, 2))
    """

    def __init__(self, log_density: LogDensity, example: Tensor) -> None:
        self.log_density, self.done = log_density, 0.0
        self.price = work_of(lambda: score(log_density, example.detach().expand(ROWS, -1)))

    @classmethod
    def of(cls, log_density: LogDensity, example: Tensor) -> "Counted":
        """The log density itself if it counts already, so that its work is that of all who use it."""
        return log_density if isinstance(log_density, Counted) else cls(log_density, example)

    def __call__(self, z: Tensor) -> Tensor:
        """The log density; each 64 rows are paid for."""
        self.done += self.price * math.ceil(len(z) / ROWS)
        return self.log_density(z)
