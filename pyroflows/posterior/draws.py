"""What can be read off draws of a model's latents, wherever they come from: summary, ArviZ, pictures."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arguments import check_counts
from ..model import LogJoint
from ..model.replay import Replay
from ..seeds import seed_of, seeded
from . import arviz, plots, summary
from .chain_diagnostics import ChainDiagnostics
from .importance_diagnostics import Diagnostics
from .scalars import as_numpy


class Draws(ABC):
    """Draws of the latents of a model, in chains, with or without importance weights.

    This is the interface that :class:`~pyroflows.Posterior` and :class:`~pyroflows.posterior.Refined` share.
    """

    #: The model's log joint density.
    log_joint: LogJoint
    #: Whether averages of the draws need the weights.
    weighted: bool

    @property
    @abstractmethod
    def vectors(self) -> Tensor:
        """The draws in unconstrained space, of shape ``(chains, draws, D)``."""

    @property
    @abstractmethod
    def weights(self) -> NDArray:
        """Weights of all draws, chain after chain, of shape ``(S,)``, summing to one."""

    @property
    @abstractmethod
    def diagnostics(self) -> Diagnostics | ChainDiagnostics:
        """How far the draws can be trusted."""

    @property
    @abstractmethod
    def stats(self) -> dict[str, NDArray]:
        """Statistics of each draw, of shape ``(chains, draws)`` by name, for ArviZ's ``sample_stats``."""

    @abstractmethod
    def new(self, num_samples: int) -> Tensor:
        """Draws in unconstrained space, equally weighted, of shape ``(num_samples, D)``."""

    def sample(
        self, num_samples: int = 1000, *, seed: int | None = None, deterministic: bool = False
    ) -> dict[str, Tensor]:
        """Draws by site, equally weighted, of shape ``(num_samples, *site.shape)``.

        Args:
            num_samples: how many draws.
            seed: draws from this seed and leaves torch's generator as it was; None draws from the generator.
            deterministic: give ``pyro.deterministic`` sites too. They are those of the data fitted, so that
                ``Predictive(model, posterior_samples)`` at other data must not be given them.
        """
        check_counts(type(self).__name__, {}, num_samples=num_samples)
        with torch.no_grad(), seeded(seed, self.log_joint.space.start.device):
            z = self.new(num_samples)
        return self._values(z) if deterministic else self.log_joint.constrain(z)

    def predict(
        self, *args: object, num_samples: int = 1000, seed: int | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        """Runs the model on new arguments at draws of the posterior, equally weighted.

        Sites that the model observes, by ``obs=``, are drawn anew, whatever their data in these arguments, which then
        only say how many rows there are. What ``condition`` or ``do`` fixed stays fixed. Where the model observes
        nothing itself, data came in by ``condition``, and are drawn anew. ``pyro.deterministic`` sites are computed
        anew. All rows of a plate with ``subsample_size`` are gone through.

        Args:
            args: arguments of the model; without any, those of the fit.
            num_samples: how many draws.
            seed: draws from this seed and leaves torch's generator as it was; None draws from the generator.
            kwargs: keyword arguments of the model; use ``functools.partial`` for the two names above.

        Returns:
            Observed sites, ``pyro.deterministic`` sites, and latents that the fit did not have, of shape
            ``(num_samples, *site.shape)`` by name.

        Raises:
            ValueError: if a latent has another shape with these arguments, as that of each row has with other rows, or
                a site cannot be sampled.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> from pyroflows import fit
            >>> def line(x, y=None):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("row", len(x)):
            ...         pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
            >>> x = torch.arange(5.0)
            >>> posterior = fit(line, x, 2 * x, steps=100, progress=False)
            >>> new = posterior.predict(torch.tensor([100.0, 200.0]), num_samples=500)
            >>> new["y"].shape, bool((new["y"].mean(0) - torch.tensor([200.0, 400.0])).abs().max() < 1)
            (torch.Size([500, 2]), True)
        """
        check_counts(type(self).__name__, {}, num_samples=num_samples)
        with torch.no_grad(), seeded(seed, self.log_joint.space.start.device):
            values = self.log_joint.constrain(self.new(num_samples))
            return self._replay.simulate(values, num_samples, (args, kwargs) if args or kwargs else None)

    @functools.cached_property
    def draws(self) -> dict[str, Tensor]:
        """All draws, chain after chain: latents and ``pyro.deterministic`` sites, ``(S, *site.shape)`` by name."""
        return self._values(self.vectors.flatten(0, 1))

    def summary(self, *, weighted: bool | None = None, mass: float = 0.9) -> summary.Summary:
        """Mean, sd and central interval of every scalar, and a sentence on how far to trust them.

        Args:
            weighted: use the importance weights; None where averages need them.
            mass: probability inside the interval.

        Raises:
            ValueError: if ``mass`` is not between 0 and 1.
        """
        if not 0 < mass < 1:
            raise ValueError(f"expected a mass between 0 and 1, got {mass}")
        weights = self.weights if (self.weighted if weighted is None else weighted) else None
        found = self.diagnostics
        return summary.summarize(as_numpy(self.draws), weights, mass, str(found), found.columns)

    def to_arviz(
        self,
        *,
        predictive: bool = False,
        prior: int = 0,
        log_likelihood: bool = False,
        coords: Mapping[str, Sequence] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """The draws as an ArviZ object, with what is known of each in ``sample_stats``.

        Dimensions are named by the plates that they come from. What a handler around the model fixed, as by
        ``condition``, is ``constant_data``. The draws are given as they are: importance
        weights, where there are some, are ``psis_weight`` in ``sample_stats``.

        Args:
            predictive: add ``posterior_predictive``, new data for each draw, see :meth:`predict`.
            prior: add ``prior`` and ``prior_predictive``, of so many draws.
            log_likelihood: add ``log_likelihood`` of each row, for ``arviz.loo`` and ``arviz.compare``. A factor in
                the plate of a site is added to its rows, one in a plate of its own has further rows, see
                :func:`~pyroflows.model.likelihood.by_row`; of one in no plate a warning says that it is left out.
            coords: labels by dimension name, for example ``{"school": names}``.
            dims: names of a site's dimensions by site, in the place of the plates'.

        Returns:
            ``InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x.

        Raises:
            ValueError: if ``dims`` names no site or not all of a site's dimensions, ``prior`` is negative, the prior
                cannot be sampled, or predictions and likelihoods are asked of a minibatch or of no data.
        """
        given = {k: v for k, v in self.log_joint.observed().items() if k not in self._replay.plates}
        values, data = {name: value for name, (value, _) in given.items()}, set(self._replay.data)
        groups = {
            "posterior": self._by_chain(as_numpy(self.draws)),
            "sample_stats": self.stats,
            "observed_data": {name: value for name, value in values.items() if name in data},
            "constant_data": {name: value for name, value in values.items() if name not in data},
        }
        groups |= self._predictions([*groups["observed_data"]], predictive, prior, log_likelihood)
        named = {site.name: dims_of(site.name, site.plates, len(site.shape)) for site in self.log_joint.space.sites}
        named |= {name: dims_of(name, plates, values[name].ndim) for name, (_, plates) in given.items()}
        named |= {
            name: dims_of(name, plates, self.draws[name].dim() - 1) for name, plates in self._replay.plates.items()
        }
        return arviz.inference_data(groups, named | dict(dims or {}), coords)

    def plot_pairs(self, names: Sequence[str] | None = None, *, max_scalars: int = 6) -> Any:
        """Scatter plots of pairs of scalars and their histograms; returns a matplotlib Figure.

        Weighted draws are resampled first.

        Args:
            names: sites to show, all by default.
            max_scalars: how many scalars at most.
        """
        seed = seed_of("plot_pairs")
        draws = self.sample(len(self.weights), seed=seed, deterministic=True) if self.weighted else self.draws
        chosen = draws if names is None else {name: draws[name] for name in names}
        return plots.plot_pairs(as_numpy(chosen), max_scalars)

    def _predictions(self, sites: list[str], predictive: bool, prior: int, log_likelihood: bool) -> dict[str, dict]:
        """The groups of ArviZ that take runs of the model."""
        check_counts("to_arviz", {"prior": 0}, prior=prior)
        rows = sites or (self._replay.row_factors and not predictive)
        if (predictive or log_likelihood) and (self.log_joint.minibatch or not rows):
            raise ValueError(
                "expected a model that observes all its data, to predict them or to score each, got "
                f"{'one of a minibatch' if self.log_joint.minibatch else 'one without observed sites'}"
            )
        groups = {}
        if predictive:
            latents = self.log_joint.constrain(self.vectors.flatten(0, 1))
            found = as_numpy(self._replay.simulate(latents, len(self.weights)))
            groups["posterior_predictive"] = self._by_chain({name: found[name] for name in sites})
        if prior:
            found = as_numpy(self._replay.simulate({}, prior))
            groups["prior"] = {name: found[name][None] for name in self.draws}
            groups["prior_predictive"] = {name: found[name][None] for name in sites}
        if log_likelihood:
            groups["log_likelihood"] = self._by_chain(self._replay.log_likelihood(self.vectors.flatten(0, 1)))
        return groups

    def _by_chain(self, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
        shape = tuple(self.vectors.shape[:2])
        return {name: array.reshape(shape + array.shape[1:]) for name, array in arrays.items()}

    @functools.cached_property
    def _replay(self) -> Replay:
        return Replay(self.log_joint)

    def _values(self, vectors: Tensor) -> dict[str, Tensor]:
        """Values of all sites at vectors ``(S, D)``."""
        return {**self.log_joint.constrain(vectors), **self._replay.derived(vectors)}


def dims_of(name: str, plates: Sequence[str | None], rank: int) -> list[str]:
    """One name for each dimension of a site: its plate, or as ArviZ would call it."""
    plates = [*plates, *[None] * (rank - len(plates))]
    return [plate or f"{name}_dim_{i}" for i, plate in enumerate(plates)]
