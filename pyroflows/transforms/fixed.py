"""A transform whose parameters stand still: gradients flow through what is mapped alone."""

from torch import Tensor

from .base import View
from .compose_reversible import map_with, state_of


class Fixed(View):
    """A view of an unconditional or conditioned transform, over the same tensors, none of which gets a gradient."""

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        tensors = [tensor.detach() for tensor in state_of(self.transform).values()]
        return map_with(self.transform, tensors, z, context, inverse)
