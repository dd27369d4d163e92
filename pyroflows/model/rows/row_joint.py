"""The log joint of a model as terms of its globals and of each row of a plate."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..row_memory import ManyRows
from ..sites import Model
from .prior_parts import by_curvature, by_formula, known
from .reading import read
from .row_runs import RowRuns
from .structure import Structure


class Terms(NamedTuple):
    """A log joint in parts; their sum over rows is the whole.

    Args:
        outer: what depends on the globals alone, ``(...)``.
        prior: of each row, what is quadratic in its latents: the priors of those that are Gaussian, ``(..., R)``.
        rest: of each row, all else, ``(..., R)``.
    """

    outer: Tensor
    prior: Tensor
    rest: Tensor


class Pass(NamedTuple):
    """Rows that are gone through together.

    Args:
        index: which, ``(B,)``; None for all.
        weight: how often the terms of each count, ``(B,)`` or a scalar.
    """

    index: Tensor | None
    weight: Tensor | float

    def of(self, rows: Tensor) -> Tensor:
        """These among all rows ``(R, ...)``."""
        return rows if self.index is None else rows[self.index]

    def add(self, total: Tensor, part: Tensor) -> None:
        """Adds what some rows have, ``(B, ...)``, to what all have, ``(R, ...)``, as often as it counts."""
        if self.index is None:
            total += part
        else:
            total.index_add_(0, self.index, part * self.weight[(..., *[None] * (part.dim() - 1))])

    def put(self, rows: Tensor, some: Tensor) -> Tensor:
        """All rows with these changed, in place."""
        if self.index is None:
            return some
        rows[self.index] = some
        return rows


class RowJoint:
    """``log p`` of globals, rows of latents and data, all unconstrained, as terms of each row; made from a Pyro model.

    Rows must be independent given the globals. Which datum is of which row is seen from what moves its density, so that
    data may stand in a plate of their own and index the rows, as in ``theta[group]``.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        plate: name of the rows' plate, see :meth:`~pyroflows.model.structure.Structure.of`.
        dtype: what the model is computed in, as of :class:`~pyroflows.model.LogJoint`.
        init_loc_fn: where latents start, see Pyro's autoguide initialization; None draws them.

    Raises:
        RuntimeError, ValueError: if the model cannot be right, has no such plate, or its rows are not independent.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("group", 3):
        ...         effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        ...     with pyro.plate("row", 4):
        ...         pyro.sample("y", dist.Normal(effect[torch.tensor([0, 0, 1, 2])], 1.0), obs=y)
        >>> joint = RowJoint(model, (torch.zeros(4),), {})
        >>> joint(torch.zeros(1, 1), torch.zeros(1, 3, 1)).rest
        tensor([[-1.8379, -0.9189, -0.9189]])
    """

    def __init__(
        self,
        model: Model,
        args: tuple,
        kwargs: dict,
        *,
        plate: str | None = None,
        dtype: torch.dtype | None = None,
        init_loc_fn: Callable | None = None,
    ) -> None:
        self.runs = RowRuns(model, args, kwargs, plate, dtype, init_loc_fn)
        found = read(self.runs)
        #: Whether the rows of a subsampled plate can be chosen; not so where the caller passes data of some.
        self.follows = found.follows
        #: How many numbers a run of the model computes, about.
        self.numbers = found.numbers
        self._gaussian = found.gaussian
        self._some = 0
        self._at_rows = ManyRows()
        index = self.runs.first.nodes[self.structure.plate]["value"] if self.structure.is_subsampled else None
        self._known = known(self.runs, self._many, self._gaussian, index)

    @property
    def structure(self) -> Structure:
        """Which latents are global and which belong to rows."""
        return self.runs.structure

    @property
    def dtype(self) -> torch.dtype | None:
        """What the model is computed in, None for what it is in by itself."""
        return self.runs.dtype

    @property
    def start(self) -> tuple[Tensor, Tensor]:
        """Where the model starts: globals ``(Dg,)`` and rows ``(R, d)``, or those that a run sees."""
        return self.structure.outer.start, self.structure.start

    @property
    def passes(self) -> list[Pass]:
        """Rows that together are all of them once, or, of :meth:`some`, some that stand for all."""
        size, seen = self.structure.rows, self.structure.seen
        if seen == size:
            return [Pass(None, 1.0)]
        found = []
        for first in range(0, size, seen):
            index = torch.arange(seen, device=self.start[0].device) + min(first, size - seen)
            found.append(Pass(index, (index >= first).to(self.start[0])))
        if not 0 < self._some < len(found):
            return found
        places = torch.linspace(0, len(found) - 1, self._some).round().long().tolist()
        counted = sum(float(found[k].weight.sum()) for k in places)
        return [found[k]._replace(weight=found[k].weight * size / counted) for k in places]

    def some(self, rows: int) -> "RowJoint":
        """The same with passes over about so many rows, where a run sees fewer than there are."""
        made = copy.copy(self)
        made._some = -(-rows // self.structure.seen)
        return made

    def at(self, args: tuple, kwargs: dict) -> "RowJoint":
        """The same model at other arguments."""
        made = copy.copy(self)
        made.runs = copy.copy(self.runs)
        made.runs.call(args, kwargs)
        return made

    def __call__(self, g: Tensor, z: Tensor, index: Tensor | None = None) -> Terms:
        """The terms at globals ``(S, Dg)`` and rows ``(S, R, d)``; differentiable.

        Args:
            g: globals.
            z: the rows' latents.
            index: which rows, ``(R,)``; None for all, or for those that the model chooses.
        """
        return Terms(*self._many(partial(self._terms, index=index), g, z))

    def prior_parts(self, g: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The Gaussian part of the rows' prior at globals ``(S, Dg)``.

        Returns:
            Precision times mean ``(S, R, d)`` and precision ``(S, R, d, d)``, zeros where a prior is not Gaussian.
        """
        count = self.structure.seen if index is None else len(index)
        zero = g.new_zeros(len(g), count, self.structure.width)
        groups = (by_formula, self._known), (by_curvature, self._gaussian - self._known)
        found = [by(self.runs, self._many, names, g, zero, index) for by, names in groups if names]
        if not found:
            return zero, zero[..., None].expand(*zero.shape, zero.shape[-1])
        return tuple(sum(part) for part in zip(*found, strict=True))

    def _many(self, function: Callable[[Tensor, Tensor], Any], g: Tensor, z: Tensor) -> Any:
        """A function of globals ``(Dg,)`` and rows ``(R, d)`` at many of them."""
        if len(g) == 1:
            with self.runs.settings():
                return tuple(found[None] for found in function(g[0], z[0]))
        packed, size = torch.cat([g, z.flatten(1)], -1), g.shape[-1]

        def one(row: Tensor) -> Any:
            return function(row[:size], row[size:].view(z.shape[1:]))

        with self.runs.settings():
            return self._at_rows(one, packed)

    def _terms(self, g: Tensor, z: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        outer, found = self.runs.by_site(g, z, index)
        zero = z[:, 0] * 0  # which has a gradient where no site of the rows does
        prior, rest = zero, zero
        for name, value in found.items():
            if not value.dim():
                outer = outer + value
            elif name in self._gaussian:
                prior = prior + value
            else:
                rest = rest + value
        return outer, prior, rest
