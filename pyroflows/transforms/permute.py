"""Permutations of the dimensions, and orders of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_sizes
from ..autograd import is_compiled_backward
from .base import FlowTransform
from .coupling_gradient import allowed


class Permute(FlowTransform):
    """Reorders the dimensions: ``y[i] = x[order[i]]``, ladj 0. The order is a buffer, so it is saved.

    Args:
        input_dim: size ``D`` of the vectors.
        order: ``"random"`` (drawn from torch's generator), ``"reversed"``, or the ``D`` indices.

    Raises:
        ValueError: if ``order`` is not a permutation.

    Example:
        >>> Permute(3, [2, 0, 1])(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 1., 2.])
    """

    def __init__(self, input_dim: int, order: str | Sequence[int] | Tensor = "random") -> None:
        super().__init__(input_dim)
        order = as_order(order, input_dim)
        self.register_buffer("order", order)
        self.register_buffer("order_back", order.argsort())

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        orders = (self.order_back, self.order) if inverse else (self.order, self.order_back)
        return reorder(z, *orders), z.new_zeros(z.shape[:-1])

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self._map(x, context, False), reorder(score, self.order, self.order_back)


def as_order(order: str | Sequence[int] | Tensor, input_dim: int) -> Tensor:
    """Returns a permutation of ``range(input_dim)`` as a tensor of integers."""
    check_sizes("an order", input_dim)
    if isinstance(order, str):
        if order == "random":
            return torch.randperm(input_dim)
        if order in ("reversed", "natural"):
            places = torch.arange(input_dim)
            return places.flip(0) if order == "reversed" else places
    else:
        given = torch.as_tensor(order)
        if sorted(given.flatten().tolist()) == list(range(input_dim)):
            return given.flatten().long()
    raise ValueError(
        f"expected an order that is 'natural', 'reversed', 'random' or a permutation of "
        f"range({input_dim}), got {order!r}"
    )


def reorder(z: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Takes the last dimension in an order, given also the order back.

    Inductor, of torch 2.13 at least, adds autograd's gradient of it to wrong rows, and to memory of others.
    """
    return _Reorder.apply(z, order, back) if allowed() or is_compiled_backward() else z.index_select(-1, order)


class _Reorder(torch.autograd.Function):
    """Reordering back is its gradient; autograd's own adds into zeros."""

    @staticmethod
    def forward(z: Tensor, order: Tensor, back: Tensor) -> Tensor:
        return z.index_select(-1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        order, back = ctx.saved_tensors
        return _Reorder.apply(grad, back, order), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, z: Tensor, order: Tensor, back: Tensor) -> tuple[Tensor, int]:
        if in_dims[1:] == (None, None):
            return _Reorder.apply(z.movedim(in_dims[0], 0), order, back), 0
        return torch.vmap(lambda z, order: z.index_select(-1, order), in_dims[:2])(z, order), 0
