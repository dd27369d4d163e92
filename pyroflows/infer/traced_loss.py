"""The loss of minibatches, replayed together with its gradient, by a graph for each shape of batch."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cuda_graph import AUTOMATIC
from .graph import Graph, capture
from .guard import Untraceable
from .signature import signature
from .watch import Watch

# Shapes of batches that get a graph, and changes of what the loss reads after which no more are made.
SHAPES, CHANGES = 4, 3


class TracedLoss:
    """A loss that costs what its tensor operations cost, without the Python that defined it.

    The first batch of a shape is traced, with the gradient, which takes a few tenths of a second; later ones replay
    the graph. It is called like the function, and its value is differentiable once, by the parameters. The function
    itself is run where it cannot be traced (it reads values, or changes tensors as batch normalisation does), for
    shapes beyond the first few, and where a replay's loss is not finite, as it may raise an error that says why. An
    attribute or closure that has changed makes new graphs.

    Args:
        function: maps tensors, or None, to a scalar.
        parameters: leaves to differentiate by.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> loss = TracedLoss(lambda x: (weight * x).sum(), [weight])
        >>> for x in (torch.ones(2), torch.tensor([3.0, 4.0])):
        ...     value = loss(x)
        >>> value.backward()
        >>> value.item(), weight.grad.tolist()
        (7.0, [3.0, 4.0])
    """

    def __init__(self, function: Callable[..., Tensor], parameters: Iterable[Tensor]) -> None:
        self.function, self.parameters = function, list(parameters)
        self._watch, self._changes = Watch(function), 0
        self._graphs: dict[Hashable, Graph | None] = {}

    def __call__(self, *given: Tensor | None) -> Tensor:
        """The loss of a batch."""
        inputs: list[Tensor] = []
        graph = self._graph(signature(given, inputs), given, inputs)
        if graph is None:
            return self.function(*given)
        loss = _Replay.apply(graph, inputs, *self.parameters)
        return loss if loss.isfinite() else self.function(*given)

    def _graph(self, key: Hashable, given: tuple, inputs: list[Tensor]) -> Graph | None:
        """The graph for batches of a shape, None where the function is run."""
        if self._watch.changed():
            self._watch, self._changes = Watch(self.function), self._changes + 1
            self._graphs.clear()
        graph = self._graphs.get(key)
        if graph is not None and not graph.current:
            graph = self._graphs.pop(key)
        if key not in self._graphs and len(self._graphs) < SHAPES and self._changes < CHANGES:
            self._graphs[key] = self._trace(given, inputs)
            self._watch = Watch(self.function, before=self._watch)
        return self._graphs.get(key)

    def _trace(self, given: tuple, inputs: list[Tensor]) -> Graph | None:
        def function(*tensors: Tensor) -> Tensor:
            rest = iter(tensors)
            return self.function(*(None if value is None else next(rest) for value in given))

        try:
            graph = capture(function, inputs, parameters=self.parameters)
        except Untraceable:
            return None
        graph.mode = AUTOMATIC
        return graph


class _Replay(torch.autograd.Function):
    """The loss forward; backward the gradient that came with it."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, inputs: list[Tensor], *parameters: Tensor) -> Tensor:
        loss, ctx.gradients = graph(*inputs)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple:
        gradients, ctx.gradients = ctx.gradients, None  # else they would be copied
        if slope != 1:
            gradients = [g if g is None else g * slope for g in gradients]
        return None, None, *gradients
