"""A transform in training: a draw whose gradient is not finite is left out of the step."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ..autograd import is_traced
from ..transforms.base import View


class Guarded(View):
    """A view of a transform through which no gradient passes that is not finite.

    Where the gradient by a draw, or by its log-determinant, is NaN or infinite, both are zero: the parameters stay
    finite whatever the optimizer, and other draws of the step count as before.

    Args:
        transform: an unconditional transform, or one that is conditioned.
    """

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        value, ladj = self.transform._map(z, context, inverse)
        if inverse or not torch.is_grad_enabled():
            return value, ladj
        return _Finite.apply(value, ladj, len(self.event_shape))


class _Finite(torch.autograd.Function):
    """The same values; gradients of the rows where all are finite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, ladj: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        return value.view_as(value), ladj.view_as(ladj)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *_, ctx.event_dim = inputs

    @staticmethod
    def backward(ctx: Any, by_value: Tensor, by_ladj: Tensor) -> tuple[Tensor, Tensor, None]:
        event = tuple(range(-ctx.event_dim, 0))
        good = (by_value.sum(event) + by_ladj).isfinite()  # one test for all: cheaper where a graph is replayed
        if not is_traced(by_value) and not good.all():
            warnings.warn(
                f"AutoFlow leaves {int((~good).sum())} of {good.numel()} draws out of this step, since their gradient "
                f"is not finite: look for a density that is infinite or NaN, or take a smaller rate",
                stacklevel=2,
            )
        each = good[(..., *(None for _ in event))]
        return by_value.where(each, 0.0), by_ladj.where(good, 0.0), None
