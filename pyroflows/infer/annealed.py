"""An objective whose density becomes the model's by and by."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..distributions import FlowDistribution
from .goal import Goal
from .objectives import Density, Objective, ReverseKL


@dataclass(frozen=True, eq=False)
class Annealed(Goal):
    """An objective for ``p ** beta``, where ``beta`` rises to 1: mass moves between modes while these are still low.

    ``beta`` rises by a constant factor at each :meth:`advance`, which ``fit`` and ``FlowELBO`` call after each step;
    ``fit`` also looks for its start at the first ``beta``. The values are those of the model as it is. An instance is
    for one training: ``beta`` is a tensor and moves.

    Args:
        steps: over how many steps it rises.
        first: the first beta.
        objective: what is annealed, the reverse KL by default.

    Raises:
        ValueError: if ``steps`` is not positive or ``first`` not between 0 and 1.

    Example:
        >>> objective = Annealed(steps=2, first=0.25)
        >>> for _ in range(3):
        ...     print(round(objective.beta.item(), 3))
        ...     objective.advance()
        0.25
        0.5
        1.0
    """

    steps: int = 2000
    first: float = 0.05
    objective: Objective = field(default_factory=ReverseKL)
    beta: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.first < 1:
            raise ValueError(f"Annealed expected steps >= 1 and 0 < first < 1, got {self.steps} and {self.first}")
        object.__setattr__(self, "beta", torch.tensor(self.first, dtype=torch.float64))

    def advance(self) -> None:
        """One step further towards ``beta`` 1, in place: a traced graph reads the new value."""
        self.beta.mul_(self.first ** (-1 / self.steps)).clamp_(max=1.0)

    @property
    def new(self) -> bool:
        """Whether ``beta`` is the first."""
        return bool(self.beta == self.first)

    @property
    def done(self) -> bool:
        """Whether ``beta`` is 1."""
        return bool(self.beta > 1 - 1e-6)

    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """Log weights of shape ``(num_particles,)``, not annealed, with the annealed gradient."""
        seen: list[Tensor] = []

        def noted(z: Tensor) -> Tensor:
            seen.append(density(z))
            return seen[-1]

        return self.objective(posterior, self.tempered(noted), num_particles) + (1 - self.beta) * seen[-1].detach()

    def tempered(self, density: Density) -> Density:
        """The log density times ``beta`` as it is when called."""
        return lambda z: self.beta * density(z)
