"""The log joint of a model as terms of its globals and of each row of a plate."""

import copy
import warnings
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

# Numbers that a pass over rows computes, about, where a run of the model sees some.
ROWS_AT_ONCE = 200_000

# Of globals ``(Dg,)``, rows ``(R, d)``, and which these are.
OfOne = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]


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
        self._gaussian = found.gaussian
        self._some, self._runs_of_pass = 0, 1
        self._at_rows = ManyRows()
        if self.structure.is_subsampled and self.follows:
            self._runs_of_pass = self._at_once(found.numbers)
        #: How many numbers a pass over rows computes, about.
        self.numbers = found.numbers * self._runs_of_pass
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
        size, seen = self.structure.rows, self.structure.seen * self._runs_of_pass
        if not self.structure.is_subsampled:
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
        made._some = -(-rows // (self.structure.seen * self._runs_of_pass))
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
        return Terms(*self._many(self._terms, g, z, index))

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

    def _many(self, function: OfOne, g: Tensor, z: Tensor, index: Tensor | None) -> Any:
        """A function of globals ``(Dg,)``, rows ``(R, d)`` and which these are at many of them.

        Of more rows than a run of the model sees, so many runs are made at once.
        """
        count = 1 if index is None else max(len(index) // self.structure.seen, 1)
        if count > 1:
            z = z.unflatten(1, (count, -1)).flatten(0, 1)
            g, index = g.repeat_interleave(count, 0), index.view(count, -1).repeat(len(g), 1)
        with self.runs.settings():
            if len(g) == 1:
                return tuple(found[None] for found in function(g[0], z[0], index))
            if count == 1:
                return self._at_rows(partial(_for, function, index), g, z)
            found = self._at_rows(function, g, z, index)
        return tuple(_folded(part, count) for part in found)

    def _at_once(self, numbers: int) -> int:
        """How many runs of so many numbers can be made at once, where two give what each gives by itself."""
        seen = self.structure.seen
        count = min(ROWS_AT_ONCE // numbers, self.structure.rows // seen)
        if count < 2:
            return 1
        (g, z), index = self.start, torch.arange(2 * seen, device=self.start[0].device)
        both, self._at_rows = z.repeat(2, 1)[None], ManyRows()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("error")
                together = self._many(self._terms, g[None], both, index)
                apart = [self._many(self._terms, g[None], z[None], part) for part in index.split(seen)]
        except (RuntimeError, TypeError, ValueError, IndexError, UserWarning):
            self._at_rows = ManyRows()
            return 1
        expected = [torch.cat([one[k] for one in apart], -1) for k in (1, 2)]
        return count if all(map(torch.allclose, together[1:], expected)) else 1

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


def _for(function: OfOne, index: Tensor | None, g: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    return function(g, z, index)


def _folded(part: Tensor, count: int) -> Tensor:
    """What runs gave ``(S count, ...)`` as that of their rows together, or, if it is not by row, of the first."""
    return part[::count] if part.dim() == 1 else part.unflatten(0, (-1, count)).flatten(1, 2)
