"""What a transform takes: the shape of its events and contexts, its domain and codomain, and checks of them."""

from collections.abc import Sequence

import torch
from pyro.distributions import TransformModule
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor
from torch.distributions.constraints import Constraint

from ..arguments import check_event
from . import inputs
from .domains import whole_space


class EventTransform(TransformModule, ConditionalTransform):
    """Knows the events, contexts, domain and codomain of a transform; see :class:`FlowTransform`."""

    bijective = True
    sign = 1
    batch_shape = torch.Size()

    def __init__(self, input_dim: int | Sequence[int], context_dim: int = 0) -> None:
        super().__init__()
        shape = tuple(input_dim) if isinstance(input_dim, Sequence) else (input_dim,)
        check_event(type(self).__name__, shape, context_dim)
        self.event_shape, self.context_dim = torch.Size(shape), context_dim

    @property
    def input_dim(self) -> int:
        """The size of the vectors; other events have an :attr:`event_shape` alone."""
        inputs.check_vectors(self._name, self.event_shape)
        return self.event_shape[0]

    @property
    def domain(self) -> Constraint:
        """Where inputs lie, as a constraint of whole events; the whole space, unless a subclass overrides it."""
        return whole_space(self.event_shape)

    @property
    def codomain(self) -> Constraint:
        """What the domain is mapped onto; the whole space, unless a subclass overrides it."""
        return whole_space(self.event_shape)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """The shape that an input of ``shape`` is mapped to: batches broadcast with the context's."""
        batch, event = self._cut(shape)
        if event != self.event_shape:
            raise ValueError(f"{self._name} expected a shape {inputs.shape_of(self.event_shape)}, got {tuple(shape)}")
        return torch.broadcast_shapes(batch, self.batch_shape) + event

    inverse_shape = forward_shape

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        vectors = len(self.event_shape) == 1
        return (f"input_dim={self.input_dim}" if vectors else f"event_shape={tuple(self.event_shape)}") + context

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _takes(self, inverse: bool) -> torch.dtype | str | None:
        """The dtype of what is mapped one way: that of the parameters, None without any, "any" where it converts."""
        if torch.compiler.is_compiling():  # and cannot look for parameters where there are none
            return None
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def _cut(self, shape: torch.Size) -> tuple[torch.Size, torch.Size]:
        """The batch and the event of a shape."""
        at = max(0, len(shape) - len(self.event_shape))
        return shape[:at], shape[at:]

    def _check_context(self, context: Tensor | None) -> None:
        inputs.check_context(self._name, self.context_dim, context)
        if context is not None:
            inputs.check_dtype(self._name, "a context", context, EventTransform._takes(self, False))

    def _check_call(self, z: Tensor, context: Tensor | None, inverse: bool) -> None:
        inputs.check_input(self._name, self.event_shape, z)
        if inputs.is_readable(z):
            inputs.check_domain(self._name, self.codomain if inverse else self.domain, z)
        inputs.check_dtype(self._name, "an input", z, self._takes(inverse))
        self._check_context(context)
        given = self.batch_shape if context is None else context.shape[:-1]
        inputs.check_batches(self._name, self._cut(z.shape)[0], given)
