"""The log joint density of a Pyro model as a function of one unconstrained vector."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value
from torch import Tensor
from torch.distributions import Distribution

from ..latents import LatentSpace, Model, is_minibatch, plates_of, trace_of
from ..parameters import Holding, parameters_of
from ..soundness import check_latents, check_model
from .batching import Traceable
from .guard import Untraceable
from .precision import default_dtype, in_precision, run_in


class LogJoint:
    """``log p(values, data) + log |d values / d z|`` at unconstrained vectors ``z``; made by :func:`log_joint`.

    Rows of a batch are evaluated together by ``torch.func.vmap``, so a model need not be vectorised. Rows share
    the model's own randomness: a subsampled plate of observations draws one minibatch a call. Where a model
    cannot be vmapped, for example because it branches on values, rows are evaluated one by one, after a
    warning.

    Args:
        model: a Pyro model with continuous latents.
        args: its arguments.
        kwargs: its keyword arguments.
        space: the latents, if known.
        dtype: what the density is computed in: the model runs with this default dtype and on arguments converted to
            it. None leaves the model as it is.

    Raises:
        RuntimeError: if there is no latent.
        ValueError: if the model cannot be right, see :func:`~pyroflows.soundness.check_model`.
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
        elif dtype is not None:
            with self._settings():
                start, space = space.start, self._latents(space.constrain(space.start)[0])
            space.start = start.to(space.start)
        self.space = space
        self._names = {site.name for site in space.sites}
        self.minibatch = self._subsampled()
        self._one_by_one = False

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
        rows = z.reshape(-1, self.size).to(self.space.start.dtype)
        with self._settings():
            return self._rows(rows).reshape(z.shape[:-1])

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the sites by name for ``z`` of shape ``(..., D)``."""
        return self.space.constrain(z)[0]

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The vectors of shape ``(..., D)`` for values by name."""
        return self.space.unconstrain(values)[0]

    def typed(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values by name in the dtypes that the model runs in, whatever a guide draws: the one door for dtypes."""
        own = {site.name: self.dtype or site.dtype for site in self.space.sites}
        return {name: value.to(own.get(name, value.dtype)) for name, value in values.items()}

    def trace(self, values: dict[str, Tensor]) -> poutine.Trace:
        """A run of the model with the latents at values by name.

        Raises:
            ValueError: if the run has other latents than the first one.
        """
        model = Traceable()(poutine.condition(self.model, data=self.typed(values)))
        found = trace_of(model, self.args, self.kwargs)
        check_latents(self.space.sites, found)
        return found

    def priors(self, z: Tensor) -> dict[str, Distribution]:
        """The distributions that the latent sites are drawn from, where the others are those of a vector ``(D,)``."""
        with self._settings():
            nodes = self.trace(self.constrain(z.to(self.space.start.dtype))).nodes
        return {site.name: nodes[site.name]["fn"] for site in self.space.sites}

    def terms(self, z: Tensor) -> dict[str, Tensor]:
        """The log density of each site ``(B,)`` at vectors ``(B, D)``, and that of the change of variables."""
        rows = z.to(self.space.start.dtype)
        with self._settings():
            if not self._one_by_one:
                return torch.func.vmap(self._terms, randomness="same")(rows)
            found = [self._terms(row) for row in rows]
        return {name: torch.stack([terms[name] for terms in found]) for name in found[0]}

    @torch.no_grad()
    def observed(self) -> dict[str, tuple[NDArray, tuple[str | None, ...]]]:
        """Observed values by site, each with the plates of its batch dimensions; minibatches are left out."""
        found = {}
        with self._settings():
            trace = self.trace(self.constrain(self.space.start))
        for name, node in trace.nodes.items():
            latent = name in self._names or not node.get("is_observed") or node["infer"].get("_deterministic")
            if latent or is_minibatch(node):
                continue
            if isinstance(node["value"], Tensor) and node["value"].numel():
                found[name] = node["value"].cpu().numpy(), plates_of(node)
        return found

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
        """Whether each call sees a random part of the data."""
        with torch.no_grad(), self._settings():
            return any(map(is_minibatch, self.trace(self.constrain(self.space.start)).nodes.values()))

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Validation branches on values, which vmap cannot; the model was checked when it was first run."""
        with pyro.validation_enabled(False), default_dtype(self.dtype):
            yield

    def _rows(self, rows: Tensor) -> Tensor:
        if not self._one_by_one:
            try:
                return torch.func.vmap(self._single, randomness="same")(rows)
            except (Untraceable, torch.linalg.LinAlgError):  # of a matrix at one row, which says nothing about vmap
                raise
            except RuntimeError as error:
                # A model that fails on one row by itself has its own error to show.
                self._single(rows[0])
                self._one_by_one = True
                warnings.warn(
                    "the model cannot be evaluated for many particles at once and runs one by one, which is "
                    f"slow: replace branches on values and .item() by torch.where. vmap said: {error}",
                    stacklevel=3,
                )
        return torch.stack([self._single(row) for row in rows])

    def _single(self, z: Tensor) -> Tensor:
        return sum(self._terms(z).values())

    def _terms(self, z: Tensor) -> dict[str, Tensor]:
        values, ladj = self.space.constrain(z)
        trace = self.trace(values)
        trace.compute_log_prob()
        sites = {f"the site {k!r}": n["log_prob_sum"] for k, n in trace.nodes.items() if n["type"] == "sample"}
        return {"the change of variables": ladj, **sites}


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
