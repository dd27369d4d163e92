"""An objective as training pursues it: the same at each step, or one that moves."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..distributions import FlowDistribution
from .objectives import Density, Objective, ReverseKL


class Goal(ABC):
    """An objective that says how it changes while a flow is trained for it.

    Attributes:
        steps: over how many steps it moves.
    """

    steps: int

    @staticmethod
    def of(objective: Objective | None) -> "Goal":
        """Any objective as a goal, the reverse KL by default."""
        return objective if isinstance(objective, Goal) else Fixed(objective or ReverseKL())

    @abstractmethod
    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """Log weights, as of any objective."""

    @abstractmethod
    def advance(self) -> None:
        """Moves on after a step."""

    @property
    @abstractmethod
    def new(self) -> bool:
        """Whether it stands where it starts, and a training can take it."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether it moves no more."""

    @abstractmethod
    def tempered(self, density: Density) -> Density:
        """The density that it is for as it stands when that is called."""


@dataclass(frozen=True)
class Fixed(Goal):
    """An objective that stays what it is.

    Args:
        objective: any.

    Example:
        >>> goal = Goal.of(None)
        >>> goal.advance()
        >>> goal.new, goal.done
        (True, True)
    """

    objective: Objective
    steps = 0
    new = done = True

    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """What the objective returns."""
        return self.objective(posterior, density, num_particles)

    def advance(self) -> None:
        """Stays."""

    def tempered(self, density: Density) -> Density:
        """The density itself."""
        return density
