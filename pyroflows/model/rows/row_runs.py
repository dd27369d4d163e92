"""Runs of a model at globals and rows, and what each of its sites adds to the log joint, row by row."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from ..check import check_run
from ..latent_space import LatentSpace
from ..noncentered import noncentered
from ..plates import Choice, Chosen, Rows
from ..precision import default_dtype, in_precision, run_in
from ..sites import Model, trace_of
from ..vmap_rules import Traceable
from .owners import elements
from .relative_space import PartlyCentered, RelativeSpace
from .structure import Structure


class RowRuns:
    """A model whose runs are read row by row.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        plate: name of the rows' plate, see :meth:`~pyroflows.model.rows.Structure.of`.
        dtype: what the model is computed in, as of :class:`~pyroflows.model.LogJoint`.
        init_loc_fn: where latents start, see Pyro's autoguide initialization; None draws them.

    Attributes:
        structure: which latents are global and which belong to rows.
        owners: by site, the row of each datum that stands outside of the rows' plate.
        first: the run that was read, from where latents start.

    Raises:
        RuntimeError, ValueError: if the model cannot be right, or has no such plate.
    """

    def __init__(
        self,
        model: Model,
        args: tuple,
        kwargs: dict,
        plate: str | None,
        dtype: torch.dtype | None,
        init_loc_fn: Callable | None,
    ) -> None:
        self.dtype, self.model = dtype, model if dtype is None else partial(run_in, dtype, model)
        self.call(args, kwargs)
        with default_dtype(dtype):
            started = self.model if init_loc_fn is None else InitMessenger(init_loc_fn)(self.model)
            self.first = trace_of(started, self.args, self.kwargs)
            check_run(self.first, self.model, self.args, self.kwargs, whole=False)
            self.structure = Structure.of(self.first, plate)
        self.structure = self._relative()
        self.owners: dict[str, Tensor] = {}

    def _relative(self) -> Structure:
        """The structure with globals relative to a scale that others of them set."""
        space = self.structure.outer
        return replace(self.structure, outer=RelativeSpace(space, noncentered(self, PartlyCentered)))

    @property
    def space(self) -> LatentSpace:
        """The globals."""
        return self.structure.outer

    def priors(self, g: Tensor) -> dict[str, Distribution]:
        """The distributions of the globals, given the others as a vector ``(Dg,)``, and rows where they start."""
        with self.settings():
            nodes = self.trace(g, self.structure.start)[0].nodes
        return {site.name: nodes[site.name]["fn"] for site in self.space.sites}

    def call(self, args: tuple, kwargs: dict) -> None:
        """Takes other arguments; :attr:`given` are these as they came, before they are converted."""
        self.given = args, kwargs
        self.args, self.kwargs = in_precision((args, kwargs), self.dtype)

    def settings(self) -> ExitStack:
        """Validation branches on values, which vmap cannot; the model was checked when it was first run."""
        stack = ExitStack()
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(default_dtype(self.dtype))
        return stack

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
        trace.compute_log_prob(lambda name, _: (names is None or name in names) and name not in self.owners)
        found = {}
        for name, node in trace.nodes.items():
            if name in self.owners and (names is None or name in names):
                value = elements(node).flatten()
                bins = value.new_zeros(self.structure.seen + 1).index_add(0, self.owners[name], value)
                found[name], ladj = bins[:-1], ladj + bins[-1]
            if node["type"] != "sample" or site_is_subsample(node) or "log_prob" not in node:
                continue
            value = node["log_prob"]
            frame = next((f for f in node["cond_indep_stack"] if f.name == self.structure.plate and f.vectorized), None)
            if frame is not None:
                share = 1.0 if frame.full_size in (None, frame.size) else frame.size / frame.full_size
                value = share * value.movedim(frame.dim, 0).reshape(value.shape[frame.dim], -1).sum(-1)
                found[name] = value + ladjs[name] if name in ladjs else value
            else:
                found[name] = value.sum()
        return ladj, found

    def elements(self, names: list[str], index: Tensor | None, g: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The log densities of each datum of sites outside of the rows' plate, as vectors by name."""
        nodes = self.trace(g, z, index)[0].nodes
        return {name: elements(nodes[name]).flatten() for name in names}
