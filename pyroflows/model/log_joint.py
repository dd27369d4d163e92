"""The log joint density of a Pyro model as a function of one unconstrained vector."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value
from torch import Tensor
from torch.distributions import Distribution

from .all_rows import AllRows
from .check import check_latents, check_model
from .given_rows import GivenRows
from .latent_space import LatentSpace
from .parameters import Holding, parameters_of
from .plates import Choice, Chosen, Plates
from .precision import default_dtype, in_precision, run_in
from .row_memory import ManyRows
from .sites import Model, data_nodes, is_minibatch, plates_of, trace_of
from .vmap_rules import Traceable


class LogJoint:
    """``log p(values, data) + log |d values / d z|`` at unconstrained vectors ``z``; made by :func:`log_joint`.

    Rows of a batch are evaluated together by ``torch.func.vmap``, so a model need not be vectorised. Rows share
    the model's own randomness. Where a model cannot be vmapped, for example because it branches on values, rows are
    evaluated one by one, after a warning.

    The data of a subsampled plate are gone through batch by batch, all of them in each call, where the model takes
    its rows from the plate; :meth:`batch` takes some at random. Where it does not, each call sees the batch that the
    model chooses, and ``minibatch`` is true.

    Args:
        model: a Pyro model with continuous latents.
        args: its arguments.
        kwargs: its keyword arguments.
        space: the latents, if known.
        dtype: what the density is computed in: the model runs with this default dtype and on arguments converted to
            it. None leaves the model as it is.

    Raises:
        RuntimeError: if there is no latent.
        ValueError: if the model cannot be right, see :func:`~pyroflows.model.check.check_model`.
    """

    def __init__(
        self,
        model: Model,
        args: tuple,
        kwargs: dict,
        space: LatentSpace | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype, self.model = dtype, model if dtype is None else partial(run_in, dtype, model)
        self.args, self.kwargs = in_precision((args, kwargs), dtype)
        if space is None:
            with default_dtype(dtype):
                check_model(model, *self.args, **self.kwargs)
                space = self._latents()
        elif dtype not in (None, space.start.dtype):
            with self._settings():
                start, space = space.start, self._latents(space.constrain(space.start)[0])
            space.start = start.to(space.start)
        self.space = space
        self._names = {site.name for site in space.sites}
        self._at_rows = ManyRows()
        #: The subsampled plates whose rows can be chosen, None if there are none.
        self.plates: Plates | None = None
        #: Whether each call sees a random part of the data.
        self.minibatch = self._subsampled()

    def _latents(self, values: dict[str, Tensor] | None = None) -> LatentSpace:
        """The latents of a run, at given values where priors may be improper and cannot be sampled."""
        values = in_precision(values, self.dtype)
        model = self.model if values is None else InitMessenger(init_to_value(values=values))(self.model)
        return LatentSpace.of(trace_of(model, self.args, self.kwargs))

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.space.size

    def __call__(self, z: Tensor) -> Tensor:
        """Maps ``(..., D)`` to ``(...)``; differentiable."""
        if z.shape[-1:] != (self.size,):
            raise ValueError(f"expected vectors of size {self.size}, got shape {tuple(z.shape)}")
        if not z.numel():
            return z.to(self.space.start.dtype).sum(-1)
        rows = z.reshape(-1, self.size).to(self.space.start.dtype)
        if self.plates is not None:
            return AllRows(self.batch, self.plates)(rows).reshape(z.shape[:-1])
        with self._settings():
            return self._at_rows(partial(self._single, choice=None), rows).reshape(z.shape[:-1])

    def batch(self, z: Tensor, choice: Choice | None = None) -> Tensor:
        """The same for ``(B, D)`` from some rows of the subsampled plates, by default at random; right on average."""
        if choice is None and self.plates is not None:
            choice = self.plates.random()
        with self._settings():
            return self._at_rows(partial(self._single, choice=choice), z.to(self.space.start.dtype))

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the sites by name for ``z`` of shape ``(..., D)``."""
        return self.space.constrain(z)[0]

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The vectors of shape ``(..., D)`` for values by name."""
        return self.space.unconstrain(values)[0]

    @property
    def one_by_one(self) -> bool:
        """Whether rows were found to run one by one only, as the model cannot be vmapped."""
        return self._at_rows.one_by_one

    def typed(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values by name in the dtypes that the model runs in, whatever a guide draws: the one door for dtypes."""
        own = {site.name: self.dtype or site.dtype for site in self.space.sites}
        return {name: value.to(own.get(name, value.dtype)) for name, value in values.items()}

    def trace(self, values: dict[str, Tensor], choice: Choice | None = None) -> poutine.Trace:
        """A run of the model with the latents at values by name, and, where that is given, at a choice of rows.

        Raises:
            ValueError: if the run has other latents than the first one.
        """
        model = self.model if choice is None else Chosen(choice)(self.model)
        found = trace_of(Traceable()(GivenRows(self.typed(values))(model)), self.args, self.kwargs)
        check_latents(self.space.sites, found)
        return found

    def gather(self, read: Callable[[Choice | None], dict[str, NDArray]], values: bool = True) -> dict[str, NDArray]:
        """Arrays by site for all rows, from a function that reads them at a choice of rows.

        Args:
            read: returns arrays of which the last dimensions are those of the sites' values or log densities.
            values: whether they are values.
        """
        if self.plates is None:
            return read(None)
        return self.plates.gather(((choice, read(choice)) for choice in self.plates.passes()), values)

    def priors(self, z: Tensor) -> dict[str, Distribution]:
        """The distributions that the latent sites are drawn from, where the others are those of a vector ``(D,)``."""
        with self._settings():
            nodes = self.trace(self.constrain(z.to(self.space.start.dtype))).nodes
        return {site.name: nodes[site.name]["fn"] for site in self.space.sites}

    def terms(self, z: Tensor) -> dict[str, Tensor]:
        """The log density of each site ``(B,)`` at vectors ``(B, D)``, and that of the change of variables.

        Of subsampled plates from some rows, the same at each call.
        """
        if not z.numel():
            return {name: value[:0] for name, value in self.terms(self.space.start[None]).items()}
        rows, choice = z.to(self.space.start.dtype), None if self.plates is None else self.plates.spaced()
        with self._settings():
            return self._at_rows(partial(self._terms, choice=choice), rows)

    @torch.no_grad()
    def observed(self) -> dict[str, tuple[NDArray, tuple[str | None, ...]]]:
        """Observed values by site, each with the plates of its batch dimensions; minibatches are left out."""
        plates: dict[str, tuple[str | None, ...]] = {}

        def read(trace: poutine.Trace) -> dict[str, NDArray]:
            nodes = data_nodes(trace, self._names, self.minibatch)
            plates.update({name: plates_of(node) for name, node in nodes.items()})
            return {name: node["value"].cpu().numpy() for name, node in nodes.items()}

        values = self.constrain(self.space.start)
        with self._settings():
            found = self.gather(lambda choice: read(self.trace(values, choice)))
        return {name: (value, plates[name]) for name, value in found.items()}

    @torch.no_grad()
    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters that the model declares itself, by name."""
        with self._settings():
            return parameters_of(self.trace(self.constrain(self.space.start)))

    def holding(self, values: Mapping[str, Tensor]) -> "LogJoint":
        """The same log joint with the model's parameters at these values, whatever becomes of them elsewhere."""
        made = copy.copy(self)
        made.model = Holding(values)(self.model) if values else self.model
        return made

    def _subsampled(self) -> bool:
        """Finds the subsampled plates; returns whether there are some whose rows cannot be chosen."""
        with torch.no_grad(), self._settings():
            values = self.constrain(self.space.start)
            trace = self.trace(values)
            if not any(map(is_minibatch, trace.nodes.values())):
                return False
            plates = Plates.of(trace)
            if plates is not None and plates.followed(partial(self._scored, values)):
                self.plates = plates
            return self.plates is None

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Validation branches on values, which vmap cannot; the model was checked when it was first run."""
        with pyro.validation_enabled(False), default_dtype(self.dtype):
            yield

    def _single(self, z: Tensor, choice: Choice | None) -> Tensor:
        return sum(self._terms(z, choice).values())

    def _scored(self, values: dict[str, Tensor], choice: Choice | None) -> poutine.Trace:
        trace = self.trace(values, choice)
        trace.compute_log_prob()
        return trace

    def _terms(self, z: Tensor, choice: Choice | None) -> dict[str, Tensor]:
        values, ladj = self.space.constrain(z)
        trace = self._scored(values, choice)
        if choice is None:
            sites = {k: node["log_prob_sum"] for k, node in trace.nodes.items() if node["type"] == "sample"}
        else:
            sites, ladj = self.plates.terms(trace, choice), ladj * choice.prior.to(ladj)
        return {"the change of variables": ladj, **{f"the site {name!r}": value for name, value in sites.items()}}


def log_joint(model: Model, *args: object, **kwargs: object) -> LogJoint:
    """The log joint of a model, given its arguments, as a function of one unconstrained vector.

    Args:
        model: a Pyro model with continuous latents.
        args: the model's arguments.
        kwargs: the model's keyword arguments.

    Returns:
        A callable on ``(..., D)`` with ``constrain``, ``unconstrain`` and ``size``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> density = log_joint(model, torch.tensor(0.0))
        >>> density(torch.zeros(2, 1))
        tensor([-1.8379, -1.8379])
    """
    return LogJoint(model, args, kwargs)
