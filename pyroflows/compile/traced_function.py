"""Functions traced once and replayed with their gradients: log densities of vectors, losses of minibatches."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_counts
from .audit import EVERY
from .captured import capture
from .cuda_graph import AUTOMATIC
from .graph import Graph
from .kept import Graphs
from .signature import signature

# Shapes of batches that keep a graph.
SHAPES = 4


class TracedDensity:
    """A log density of vectors and its gradient as one graph for a fixed number of rows.

    Calls with other numbers of rows are cut into pieces of that size, the last one filled up. A Pyro model costs
    milliseconds of Python a call; a replay costs what its tensor operations cost.

    Args:
        log_density: maps ``(rows, D)`` to ``(rows,)``, each row on its own, differentiable.
        example: a vector ``(D,)`` where it is finite; sets size, dtype and device. Vectors of another dtype are
            converted when called.
        rows: rows of the graph.

    Raises:
        Untraceable: if a replay would not be right, see :func:`capture`.
        ValueError: when called with vectors of another size.

    Example:
        >>> density = TracedDensity(lambda z: -z.square().sum(-1), torch.zeros(3))
        >>> z = torch.ones(2, 3, requires_grad=True)
        >>> value = density(z)
        >>> value.tolist(), torch.autograd.grad(value.sum(), z)[0][0].tolist()
        ([-3.0, -3.0], [-2.0, -2.0, -2.0])
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], example: Tensor, rows: int = 64) -> None:
        def total(z: Tensor) -> tuple[Tensor, Tensor]:
            values = log_density(z)
            return values.sum(), values

        z = example.detach().expand(rows, -1).clone().requires_grad_()
        self.size, self.rows, self.dtype = len(example), rows, example.dtype
        self.graph = capture(total, [z], parameters=[], has_aux=True)
        self.graph.mode = AUTOMATIC
        self.graph(z)  # made ready, which cannot be done while another graph is traced

    def __call__(self, z: Tensor) -> Tensor:
        """Maps ``(..., D)`` to ``(...)``; differentiable once."""
        return Scored.apply(z, self)

    def value_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The values ``(...)`` and the gradients ``(..., D)`` at ``z`` of shape ``(..., D)``."""
        if z.shape[-1:] != (self.size,):
            raise ValueError(f"TracedDensity expected vectors of size {self.size}, got shape {tuple(z.shape)}")
        flat = z.detach().reshape(-1, self.size).to(self.dtype)
        pieces = [_replay(self.graph, part, self.rows) for part in flat.split(self.rows)]
        values, scores = (torch.cat(part) for part in zip(*pieces, strict=True))
        return values.view(z.shape[:-1]), scores.view(z.shape).to(z.dtype)


def _replay(graph: Graph, z: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Values and gradients of at most ``rows`` rows."""
    count = len(z)
    full = z if count == rows else torch.cat([z, z[-1:].expand(rows - count, -1)])
    (_, values), (score,) = graph(full)
    return values[:count], score[:count]


class Scored(torch.autograd.Function):
    """Value forward; backward the gradient that came with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, density: Any) -> Tensor:
        """The values of a density that has a ``value_and_score``."""
        values, score = density.value_and_score(z)
        ctx.save_for_backward(score)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient that was kept."""
        (score,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * score, None


class TracedLoss:
    """A loss that costs what its tensor operations cost, without the Python that defined it.

    The first batch of a shape is traced, with the gradient, which takes a few tenths of a second; later ones replay
    the graph. It is called like the function, and its value is differentiable once, by the parameters. The function
    itself is run where it cannot be traced (it reads values, or changes tensors as batch normalisation does), where
    shapes come without end, and where a replay's loss is not finite, as it may raise an error that says why. An
    attribute or closure that has changed makes new graphs. Of all else that may change, audits show whether it has: at
    uses 2, 4, 8, ..., 256 of a graph, and then at every 256th, the function is run on the same noise; where loss or
    gradients differ, a warning says since when, and the graph is made anew, but after the third time no more.

    Args:
        function: maps tensors, or None, to a scalar.
        parameters: leaves to differentiate by.
        audit: uses of a graph between audits, once there were some at 2, 4, 8, ...; 0: none.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> loss = TracedLoss(lambda x: (weight * x).sum(), [weight])
        >>> for x in (torch.ones(2), torch.tensor([3.0, 4.0])):
        ...     value = loss(x)
        >>> value.backward()
        >>> value.item(), weight.grad.tolist()
        (7.0, [3.0, 4.0])
    """

    def __init__(self, function: Callable[..., Tensor], parameters: Iterable[Tensor], *, audit: int = EVERY) -> None:
        check_counts("TracedLoss", {"audit": 0}, audit=audit)
        self.function, self.parameters, self.audit = function, list(parameters), audit
        self.retrace()

    def retrace(self) -> None:
        """Forgets all graphs, so that the next batch of each shape is traced anew."""
        self._graphs = Graphs(SHAPES, self.audit, _say)

    def __call__(self, *given: Tensor | None) -> Tensor:
        """The loss of a batch."""
        inputs: list[Tensor] = []
        key, function, parameters = signature(given, inputs), self.function, self.parameters
        absent = [value is None for value in given]

        def of_tensors(*tensors: Tensor) -> Tensor:
            rest = iter(tensors)
            return function(*(None if none else next(rest) for none in absent))

        def make() -> tuple[Graph, None]:
            graph = capture(of_tensors, inputs, parameters=parameters)
            graph.mode = AUTOMATIC
            return graph, None

        kept = self._graphs.find(key, inputs, make, (function,))
        loss = kept and kept.graph.loss(*inputs)
        return loss if kept and loss.isfinite() else function(*given)


def _say(message: str) -> None:
    warnings.warn(f"TracedLoss: {message}", stacklevel=5)
