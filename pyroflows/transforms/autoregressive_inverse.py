"""The slow direction of an autoregressive flow in one pass of multiplications, with implicit gradients.

Hidden units of a :class:`~pyroflows.nets.MaskedMLP` are sorted by degree: a step needs only those that see the inputs
before it, and each entry of each weight is used once. The gradient needs ``J^-T g`` for the triangular Jacobian ``J``
of the parallel direction: the same walk backward. Tensors have the batch last here, so that slices are contiguous.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from ..autograd import is_traced
from ..bijectors import Bijector
from ..nets import MaskedMLP

Tensors = Sequence[Tensor]
BLOCK = 16
REMEDY = (
    "take the flow's cheap direction (fast='forward' of iaf, 'inverse' of maf), or a flow that is cheap both ways, as "
    "flows.realnvp or flows.nsf"
)


def invert(net: MaskedMLP, bijector: Bijector, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solves ``y_i = f(x_i; net(x_1..x_{i-1}, context))`` for ``x`` of shape ``(..., D)``.

    Returns:
        ``x`` and the log-determinant ``log |dx/dy|`` of shape ``(...)``, both differentiable once.
    """
    weights, offsets = net.weights(), net.offsets(context)
    batch = torch.broadcast_shapes(y.shape[:-1], offsets[0].shape[:-1])
    first = offsets[0]
    if context is not None:
        first = first.expand(*batch, -1).reshape(batch.numel(), first.shape[-1])
    y = y.expand(*batch, -1).reshape(batch.numel(), y.shape[-1])
    tensors = y, first, *weights, *offsets[1:]
    kind = _Invert if torch.compiler.is_compiling() else _Explained
    solve = kind.apply if _needs_graph(tensors) else kind.forward
    x, ladj = solve(net, bijector, len(weights), *tensors)
    return x.reshape(*batch, y.shape[-1]), ladj.reshape(batch)


def _needs_graph(tensors: Tensors) -> bool:
    """False where a compiler has nothing to differentiate: there torch 2.13 calls ``forward`` with a ctx."""
    traced = torch.compiler.is_compiling()
    return not traced or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


class _Invert(torch.autograd.Function):
    """Inversion without a graph; the backward pass differentiates the parallel direction once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        net: MaskedMLP, bijector: Bijector, depth: int, y: Tensor, first: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        arguments = net, bijector, y, rest[:depth], (first, *rest[depth:])
        if is_traced(y):
            return _forward_walk(*arguments)
        with torch.inference_mode():  # leaves out autograd's bookkeeping of many small steps
            x, ladj = _forward_walk(*arguments)
        return x.clone(), ladj.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.net, ctx.bijector, ctx.depth, _, *tensors = inputs
        ctx.save_for_backward(output[0], *tensors)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_ladj: Tensor) -> tuple:
        x, *tensors = ctx.saved_tensors

        def parallel(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            return _parallel(ctx.net, ctx.bijector, ctx.depth, *inputs)

        (y, _), pull = vjp(parallel, x, *tensors)
        through_ladj = pull((torch.zeros_like(y), grad_ladj))[0]
        weights, offsets = tensors[1 : 1 + ctx.depth], (tensors[0], *tensors[1 + ctx.depth :])
        grad_y = _backward_walk(ctx.net, ctx.bijector, x, grad_x - through_ladj, weights, offsets)
        grads = grad_y, *pull((-grad_y, -grad_ladj))[1:]
        # One dimension has no walk, and all derivatives.
        final = torch.is_grad_enabled() and not torch.compiler.is_compiling() and x.shape[-1] > 1
        return None, None, None, *(_Last.apply(*grads) if final else grads)


class _Explained(_Invert):
    """The same, which says that it has no derivative in forward mode; a compiler takes none that has a ``jvp``."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple:
        raise NotImplementedError(f"an incremental inverse has no forward-mode derivative: {REMEDY}")


class _Last(torch.autograd.Function):
    """The same gradients, which say that they have none of their own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        raise NotImplementedError(f"an incremental inverse has no second derivative: {REMEDY}")

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple:
        raise NotImplementedError(f"an incremental inverse has no second derivative: {REMEDY}")


def _parallel(
    net: MaskedMLP, bijector: Bijector, depth: int, x: Tensor, first: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    """The cheap direction as a pure function of ``x``, the first offset, the weights and other offsets."""
    flat = net.run(x, rest[:depth], (first, *rest[depth:]))
    y, ladj = bijector.forward(x, *bijector.unpack(flat))
    return y, ladj.sum(-1)


def _blank(rows: int, *tensors: Tensor) -> Tensor:
    """Zeros of shape ``(rows, batch)`` that may be written in place also where any tensor is under vmap."""
    like = sum(t.flatten()[:1].sum() for t in tensors).expand(rows, tensors[0].shape[0])
    return torch.zeros_like(like, memory_format=torch.contiguous_format)


def _adder() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Adds the product of two matrices to a third in place, under vmap by operations that it has rules for."""
    plain = torch._C._functorch.peek_interpreter_stack() is None
    return Tensor.addmm_ if plain else lambda total, a, b: total.add_(a @ b)


def _overwriting(activation: nn.Module, traced: bool) -> Callable[[Tensor], object]:
    """Overwrites its argument with the activation of it, at once where torch has the activation in place."""
    if not traced and type(activation).__module__ == "torch.nn.modules.activation" and hasattr(activation, "inplace"):
        activation = copy.copy(activation)
        activation.inplace = True
        return activation.forward
    return lambda units: units.copy_(activation(units))


def _forward_walk(
    net: MaskedMLP, bijector: Bijector, y: Tensor, weights: Tensors, offsets: Tensors
) -> tuple[Tensor, Tensor]:
    """Finds ``x`` step by step, and its ladj; ``y`` has shape ``(N, D)``."""
    dims = [span.stop - span.start for span in net.spans]
    sizes = [dims, *(_steps(net, k) for k in range(1, len(weights))), [net.group * n for n in dims]]
    # A level starts as what is added to it, so that products are summed up in place: x, hidden units, parameters.
    levels = [_blank(sum(size), y, *weights, *offsets) for size in sizes]
    for level, offset in zip(levels[1:], offsets, strict=True):
        level += offset.T if offset.dim() == 2 else offset.unsqueeze(-1)
    given, found, ladjs = y.T.contiguous().split(dims), levels[0].split(dims), []
    activate, add = _overwriting(net.activation, is_traced(y)), _adder()
    params = bijector.unpack(torch.unflatten(levels[-1], 0, (net.input_dim, net.group)).movedim(1, -1))
    params = list(zip(*(p.split(dims) for p in params), strict=True))
    for first in range(0, len(dims), BLOCK):
        layers = [_block(weights[k], *levels[k : k + 2], *sizes[k : k + 2], first) for k in range(len(weights))]
        for i, (*hidden, (flat, row, known)) in enumerate(zip(*layers, strict=True), first):
            before = None
            for (units, rows, below), skip in zip(hidden, net.skips, strict=True):
                if len(units):
                    activate(add(units, rows, below))
                    before = units.add_(before) if skip else units
            add(flat, row, known)
            x, ladj = bijector.inverse(given[i], *params[i])
            found[i].copy_(x)
            ladjs.append(ladj)
    return levels[0].T.contiguous(), torch.cat(ladjs).sum(0)


def _block(weight: Tensor, below: Tensor, level: Tensor, sizes_below: list[int], sizes: list[int], first: int) -> list:
    """Adds to the units of a block of steps what earlier blocks tell, and cuts what its own steps multiply.

    Returns:
        For each step its units, its rows of the weight, and the units below that the block computes. Those that are
        not known at a step have weights of zero there: fewer views cost less than the products with them.
    """
    (start, stop), (known, new) = _span(sizes, first), _span(sizes_below, first)
    units, weight = level[start:stop], weight[start:stop]
    if known:
        _adder()(units, weight[:, :known], below[:known])
    part = sizes[first : first + BLOCK]
    return list(zip(units.split(part), weight[:, known:new].split(part), [below[known:new]] * len(part), strict=True))


def _span(sizes: list[int], first: int) -> tuple[int, int]:
    """The units of a level that become computable in the block of steps that begins with ``first``."""
    start = sum(sizes[:first])
    return start, start + sum(sizes[first : first + BLOCK])


def _steps(net: MaskedMLP, layer: int) -> list[int]:
    """How many units of a layer become computable at each step."""
    seen = [0, *(net.seen(layer, span.start) for span in net.spans)]
    return [after - before for before, after in itertools.pairwise(seen)]


def _backward_walk(
    net: MaskedMLP, bijector: Bijector, x: Tensor, grad: Tensor, weights: Tensors, offsets: Tensors
) -> Tensor:
    """Solves ``J^T v = grad`` for the Jacobian ``J = dy/dx`` of the parallel direction at ``x``."""
    bends, slope, by_param = _linearize(net, bijector, x, weights, offsets)
    cotangents = [_blank(w.shape[0], grad, *weights, *offsets) for w in weights]
    solved = _blank(net.input_dim, grad, *weights, *offsets)
    fed = 0.0
    for here, past in itertools.pairwise([*reversed(net.spans), None]):
        solved[here] = (grad[:, here].T - fed) / slope[:, here].T
        if past is None:
            break
        start, passed = here.start * net.group, 0.0
        each = by_param.unflatten(0, (net.input_dim, -1))[here] * solved[here].unsqueeze(1)
        cotangents[-1][start : here.stop * net.group] = each.flatten(0, 1)
        for k in reversed(range(1, len(weights))):
            new = slice(net.seen(k, past.start), net.seen(k, past.stop))
            if new.start < new.stop:
                back = weights[k][start:, new].T @ cotangents[k][start:]
                passed = back + passed if k < len(net.skips) and net.skips[k] else back
                cotangents[k - 1][new] = passed * bends[k - 1][new]
            start = new.start
        fed = weights[0][start:, past].T @ cotangents[0][start:]
    return solved.T


def _linearize(
    net: MaskedMLP, bijector: Bijector, x: Tensor, weights: Tensors, offsets: Tensors
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Slopes of the activations, ``dy/dx`` at fixed parameters, and ``dy/dparams``, at a solution ``x``."""
    bends, h, last = [], x, len(weights) - 1
    for k in range(last + 1):
        pre = h @ weights[k].T + offsets[k]
        if k < last:
            units, pull = vjp(net.activation, pre)
            bends.append(pull(torch.ones_like(units))[0].T)
            h = h + units if net.skips[k] else units

    def from_flat(flat: Tensor) -> tuple[Tensor, Tensor]:
        return bijector.forward(x, *bijector.unpack(torch.unflatten(flat, -1, (net.input_dim, net.group))))

    y, pull, ladj = vjp(from_flat, pre, has_aux=True)
    return bends, ladj.exp(), pull(torch.ones_like(y))[0].T
