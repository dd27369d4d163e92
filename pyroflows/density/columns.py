"""The fixed map between columns of data and columns that a flow can learn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions import TorchDistribution
from torch import Tensor

from ..distributions import FlowDistribution
from ..transforms import FlowTransform
from .bend import KNOTS, Bend
from .degenerate import repeated

# How many sds, by quantiles, rows may lie from the median before few of them decide on the moments; and what share of
# the rows, or how many of them, are few.
REACH, SHARE, FEW = 8.0, 0.01, 3
# Steps from the rows that are near to the last knot, so that the bend begins beyond these rows.
BEYOND = 3
# Standardised contexts are cut here: beyond, nothing was seen, and nothing overflows.
FAR = 1e6
# The share and the sd of the background that rows far out may come from in training.
BACKGROUND, WIDTH = 1e-3, 2.0
# The share of rows with one and the same value from which on it is noted.
NOTED = 0.02


class Columns(FlowTransform):
    """Forward from standardised columns to the units of data, in double precision; nothing here is learnt.

    Most columns are scaled by mean and sd. Where quantiles disagree with these, as rows lie far out, columns bend. If
    the rows far out are few, the others are scaled by their own mean and sd, and those are drawn near; if they are
    many, the column is made normal by its quantiles. Beyond the last rows the map grows like an exponential.

    Args:
        values: the rows ``(N, D)`` to measure.
        weight: of the rows, ``(N,)``.
        names: of the columns, for :attr:`notes`.
        dtype: of standardised columns; data have double precision.
        device: of both.

    Attributes:
        notes: a sentence for each column that bends.
        near: between which standardised values ``(2, D)`` rows are not far out.
    """

    def __init__(
        self, values: NDArray, weight: NDArray, names: list, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(values.shape[1])
        self.dtype = dtype
        found = [_measure(column, weight) for column in values.T]
        knots = {i: _knots(values[:, i], weight, column) for i, column in enumerate(found) if column.wild}
        bends = {i: triple for i, triple in knots.items() if triple is not None}

        def tensor(numbers: Sequence) -> Tensor:
            return torch.tensor(np.array(numbers), dtype=torch.float64, device=device)

        self.loc = tensor([0.0 if i in bends else column.loc for i, column in enumerate(found)])
        self.scale = tensor([1.0 if i in bends else column.scale for i, column in enumerate(found)])
        self.bent = torch.tensor(list(bends), dtype=torch.long, device=device)
        x, z, near = zip(*bends.values(), strict=True) if bends else ((), (), ())
        self.bend = Bend(tensor(x), tensor(z)) if bends else None
        self.near = tensor([[-math.inf], [math.inf]]).to(dtype).repeat(1, len(found))
        if bends:
            self.near[:, self.bent] = tensor(near).to(dtype).mT
        self.notes = [f"column {names[i]!r} is scaled by its quantiles: {found[i]}" for i in bends]

    def _takes(self, inverse: bool) -> str:
        return "any"

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        z = z.double()
        out = (z - self.loc) / self.scale if inverse else self.loc + self.scale * z
        ladj = self.scale.log().expand_as(z)
        if self.bend is not None:
            bent, slopes = (self.bend.inverse if inverse else self.bend.forward)(z[..., self.bent])
            out = out.index_copy(-1, self.bent, bent)
            ladj = ladj.index_copy(-1, self.bent, -slopes if inverse else slopes)
        return (out.to(self.dtype), -ladj.sum(-1)) if inverse else (out, ladj.sum(-1))


class Units:
    """Rows and contexts of data, and what a flow takes for them.

    Args:
        rows: shape ``(N, D)``.
        context: shape ``(N, C)``, where ``C`` may be 0.
        weight: of the rows, ``(N,)``.
        names: of the columns of the rows.
        dtype: in which the flow computes.
        device: where.

    Attributes:
        rows: :class:`Columns`, from the flow to the data.
        notes: what was found in the data, a sentence each.
    """

    def __init__(
        self,
        rows: NDArray,
        context: NDArray,
        weight: NDArray,
        names: list,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.rows, self._contexts = Columns(rows, weight, names, dtype, device), None
        self.notes = repeated(rows, names, NOTED) + self.rows.notes
        if context.shape[1]:
            names = [f"{i} of the context" for i in range(context.shape[1])]
            self._contexts = Columns(context, weight, names, dtype, device)
            self.notes += self._contexts.notes

    def trained(self, density: FlowDistribution) -> TorchDistribution:
        """What is to be trained of a density over standardised rows: over a background where rows lie far out."""
        near = self.rows.near
        return OverBackground(density, near) if near.isfinite().any() else density

    def standard(self, context: Tensor) -> Tensor:
        """A context ``(..., C)`` for any number of rows, standardised."""
        columns = self._contexts.input_dim if self._contexts else 0
        if context.shape[-1:] != (columns,):
            got = tuple(context.shape)
            raise ValueError(f"FlowDensity expected a context of {columns} columns, as in fit, got {got}")
        return self._contexts.inv(context).clamp(-FAR, FAR) if self._contexts else context


class OverBackground(TorchDistribution):
    """A density to be trained on rows of which a few lie far out: those may be from a wide background instead.

    So their influence ends where the density is below the background's share. Without, a handful of rows decides on
    the steps, and on what is the best state on rows held out. All others are as without a background.

    Args:
        density: over vectors that are standardised.
        near: between which vectors rows are not far out, ``(2, D)``.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, density: FlowDistribution, near: Tensor) -> None:
        self.density, self.near = density, near
        super().__init__(density.batch_shape, density.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, of the two together where a row is far out."""
        normal = torch.distributions.Normal(value.new_zeros(()), WIDTH, validate_args=False)
        own, far = self.density.log_prob(value), ((value < self.near[0]) | (value > self.near[1])).any(-1)
        both = torch.logaddexp(own, normal.log_prob(value).sum(-1) + math.log(BACKGROUND))
        return torch.where(far, both, own)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "OverBackground":
        """The same for more rows."""
        return OverBackground(self.density.expand(batch_shape), self.near)


def log_density(density: FlowDistribution, rows: Tensor) -> Tensor:
    """Log densities ``(...)`` of rows ``(..., D)``, -inf so far out that the flow overflows."""
    return torch.nan_to_num(density.log_prob(rows), nan=-math.inf, posinf=math.inf, neginf=-math.inf)


@dataclass
class _Measured:
    """Mean and sd of a column; the median and the sd by quantiles of the distinct values; the furthest from it.

    Of the distinct values, since all quantiles of a column that is nearly always zero would be zero.
    """

    loc: float
    scale: float
    middle: float
    robust: float
    reach: float

    @property
    def wild(self) -> bool:
        """Whether moments and quantiles disagree."""
        return self.reach > REACH * self.robust

    def __str__(self) -> str:
        sds = f"its sd is {self.scale:.3g}, by quantiles {self.robust:.3g}"
        return f"{sds}, and a row lies {self.reach:.3g} from the median"


def _measure(values: NDArray, weight: NDArray) -> _Measured:
    low, middle, high = np.quantile(np.unique(values), [0.25, 0.5, 0.75])
    off = values - middle
    reach = np.abs(off).max() or 1.0  # squares of what is divided by it do not overflow
    mean = np.average(off / reach, weights=weight)
    scale = reach * np.sqrt(np.average((off / reach - mean) ** 2, weights=weight)) or 1.0
    return _Measured(middle + reach * mean, scale, middle, (high - low) / 1.349 or scale, reach)


def _knots(values: NDArray, weight: NDArray, column: _Measured) -> tuple[NDArray, NDArray, NDArray] | None:
    """Knots of a bend, where the first and the last lie, and the rows that are near; None if some are equal."""
    near = np.abs(values - column.middle) <= REACH * column.robust
    few = (~near).sum() <= max(SHARE * len(values), FEW)
    x, z, ends = _near(values, weight, near) if few else _normal(values, weight)
    return (x, z, ends) if (np.diff(x) > 0).all() else None


def _near(values: NDArray, weight: NDArray, near: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """A line through the rows that are near, and the furthest of the others a step beyond it."""
    bulk = _measure(values[near], weight[near])
    ends = (np.array([values[near].min(), values[near].max()]) - bulk.loc) / bulk.scale
    step = (ends[1] - ends[0]) / (KNOTS - 1 - 2 * BEYOND)
    z = ends + BEYOND * step * np.array([-1, 1])
    x = bulk.loc + bulk.scale * np.linspace(*z, KNOTS)
    x[0], x[-1] = min(x[0], values.min()), max(x[-1], values.max())
    return x, z, ends + step * np.array([-1, 1])


def _normal(values: NDArray, weight: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Quantiles at even steps of a normal, of which none is far out."""
    distinct, which = np.unique(values, return_inverse=True)
    share = np.bincount(which, weights=weight)
    below = torch.tensor((np.cumsum(share) - share / 2) / share.sum(), dtype=torch.float64)
    z = torch.special.ndtri(below[[0, -1]]).numpy()
    levels = torch.special.ndtr(torch.linspace(*z, KNOTS, dtype=torch.float64)).numpy()
    x = np.interp(levels, below.numpy(), distinct)
    x[0], x[-1] = distinct[0], distinct[-1]
    return x, z, np.array([-np.inf, np.inf])
