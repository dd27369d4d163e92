"""A chain of transforms that keeps only its output for the backward pass, and recomputes what lies before it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..autograd import is_autocast, is_traced
from .base import FlowTransform

Parts = Sequence[FlowTransform]


def chain(parts: Parts, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """Maps through the parts in the order given; returns the value and the sum of the ladj."""
    total: Tensor | float = 0.0
    for part in parts:
        z, ladj = part._map(z, context if part.context_dim else None, inverse)
        total = total + ladj
    return z, total


def reversible_chain(parts: Parts, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """The same as :func:`chain`, with a graph that does not grow with the number of parts.

    Where there is nothing to differentiate, or a compiler, functorch or autocast looks on, it is :func:`chain`.
    """
    tensors = () if is_traced(z) else [tensor for part in parts for tensor in state_of(part).values()]
    given = [z, *tensors] if context is None else [z, context, *tensors]
    if is_traced(*given) or is_autocast(z) or not (torch.is_grad_enabled() and any(map(_moves, given))):
        return chain(parts, z, context, inverse)
    return _Reversible.apply(parts, inverse, z, context, *tensors)


class _Reversible(torch.autograd.Function):
    """A chain without a graph; the backward pass rebuilds that of one part at a time, from the last.

    What the parts hold is an input too: gradients reach it, also where parts share it, and the backward
    pass sees what the forward pass saw. Twice differentiable, since each step back is.
    """

    @staticmethod
    def forward(
        parts: Parts, inverse: bool, z: Tensor, context: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        return chain(parts, z, context, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.parts, ctx.inverse, z, context, *tensors = inputs
        ctx.shape = z.shape
        ctx.save_for_backward(output[0], context, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_ladj: Tensor) -> tuple:
        z, context, *tensors = ctx.saved_tensors
        grad_context, grads = None, []
        for part in reversed(ctx.parts):
            cut = len(tensors) - len(state_of(part))
            tensors, own = tensors[:cut], tensors[cut:]
            given = context if part.context_dim else None
            z, _ = map_with(part, own, z, given, not ctx.inverse)
            grad, through_context, *of_own = _pull(part, own, z, given, ctx.inverse, (grad, grad_ladj))
            grads = of_own + grads
            grad_context = _add(grad_context, through_context)
        return None, None, grad.sum_to_size(ctx.shape), grad_context, *grads


def _pull(
    part: FlowTransform, own: list[Tensor], z: Tensor, context: Tensor | None, inverse: bool, grads: tuple
) -> list[Tensor | None]:
    """Gradients for the input, the context and the tensors of one part, from those of its value and ladj."""
    again = torch.is_grad_enabled()  # a graph of this pass was asked for
    with torch.enable_grad():
        leaves = [_leaf(z, again), *(_leaf(t, again) if _moves(t) else t for t in (context, *own))]
        outs = map_with(part, leaves[2:], *leaves[:2], inverse)
        outs, grads = zip(*((o, g) for o, g in zip(outs, grads, strict=True) if o.requires_grad), strict=True)
        moving = [leaf for leaf in leaves if _moves(leaf)]
        found = iter(torch.autograd.grad(outs, moving, grads, create_graph=again, allow_unused=True))
    return [next(found) if _moves(leaf) else None for leaf in leaves]


def _moves(tensor: Tensor | None) -> bool:
    """Whether a gradient is wanted."""
    return tensor is not None and tensor.requires_grad


def _leaf(tensor: Tensor, again: bool) -> Tensor:
    """A tensor to differentiate for, cut from its history unless that is differentiated again."""
    return tensor.view_as(tensor) if again else tensor.detach().requires_grad_()


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of what there is."""
    return second if first is None else first if second is None else first + second


class _Map(nn.Module):
    """A part whose call is its ``_map``, as ``functional_call`` wants it."""

    def __init__(self, part: FlowTransform) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        return self.part._map(*args)


def map_with(part: FlowTransform, own: Sequence[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
    """Maps with the given tensors in place of the part's own."""
    named = {f"part.{name}": tensor for name, tensor in zip(state_of(part), own, strict=True)}
    return functional_call(_Map(part), named, args)


def state_of(part: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}
