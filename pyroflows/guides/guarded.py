"""A transform in training: a draw whose gradient is not finite is left out of the step."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ..autograd import is_traced
from ..transforms import FlowTransform


class Guarded(FlowTransform):
    """A view of a transform through which no gradient passes that is not finite.

    Where the gradient by a draw, or by its log-determinant, is NaN or infinite, both are zero: the parameters stay
    finite whatever the optimizer, and other draws of the step count as before.

    Args:
        transform: an unconditional transform, or one that is conditioned.
    """

    def __init__(self, transform: FlowTransform) -> None:
        super().__init__(transform.input_dim)
        self.transform, self.batch_shape, self.fast = transform, transform.batch_shape, transform.fast

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        value, ladj = self.transform._map(z, context, inverse)
        return (value, ladj) if inverse or not torch.is_grad_enabled() else _Finite.apply(value, ladj)


class _Finite(torch.autograd.Function):
    """The same values; gradients of the rows where all are finite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        return value.view_as(value), ladj.view_as(ladj)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, by_value: Tensor, by_ladj: Tensor) -> tuple[Tensor, Tensor]:
        good = (by_value.sum(-1) + by_ladj).isfinite()  # one test for all, which is cheaper where a graph is replayed
        if not is_traced(by_value) and not good.all():
            warnings.warn(
                f"AutoFlow leaves {int((~good).sum())} of {good.numel()} draws out of this step, since their gradient "
                f"is not finite: look for a density that is infinite or NaN, or take a smaller rate",
                stacklevel=2,
            )
        return by_value.where(good.unsqueeze(-1), 0.0), by_ladj.where(good, 0.0)
