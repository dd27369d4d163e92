"""A whole training step as one graph: loss, gradient and optimizer, on parameters that lie in one vector."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import Untraceable
from .graph import Graph
from .simplify import trace

Update = Callable[[Any, Tensor, list[Tensor]], list[Tensor]]


def fuse(
    graph: Graph, parameters: Sequence[Tensor], update: Update, state: Sequence[Tensor], inputs: Sequence[Tensor] = ()
) -> Graph:
    """Makes one graph of a captured loss and of what is done with its gradient.

    Args:
        graph: what :func:`capture` made of the loss.
        parameters: those to train, of one dtype and device; others that the loss depends on are read only.
        update: maps the value of the captured function, the gradient as one vector and the state to the new state
            and what a step returns, as one list.
        state: tensors that each step changes in place; the first is the vector of the parameters.
        inputs: tensors of the shapes that the graph was traced with.

    Returns:
        A graph whose parameters are the state: ``graph.run(*state, *graph.closed, *inputs)`` makes a step.

    Example:
        >>> from pyroflows.compile import capture
        >>> x = torch.ones(2, requires_grad=True)
        >>> flat = lay_flat([x])
        >>> graph = capture(lambda: (x * x).sum())
        >>> step = fuse(graph, [x], lambda loss, slope, state: [state[0] - 0.1 * slope, loss], [flat])
        >>> step.run(flat), x
        ([tensor(2.)], tensor([0.8000, 0.8000], requires_grad=True))
    """
    sizes, leaves = [p.numel() for p in parameters], graph.spec.num_leaves
    place = {id(p): index for index, p in enumerate(parameters)}
    others = [p for p in graph.parameters if id(p) not in place]
    with_gradient = [id(p) for p, used in zip(graph.parameters, graph.used, strict=False) if used]
    specs: list[pytree.TreeSpec] = []

    def step(*tensors: Tensor) -> list[Tensor]:
        own, rest = list(tensors[: len(state)]), iter(tensors[len(state) :])
        parts = [v.view(p.shape) for v, p in zip(own[0].split(sizes), parameters, strict=True)]
        found = graph.module(*(parts[place[id(p)]] if id(p) in place else next(rest) for p in graph.parameters), *rest)
        slopes = dict(zip(with_gradient, found[leaves:], strict=False))
        both = zip(parameters, parts, strict=True)
        slope = torch.cat([slopes.get(id(p), torch.zeros_like(part)).flatten() for p, part in both])
        new = update(pytree.tree_unflatten(list(found[:leaves]), graph.spec), slope, own)
        for old, value in zip(own, new, strict=False):
            old.copy_(value)
        specs.append(pytree.tree_flatten(new[len(state) :])[1])
        return new[len(state) :]

    closed = [*others, *graph.closed]
    module = trace(step, [*state, *closed, *inputs])
    return Graph(module, list(state), closed, specs[0], [])


def lay_flat(parameters: Sequence[Tensor]) -> Tensor:
    """Makes the parameters views of one vector, which is returned; their values stay.

    Raises:
        Untraceable: if they differ in dtype or device, or share memory.
    """
    if len({(p.dtype, p.device) for p in parameters}) != 1:
        raise Untraceable("the parameters differ in dtype or device")
    if len({p.data_ptr() for p in parameters if p.numel()}) < sum(p.numel() > 0 for p in parameters):
        raise Untraceable("some parameters share their memory")
    flat = torch.cat([p.detach().flatten() for p in parameters])
    for p, value in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data = value.view(p.shape)
    return flat
