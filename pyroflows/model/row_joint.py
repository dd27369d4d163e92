"""The log joint of a model as terms of its globals and of each row of a plate."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..compile import Untraceable
from ..seeds import seed_of, seeded
from .check import check_run
from .owners import owners_of
from .plates import Choice, Chosen, Rows
from .precision import default_dtype, in_precision, run_in
from .row_memory import rowwise
from .sites import Model, trace_of
from .structure import Structure
from .vmap_rules import Traceable

# Log densities that differ by less, relative to their size and one, are the same but for rounding.
DOUBLE, SINGLE = 1e-6, 1e-3
# Points at which rows are tried, as far from the start as this.
POINTS, AWAY = 2, 0.5


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
        >>> import pyro.distributions as dist
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
        self.dtype, self.model = dtype, model if dtype is None else partial(run_in, dtype, model)
        self.args, self.kwargs = in_precision((args, kwargs), dtype)
        with default_dtype(dtype):
            first = self.model if init_loc_fn is None else InitMessenger(init_loc_fn)(self.model)
            trace = trace_of(first, self.args, self.kwargs)
            check_run(trace, self.model, self.args, self.kwargs, whole=False)
            self.structure = Structure.of(trace, plate)
        #: How many numbers a run of the model computes, about.
        self.numbers = 0
        #: Whether the rows of a subsampled plate can be chosen; not so where the caller passes data of some.
        self.follows = True
        self._some = 0
        self._calls: set[int] | None = None
        self._one_by_one = False
        self._owners: dict[str, Tensor] = {}
        self._gaussian: set[str] = set()
        with seeded(seed_of("independence of rows"), self.start[0].device), pyro.validation_enabled(False):
            self._read(trace)

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
        made.args, made.kwargs = in_precision((args, kwargs), self.dtype)
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
        graph = torch.is_grad_enabled()

        def prior(g: Tensor, z: Tensor) -> tuple[Tensor]:
            found = self.by_site(g, z, index, self._gaussian)[1]
            return (sum(found.values(), z[:, 0] * 0),)

        with torch.enable_grad():
            zero = g.new_zeros(len(g), count, self.structure.width).requires_grad_()
            (value,) = self._many(prior, g, zero)
            (slope,) = torch.autograd.grad(value.sum(), zero, create_graph=True)
            columns = slope.unbind(-1) if slope.requires_grad else ()
            kept = {"create_graph": graph, "retain_graph": True, "materialize_grads": True}
            bends = [torch.autograd.grad(column.sum(), zero, **kept)[0] for column in columns]
        bend = torch.stack(bends or [torch.zeros_like(slope)] * slope.shape[-1], -1)
        return (slope, -bend) if graph else (slope.detach(), -bend.detach())

    def _many(self, function: Callable[[Tensor, Tensor], Any], g: Tensor, z: Tensor) -> Any:
        """A function of globals ``(Dg,)`` and rows ``(R, d)`` at many of them."""
        if len(g) == 1:
            with self._settings():
                return tuple(found[None] for found in function(g[0], z[0]))
        packed, size = torch.cat([g, z.flatten(1)], -1), g.shape[-1]

        def one(row: Tensor) -> Any:
            return function(row[:size], row[size:].view(z.shape[1:]))

        with self._settings():
            if not self._one_by_one:
                try:
                    return rowwise(one, packed, self._calls)
                except (Untraceable, torch.linalg.LinAlgError):
                    raise
                except RuntimeError as error:
                    one(packed[0])  # a model that fails by itself has its own error to show
                    if self._calls is None:
                        self._calls = set()
                        return self._many(function, g, z)
                    self._one_by_one = True
                    warnings.warn(
                        "the model cannot be evaluated for many particles at once and runs one by one, which is "
                        f"slow: replace branches on values and .item() by torch.where. vmap said: {error}",
                        stacklevel=4,
                    )
            return tuple(torch.stack(found) for found in zip(*map(one, packed), strict=True))

    def trace(self, g: Tensor, z: Tensor, index: Tensor | None = None) -> tuple[poutine.Trace, Tensor, dict]:
        """A run with the latents at globals ``(Dg,)`` and rows ``(R, d)``, and the log-dets of their values."""
        values, ladj, ladjs = self.structure.values(g, z)
        kinds = {site.name: self.dtype or site.dtype for site in (*self.structure.outer.sites, *self.structure.inner)}
        typed = {name: value.to(kinds[name]) for name, value in values.items()}
        model = self.model
        if index is not None and self.structure.is_subsampled:
            model = Chosen(Choice({self.structure.plate: Rows(index, index, index)}, index))(model)
        return trace_of(Traceable()(poutine.condition(model, data=typed)), self.args, self.kwargs), ladj, ladjs

    def by_site(
        self, g: Tensor, z: Tensor, index: Tensor | None = None, names: set[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The globals' own term ``()``, and by site, all or some, terms of rows ``(R,)`` or of none ``()``."""
        trace, ladj, ladjs = self.trace(g, z, index)
        trace.compute_log_prob(lambda name, _: names is None or name in names)
        found = {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or site_is_subsample(node) or "log_prob" not in node:
                continue
            value = node["log_prob"]
            frame = next((f for f in node["cond_indep_stack"] if f.name == self.structure.plate and f.vectorized), None)
            if frame is not None:
                share = 1.0 if frame.full_size in (None, frame.size) else frame.size / frame.full_size
                value = share * value.movedim(frame.dim, 0).reshape(value.shape[frame.dim], -1).sum(-1)
                found[name] = value + ladjs[name] if name in ladjs else value
            elif name in self._owners:
                bins = value.new_zeros(self.structure.seen + 1).index_add(0, self._owners[name], value.flatten())
                found[name], ladj = bins[:-1], ladj + bins[-1]
            else:
                found[name] = value.sum()
        return ladj, found

    def _terms(self, g: Tensor, z: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        outer, found = self.by_site(g, z, index)
        zero = z.new_zeros(z.shape[0])
        prior, rest = zero, zero
        for name, value in found.items():
            if not value.dim():
                outer = outer + value
            elif name in self._gaussian:
                prior = prior + value
            else:
                rest = rest + value
        return outer, prior, rest

    def _settings(self) -> Any:
        return _Settings(self.dtype)

    def _read(self, trace: poutine.Trace) -> None:
        """Finds which data are of which row and which priors are Gaussian, and checks that rows are independent."""
        with self._settings():
            g, z = self.start
            index = trace.nodes[self.structure.plate]["value"] if self.structure.is_subsampled else None
            points = [(g + AWAY * torch.randn_like(g), z + AWAY * torch.randn_like(z)) for _ in range(POINTS)]
            rows = {site.name for site in self.structure.inner}
            outer = {site.name for site in self.structure.outer.sites}
            loose = [k for k, v in self.by_site(*points[0], index)[1].items() if not v.dim() and k not in outer]
            self._owners = owners_of(partial(self._values, loose, index), points, self.structure)
            for point in points:
                self._check(point, index)
            self.follows = not self.structure.is_subsampled or self._is_followed(*points[0], index)
            with torch.no_grad():
                self.numbers = sum(value.numel() for value in self._values(None, index, g, z).values())
            self._gaussian = {name for name in rows if self._is_quadratic(name, points, index)}

    def _values(self, names: list[str] | None, index: Tensor | None, g: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The log densities of sites, of all by default, as vectors by name."""
        trace, *_ = self.trace(g, z, index)
        trace.compute_log_prob(lambda name, _: names is None or name in names)
        return {name: node["log_prob"].flatten() for name, node in trace.nodes.items() if "log_prob" in node}

    @torch.no_grad()
    def _check(self, point: tuple[Tensor, Tensor], index: Tensor | None) -> None:
        """Moves some rows, and raises if the terms of others, or of none, move with them."""
        g, z = point
        still = torch.rand(len(z), device=z.device) < 0.5
        other = torch.where(still[:, None], z, z + AWAY * torch.randn_like(z))
        (own, before), (moved, after) = self.by_site(g, z, index), self.by_site(g, other, index)
        for name, old in {**before, "": own}.items():
            new = moved if name == "" else after[name]
            kept = (old[still], new[still]) if old.dim() else (old, new)
            close = DOUBLE if old.dtype == torch.float64 else SINGLE
            if not torch.allclose(*kept, rtol=close, atol=close, equal_nan=True):
                raise ValueError(
                    f"expected rows of plate {self.structure.plate!r} that are independent given the latents outside, "
                    f"got {f'the site {name!r}' if name else 'data'} with terms that other rows move: a chain, a sum "
                    f"over rows, or a plate across them. Name another plate, or take AutoFlow or "
                    f"fit(..., plates=False)"
                )

    @torch.no_grad()
    def _is_followed(self, g: Tensor, z: Tensor, index: Tensor) -> bool:
        """Whether the model sees the rows that are chosen: turned around, and others in place of half, none changes."""
        half = (len(index) + 1) // 2
        others = (index + 1) % self.structure.rows
        other = torch.cat([index.flip(0)[:half], others[half:]])
        before, after = (self.by_site(g, *at)[1] for at in ((z, index), (z.flip(0), other)))
        close = DOUBLE if z.dtype == torch.float64 else SINGLE
        pairs = ((value.flip(0)[:half], after[name][:half]) for name, value in before.items() if value.dim())
        return all(torch.allclose(*pair, rtol=close, atol=close, equal_nan=True) for pair in pairs)

    def _is_quadratic(self, name: str, points: list[tuple[Tensor, Tensor]], index: Tensor | None) -> bool:
        """Whether the density of a site of the rows is that of a Gaussian in all numbers of its row."""
        bends = []
        for g, z in points:
            for shift in (0.0, 1.0):
                at = (z + shift).detach().requires_grad_()
                with torch.enable_grad():
                    value = self.by_site(g.detach(), at, index)[1][name].sum()
                    (slope,) = torch.autograd.grad(value, at, create_graph=True)
                    weights = torch.linspace(1.0, 2.0, at.shape[-1]).to(at)
                    bend = torch.zeros_like(at)
                    if slope.requires_grad:
                        (bend,) = torch.autograd.grad((slope * weights).sum(), at, materialize_grads=True)
                bends.append(bend)
        close = DOUBLE if bends[0].dtype == torch.float64 else SINGLE
        return all(torch.allclose(*bends[k : k + 2], rtol=close, atol=close) for k in range(0, len(bends), 2))


class _Settings:
    """Validation branches on values, which vmap cannot; the model was checked when it was first run."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._around = (pyro.validation_enabled(False), default_dtype(dtype))

    def __enter__(self) -> None:
        for around in self._around:
            around.__enter__()

    def __exit__(self, *error: object) -> None:
        for around in reversed(self._around):
            around.__exit__(*error)
