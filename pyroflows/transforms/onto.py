"""From the whole space onto a half line, an interval or another constraint, so that a flow may end there."""

from collections.abc import Sequence

from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from .base import FlowTransform
from .domains import on_events, without_dims
from .foreign import evaluate


class Onto(FlowTransform):
    """Maps the whole space onto a constraint by torch's ``biject_to``; both directions are cheap, nothing is learnt.

    Put last into a :class:`Compose`, it makes what a flow draws positive, or keeps it in an interval, and
    ``FlowDistribution.support`` says so.

    Args:
        constraint: of ``torch.distributions.constraints``, of numbers (``positive``, ``interval(low, high)`` with
            numbers, or tensors that broadcast with events) or of whole events.
        input_dim: size ``D`` of the vectors, or the shape of the events.

    Raises:
        ValueError: if torch knows no bijection onto the constraint, or only one that changes shapes.

    Example:
        >>> import torch
        >>> from torch.distributions import constraints
        >>> from pyroflows.transforms import Affine, Compose
        >>> flow = Compose([Affine(2), Onto(constraints.interval(-1.0, 3.0), 2)])
        >>> flow(torch.zeros(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, constraint: Constraint, input_dim: int | Sequence[int]) -> None:
        super().__init__(input_dim)
        self.constraint = on_events(constraint, self.event_shape)
        try:
            bare, _ = without_dims(self.constraint)
            self._bijection = biject_to(bare)
            shape = self._bijection.forward_shape(self.event_shape)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(
                f"Onto expected a constraint that torch's biject_to knows, of events of shape "
                f"{tuple(self.event_shape)}, got {constraint}: register a bijection, or take another constraint"
            ) from error
        if shape != self.event_shape:
            raise ValueError(
                f"Onto expected a constraint that keeps shapes, got {constraint}, whose bijection makes {tuple(shape)} "
                f"of {tuple(self.event_shape)}: transform coordinates of that size, and map them afterwards"
            )

    @property
    def codomain(self) -> Constraint:
        """The constraint, of whole events."""
        return self.constraint

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return evaluate(self._bijection, z, inverse, self.event_shape)

    def extra_repr(self) -> str:
        """Sizes and constraint."""
        return f"{super().extra_repr()}, {self.constraint}"
