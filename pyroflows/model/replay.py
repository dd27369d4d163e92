"""A model run at many draws of its latents: derived values, likelihoods of the data, predictions."""

import functools
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from .likelihood import by_row, scores_rows, warn_of_factors
from .log_joint import LogJoint
from .plates import Choice
from .precision import in_precision
from .simulate import ROWS, Simulation
from .sites import Model, Plates, data_sites, is_derived, is_factor, is_minibatch, plates_of_derived, rows_of


class Replay:
    """Runs a model at draws of its latents, many at once by vmap, or one by one where the model cannot be vmapped.

    Args:
        log_joint: the model, its arguments and its latents.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyroflows import log_joint
        >>> def model():
        ...     log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("scale", log_scale.exp())
        >>> Replay(log_joint(model)).derived(torch.zeros(3, 1))
        {'scale': tensor([1., 1., 1.])}
    """

    def __init__(self, log_joint: LogJoint) -> None:
        self.log_joint = log_joint
        with torch.no_grad(), pyro.validation_enabled(False):
            nodes = self._trace(log_joint.space.start).nodes
        #: Plates of each derived site, by name; those of rows of a subsampled plate, which may be many, are left out.
        self.plates: dict[str, Plates] = {
            name: plates_of_derived(node) for name, node in nodes.items() if is_derived(node) and not is_minibatch(node)
        }
        self._factors = [name for name, node in nodes.items() if is_factor(node)]
        self._row_keys = {name: rows_of(node) for name, node in nodes.items() if node["type"] == "sample"}

    @functools.cached_property
    def data(self) -> list[str]:
        """Names of the sites that hold data."""
        start = self.log_joint.space.start
        points = [self.log_joint.typed(self.log_joint.constrain(z)) for z in (start, start + 0.1)]
        with torch.no_grad(), pyro.validation_enabled(False):
            return data_sites(self.log_joint.model, self.log_joint.args, self.log_joint.kwargs, points)

    def derived(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the derived sites at vectors ``(S, D)``, of shape ``(S, *site.shape)``."""
        if not self.plates:
            return {}
        found = self._map(lambda trace: {name: trace.nodes[name]["value"] for name in self.plates}, z)
        return in_precision(found, z.dtype)

    @property
    def row_factors(self) -> list[str]:
        """Names of the factors that score rows of data."""
        latents = [site.name for site in self.log_joint.space.sites]
        return [name for name in self._factors if scores_rows(name, self._row_keys, self.data, latents)]

    def log_likelihood(self, z: Tensor) -> dict[str, NDArray]:
        """Log density of each row of the data at vectors ``(S, D)``, of shape ``(S, *batch_shape)``.

        See :func:`~pyroflows.model.likelihood.by_row`. Warns of factors that are of no row.
        """
        sites = [*self.data, *self._factors]

        def read(trace: poutine.Trace) -> dict[str, Tensor]:
            trace.compute_log_prob(lambda name, _: name in sites)
            by_row = itemgetter("log_prob") if self.log_joint.plates is None else self.log_joint.plates.by_row
            return {name: by_row(trace.nodes[name]) for name in sites if name in trace.nodes}

        found = self.log_joint.gather(lambda choice: _numpy(self._map(read, z, choice)), values=False)
        scoring = self.row_factors
        warn_of_factors({name: found[name] for name in self._factors if name not in scoring})
        return by_row(found, self._row_keys, self.data, scoring)

    def simulate(
        self, values: Mapping[str, Tensor], count: int, call: tuple[tuple, dict[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """New values of observed and derived sites, and of latents not given, of shape ``(count, *site.shape)``.

        Args:
            values: latents by name, of shape ``(count, *site.shape)``.
            count: how many draws.
            call: arguments and keyword arguments of the model, by default its own.

        Raises:
            ValueError: if a site cannot be sampled, or the latents have other shapes with these arguments.
        """
        density, dtype = self.log_joint, next((value.dtype for value in values.values()), None)
        args, kwargs = (density.args, density.kwargs) if call is None else in_precision(call, density.dtype)
        try:
            found = Simulation(density.model, args, kwargs, self.data)(density.typed(dict(values)), count)
        except NotImplementedError as error:
            raise ValueError(
                f"expected sites that can be sampled, got one that cannot ({error}): ask for no predictions"
            ) from error
        return in_precision(found, dtype)

    def _map(
        self, read: Callable[[poutine.Trace], dict[str, Tensor]], z: Tensor, choice: Choice | None = None
    ) -> dict[str, Tensor]:
        def one(row: Tensor) -> dict[str, Tensor]:
            return read(self._trace(row, choice))

        with torch.no_grad(), pyro.validation_enabled(False):
            try:
                return torch.func.vmap(one, randomness="same", chunk_size=ROWS)(z)
            except RuntimeError:  # the log joint has warned of such a model
                found = [one(row) for row in z]
                return {name: torch.stack([values[name] for values in found]) for name in found[0]}

    def _trace(self, row: Tensor, choice: Choice | None = None) -> poutine.Trace:
        return self.log_joint.trace(self.log_joint.constrain(row), choice)


def _numpy(values: dict[str, Tensor]) -> dict[str, NDArray]:
    return {name: value.cpu().numpy() for name, value in values.items()}


def unobserved(model: Model, sites: Iterable[str]) -> Model:
    """The model with some observed sites sampled instead."""
    # Pyro's own uncondition draws deterministic sites again too, in another shape inside plates.
    return poutine.condition(model, data=dict.fromkeys(sites))
