"""What a transform makes of a part of its domain."""

from torch import Tensor
from torch.distributions.constraints import Constraint

from ..transforms import FlowTransform
from ..transforms.domains import on_events


class Image(Constraint):
    """The values that a transform maps some of its domain to, as the support of a flow over a uniform base.

    Args:
        inside: the constraint on what is mapped.
        transform: the map.
    """

    def __init__(self, inside: Constraint, transform: FlowTransform) -> None:
        self.inside = on_events(inside, transform.event_shape)
        self.transform, self.event_dim = transform, len(transform.event_shape)

    def check(self, value: Tensor) -> Tensor:
        """Whether each value of shape ``(..., *event_shape)`` comes from inside."""
        self.transform._check_context(None)
        back, _ = self.transform._map(value, None, True)  # a value off the codomain may be NaN there
        return self.transform.codomain.check(value) & self.inside.check(back)

    def __repr__(self) -> str:
        return f"Image({self.inside} by {type(self.transform).__name__})"
