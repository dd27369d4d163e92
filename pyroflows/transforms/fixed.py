"""A transform whose parameters stand still: gradients flow through what is mapped alone."""

import torch
from torch import Tensor

from .base import FlowTransform
from .compose_reversible import map_with, state_of


class Fixed(FlowTransform):
    """A view of an unconditional or conditioned transform, over the same tensors, none of which gets a gradient."""

    def __init__(self, transform: FlowTransform) -> None:
        super().__init__(transform.input_dim)
        self.transform, self.batch_shape, self.fast = transform, transform.batch_shape, transform.fast

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        tensors = [tensor.detach() for tensor in state_of(self.transform).values()]
        return map_with(self.transform, tensors, z, context, inverse)

    def _takes(self, inverse: bool) -> torch.dtype | str | None:
        return self.transform._takes(inverse)
