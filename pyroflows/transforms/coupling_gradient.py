"""Gradients written out for graphs that are traced: fewer operations than autograd makes of the same maps."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..autograd import gradient_by_autograd, is_plain_backward
from ..nets import MLP, join

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def allowed() -> bool:
    """Whether a graph with gradients is traced or vmap looks on, and nothing that these functions stand in the way of.

    A run without either is left to autograd, whose own calls cost less than one into Python.
    """
    watched = torch._C._functorch.peek_interpreter_stack() is not None or _get_current_dispatch_mode_stack()
    return bool(watched) and is_plain_backward()


class Plan(NamedTuple):
    """What an affine coupling is, besides its tensors.

    Args:
        kept: how many dimensions pass unchanged.
        back: whether they are the last ones.
        bound: of the log scale.
        inverse: the direction.
    """

    kept: int
    back: bool
    bound: float
    inverse: bool

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The kept and the moved half."""
        first = z.shape[-1] - self.kept if self.back else self.kept
        halves = z.split([first, z.shape[-1] - first], dim=-1)
        return halves[::-1] if self.back else halves

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        """The halves in their places."""
        return torch.cat([moved, kept] if self.back else [kept, moved], dim=-1)


def layers_of(net: nn.Module) -> list[Tensor] | None:
    """Weights and biases in turn of an MLP of SiLUs that runs as it was made, None for any other network."""
    parts = list(net) if type(net) is MLP else []
    kinds = [type(part) for part in parts]
    if kinds != [nn.Linear, nn.SiLU] * (len(kinds) // 2) + [nn.Linear]:
        return None
    if any(getattr(part, name) for part in (net, *parts) for name in HOOKS):
        return None
    tensors = [tensor for part in parts[::2] for tensor in (part.weight, part.bias)]
    return None if any(tensor is None for tensor in tensors) else tensors


def affine_coupling(plan: Plan, z: Tensor, context: Tensor | None, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The value and the ladj of an affine coupling; the context has the batch of ``z``.

    Args:
        plan: what the coupling is.
        z: shape ``(..., D)``.
        context: shape ``(..., context_dim)``, or None.
        tensors: of the network, see :func:`layers_of`.
    """
    value, ladj, *_ = _AffineCoupling.apply(plan, z, context, *tensors)
    return value, ladj


def scored_coupling(
    plan: Plan, x: Tensor, context: Tensor | None, score: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The value, the ladj and the carried score of an affine coupling, forward; the last two without gradients.

    Args:
        plan: what the coupling is.
        x: shape ``(..., D)``.
        context: shape ``(..., context_dim)``, or None.
        score: slope of a log density at ``x``, of the shape of ``x``.
        tensors: of the network, see :func:`layers_of`.
    """
    value, ladj, carried, *_ = _ScoredCoupling.apply(plan, x, context, score.detach(), *tensors)
    return value, ladj, carried


class _AffineCoupling(torch.autograd.Function):
    """An affine coupling with its network: the value, the summed ladj, and what the gradient needs besides.

    Twice differentiable: a gradient that is itself differentiated is autograd's own.
    """

    @staticmethod
    def forward(plan: Plan, z: Tensor, context: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        kept, moved = plan.split(z)
        h, hidden = join(kept, context), []
        for weight, bias in zip(tensors[:-2:2], tensors[1:-2:2], strict=True):
            before = linear(h, weight, bias)
            h = silu(before)
            hidden += [before, h]
        shift, log_scale = torch.unflatten(linear(h, *tensors[-2:]), -1, (-1, 2)).unbind(-1)
        # As soft_clip and the bijector have it.
        squash = torch.add(1, log_scale.abs(), alpha=1 / plan.bound)
        ladj = log_scale / squash
        ladj = -ladj if plan.inverse else ladj
        scale = ladj.exp()
        value = (moved - shift) * scale if plan.inverse else shift + scale * moved
        return plan.join(kept, value), ladj.sum(-1), squash, scale, *hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.plan, *given = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.count = len(given)
        ctx.save_for_backward(*given, output[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_ladj: Tensor | None, *unused: None) -> tuple:
        given, made = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if torch.is_grad_enabled():
            return None, *gradient_by_autograd(partial(_AffineCoupling.forward, ctx.plan), given, (grad, grad_ladj))
        return None, *_gradient(ctx.plan, given, made, grad, grad_ladj)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, plan: Plan, *given: Tensor | None) -> tuple[tuple, tuple]:
        dims = in_dims[1:]
        if all(dim is None for dim in dims[2:]):
            fronted = (
                t if t is None else t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
                for t, dim in zip(given[:2], dims, strict=False)
            )
            out = _AffineCoupling.apply(plan, *fronted, *given[2:])
        else:  # a network for each
            out = torch.vmap(partial(_AffineCoupling.forward, plan), dims)(*given)
        return out, (0,) * len(out)


class _ScoredCoupling(torch.autograd.Function):
    """An affine coupling that carries a score along: its Jacobian is triangular, see ``Coupling._map_and_score``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(plan: Plan, x: Tensor, context: Tensor | None, score: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        value, ladj, squash, scale, *hidden = _AffineCoupling.forward(plan, x, context, *tensors)
        score_kept, score_moved = plan.split(score)
        shift = score_moved / scale
        slope = torch.add(1, score_moved * plan.split(x)[1])
        rows = _rows(shift, slope / (squash * squash))
        for index in range(len(tensors) - 2, -1, -2):
            rows = rows @ tensors[index]
            if index:
                rows = torch.ops.aten.silu_backward(rows, hidden[index - 2].view_as(rows))
        through = rows.view(*x.shape[:-1], -1)[..., : plan.kept]
        return value, ladj, plan.join(score_kept - through, shift), squash, scale, *hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.plan, x, context, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.count = 2 + len(tensors)
        ctx.save_for_backward(x, context, *tensors, output[0], *output[3:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *unused: None) -> tuple:
        given, made = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if torch.is_grad_enabled():
            again = partial(_AffineCoupling.forward, ctx.plan)
            x, context, *tensors = gradient_by_autograd(again, given, (grad,))
        else:
            x, context, *tensors = _gradient(ctx.plan, given, made, grad, None)
        return None, x, context, None, *tensors


def _rows(shift: Tensor, slope: Tensor) -> Tensor:
    """Gradients of shifts and log scales as a matrix of rows, in the order in which the network gives them."""
    return torch.stack([shift, slope], dim=-1).view(-1, 2 * shift.shape[-1])


def _gradient(
    plan: Plan, given: Sequence[Tensor], made: Sequence[Tensor], grad: Tensor | None, grad_ladj: Tensor | None
) -> list[Tensor | None]:
    """Gradients for the input, the context, weights and biases."""
    z, context, *tensors = given
    value, squash, scale, *hidden = made
    grad = torch.zeros_like(value) if grad is None else grad
    grad_kept, moving = plan.split(grad)
    kept, moved = plan.split(z)
    grad_moved = moving * scale
    slope = moving * plan.split(value)[1] if plan.inverse else grad_moved * moved
    slope = slope if grad_ladj is None else slope + grad_ladj.unsqueeze(-1)
    slope, shift = (-slope, -grad_moved) if plan.inverse else (slope, moving)
    # Through the network as a matrix of rows.
    rows = _rows(shift, slope / (squash * squash))
    found: list[Tensor] = []
    inputs = [join(kept, context), *hidden[1::2]]
    for index in reversed(range(len(inputs))):
        found += [rows.sum(0), rows.t() @ inputs[index].reshape(len(rows), -1)]
        rows = rows @ tensors[2 * index]
        if index:
            rows = torch.ops.aten.silu_backward(rows, hidden[2 * index - 2].view_as(rows))
    through = rows.view(*z.shape[:-1], -1)
    grad_z = plan.join(grad_kept + through[..., : plan.kept], grad_moved)
    return [grad_z, None if context is None else through[..., plan.kept :], *reversed(found)]
