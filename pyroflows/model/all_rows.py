"""A log joint summed over all rows of its subsampled plates, batch by batch, in the memory of one batch."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..compile import Graph, Untraceable, capture
from ..compile.traced_function import Scored
from .plates import Choice, Plates

Batch = Callable[[Tensor, Choice], Tensor]
# Numbers that one run of a batch handles, about: vectors times rows. More do not fit the fast memory of a processor.
NUMBERS = 32_768
# Without a graph a run takes milliseconds of Python, and so many times as many vectors. From so many runs it pays to
# trace one, which takes a second.
PLAIN, TRACE_FROM = 8, 200


class AllRows:
    """The sum of a log joint over all rows, a function of vectors with its gradient.

    Args:
        batch: maps vectors ``(B, D)`` and a choice of rows to ``(B,)``, each vector by itself; differentiable.
        plates: the plates that are subsampled.
        rows: how many vectors are evaluated together; None: as many as their batches suit.
        traced: trace a batch at the first call, to be replayed by later ones; None: anew where a call is long, since
            what the model reads may have changed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyroflows import log_joint
        >>> def model(y, size=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(y), subsample_size=size) as rows:
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])
        >>> y, z = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(1)
        >>> log_joint(model, y)(z), log_joint(model, y, size=2)(z)
        (tensor(-10.6758), tensor(-10.6758))
    """

    def __init__(self, batch: Batch, plates: Plates, rows: int | None = None, traced: bool | None = None) -> None:
        self.batch, self.plates, self.traced = batch, plates, traced
        self._most = max(count for _, count in plates.sizes.values())
        self.rows = rows or max(16, NUMBERS // self._most)
        self._some: list[Choice] = []
        self._graphs: dict[bool, Graph | None] = {}

    def some(self, rows: int) -> "AllRows":
        """The same from so many rows, about, chosen at random now: as if all were like these."""
        count = math.ceil(rows / self._most)
        twin = copy.copy(self)
        if count < self.plates.runs:
            twin._some = [self.plates.random() for _ in range(count)]
        return twin

    def __call__(self, z: Tensor) -> Tensor:
        """Maps ``(B, D)`` to ``(B,)``; differentiable once."""
        moves = z.requires_grad and torch.is_grad_enabled()
        return Scored.apply(z, self) if moves else self.values(z)

    def values(self, z: Tensor) -> Tensor:
        """The values ``(B,)`` at vectors ``(B, D)``."""
        return self._sums(z, grad=False)[0]

    def value_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The values ``(B,)`` and the gradients ``(B, D)`` at vectors ``(B, D)``."""
        return self._sums(z, grad=True)

    def _sums(self, z: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
        """Values ``(B,)`` and gradients ``(B, D)``, or zeros for these."""
        z, runs = z.detach(), len(self._some) or self.plates.runs
        pieces = [*z.split(PLAIN * self.rows)]
        traced = runs * len(pieces) > TRACE_FROM if self.traced is None else self.traced
        graph = self._graph(z, grad) if traced else None
        pieces = pieces if graph is None else [*z.split(self.rows)]
        values, scores = z.new_zeros(len(z)), torch.zeros_like(z)
        for choice in self._some or self.plates.passes():
            found = [self._plain(p, choice, grad) if graph is None else self._replay(graph, p, choice) for p in pieces]
            value, score = (torch.cat(part) for part in zip(*found, strict=True))
            values, scores = values + value, scores + score
        share = len(self._some) or 1
        return values / share, scores / share

    def _plain(self, z: Tensor, choice: Choice, grad: bool) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(grad):
            z = z.detach().requires_grad_(grad)
            values = self.batch(z, choice)
            (score,) = torch.autograd.grad(values.sum(), z) if grad and values.requires_grad else (torch.zeros_like(z),)
        return values.detach(), score

    def _replay(self, graph: Graph, z: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        count = len(z)
        full = z if count == self.rows else torch.cat([z, z[-1:].expand(self.rows - count, -1)])
        (_, values), scores = graph(full, *pytree.tree_leaves(choice))
        return values[:count], torch.zeros_like(z) if scores in ([], [None]) else scores[0][:count]

    def _graph(self, z: Tensor, grad: bool) -> Graph | None:
        """The sum over a choice as a graph, None if it cannot be traced."""
        if grad not in self._graphs:
            leaves, spec = pytree.tree_flatten(self.plates.spaced())

            def total(z: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor]:
                values = self.batch(z, pytree.tree_unflatten(leaves, spec))
                return values.sum(), values

            example = z[:1].expand(self.rows, -1).clone().requires_grad_(grad)
            try:
                graph = capture(total, [example, *leaves], parameters=[], has_aux=True, grad=grad)
                graph(example, *leaves)  # made ready
            except Untraceable:
                graph = None
            self._graphs[grad] = graph
        return self._graphs[grad]
