"""Losses and gradients that a graph has computed, where autograd, optimizers and users look for them."""

from typing import Any

import torch
from pyro.util import warn_if_inf, warn_if_nan
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cached_step import Step


class StepLoss(torch.autograd.Function):
    """The loss of a step, with the gradients that its graph has already computed."""

    @staticmethod
    def forward(ctx: Any, step: Step, count: int, *tensors: Tensor) -> Tensor:
        """The loss, at so many inputs and then parameters; the gradients are kept."""
        loss, gradients = step.graph(*tensors[:count])
        rest = iter(gradients[len(step.graph.parameters) :])
        by_input = [next(rest) if t.requires_grad else None for t in tensors[:count]]
        ctx.gradients = [g if g is None else g.clone() for g in (*by_input, *gradients[: len(step.graph.parameters)])]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple:
        """The gradients that were kept."""
        return None, None, *(g if g is None else g * slope for g in ctx.gradients)


def accumulate(leaves: list[Tensor], gradients: list[Tensor | None]) -> None:
    """Adds gradients to ``grad`` as ``backward`` does."""
    old, new = [], []
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None and leaf.grad is None:
            leaf.grad = gradient.clone(memory_format=torch.contiguous_format)
        elif gradient is not None:
            old.append(leaf.grad)
            new.append(gradient)
    if old:
        torch._foreach_add_(old, new)


def checked(loss: float) -> float:
    """The loss, announced as Pyro does where it is NaN, and also where it is infinite."""
    return warn_if_inf(warn_if_nan(loss, "loss"), "loss")
