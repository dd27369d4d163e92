"""What can be read off draws of a model's latents, wherever they come from: summary, ArviZ, pictures."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from . import plots, report
from .diagnostics import ChainDiagnostics, Diagnostics
from .infer import LogJoint
from .latents import LatentSpace
from .numeric import check_counts, seed_of
from .replay import Replay


class Draws(ABC):
    """Draws of the latents of a model, in chains, with or without importance weights.

    This is the interface that :class:`~pyroflows.Posterior` and :class:`~pyroflows.refine.Refined` share.
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
    def sample(self, num_samples: int = 1000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws by site, equally weighted, of shape ``(num_samples, *site.shape)``."""

    @functools.cached_property
    def draws(self) -> dict[str, Tensor]:
        """All draws, chain after chain: latents and ``pyro.deterministic`` sites, ``(S, *site.shape)`` by name."""
        return self._values(self.vectors.flatten(0, 1))

    def summary(self, *, weighted: bool | None = None, mass: float = 0.9) -> report.Summary:
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
        return report.summarize(_numpy(self.draws), weights, mass, str(found), found.columns)

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

        Dimensions are named by the plates that they come from. The draws are given as they are: importance
        weights, where there are some, are ``psis_weight`` in ``sample_stats``.

        Args:
            predictive: add ``posterior_predictive``, new data for each draw; one run of the model a draw.
            prior: add ``prior`` and ``prior_predictive``, of so many draws.
            log_likelihood: add ``log_likelihood`` of each datum, for ``arviz.loo`` and ``arviz.compare``.
            coords: labels by dimension name, for example ``{"school": names}``.
            dims: names of a site's dimensions by site, in the place of the plates'.

        Returns:
            ``InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x.

        Raises:
            ValueError: if ``dims`` names no site or not all of a site's dimensions, ``prior`` is negative, the prior
                cannot be sampled, or predictions and likelihoods are asked of a minibatch or of no data.
        """
        observed = {k: v for k, v in self.log_joint.observed().items() if k not in self._replay.plates}
        values = {name: value for name, (value, _) in observed.items()}
        groups = {"posterior": self._by_chain(_numpy(self.draws)), "sample_stats": self.stats, "observed_data": values}
        groups |= self._predictions(list(observed), predictive, prior, log_likelihood)
        named = {site.name: _dims(site.name, site.plates, len(site.shape)) for site in self.log_joint.space.sites}
        named |= {name: _dims(name, plates, values[name].ndim) for name, (_, plates) in observed.items()}
        named |= {name: _dims(name, plates, self.draws[name].dim() - 1) for name, plates in self._replay.plates.items()}
        return report.inference_data(groups, named | dict(dims or {}), coords)

    def plot_pairs(self, names: Sequence[str] | None = None, *, max_scalars: int = 6) -> Any:
        """Scatter plots of pairs of scalars and their histograms; returns a matplotlib Figure.

        Weighted draws are resampled first.

        Args:
            names: sites to show, all by default.
            max_scalars: how many scalars at most.
        """
        draws = self.sample(len(self.weights), seed=seed_of("plot_pairs")) if self.weighted else self.draws
        chosen = draws if names is None else {name: draws[name] for name in names}
        return plots.plot_pairs(_numpy(chosen), max_scalars)

    def _predictions(self, sites: list[str], predictive: bool, prior: int, log_likelihood: bool) -> dict[str, dict]:
        """The groups of ArviZ that take runs of the model."""
        check_counts("to_arviz", {"prior": 0}, prior=prior)
        if (predictive or log_likelihood) and (self.log_joint.minibatch or not sites):
            raise ValueError(
                "expected a model that observes all its data, to predict them or to score each, got "
                f"{'one of a minibatch' if self.log_joint.minibatch else 'one without observed sites'}"
            )
        groups = {}
        if predictive:
            latents = {site.name: self.draws[site.name] for site in self.log_joint.space.sites}
            groups["posterior_predictive"] = self._by_chain(self._replay.predictive(latents, sites))
        if prior:
            found = self._replay.predictive(prior, [*self.draws, *sites])
            groups["prior"] = {name: found[name][None] for name in self.draws}
            groups["prior_predictive"] = {name: found[name][None] for name in sites}
        if log_likelihood:
            groups["log_likelihood"] = self._by_chain(self._replay.log_likelihood(self.vectors.flatten(0, 1), sites))
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


def scalars(values: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """Draws ``(S,)`` of every scalar by label, from draws ``(S, *site.shape)`` by site."""
    return dict(report.labelled(_numpy(values)))


def open_scalars(space: LatentSpace, values: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """The scalars that nothing is known to bound, whose tails may be heavy: draws ``(S,)`` by label.

    Left out are those that the support of their site bounds, and what else, as a ``pyro.deterministic`` share or
    correlation, never leaves [-1, 1].
    """
    bounded = space.bounded()
    within = {name: (value.abs() <= 1).all(0) for name, value in values.items() if name not in bounded}
    closed = scalars({name: found[None] for name, found in {**bounded, **within}.items()})
    return {label: draws for label, draws in scalars(values).items() if not closed[label][0]}


def _numpy(values: Mapping[str, Tensor]) -> dict[str, NDArray]:
    return {name: value.detach().cpu().numpy() for name, value in values.items()}


def _dims(name: str, plates: Sequence[str | None], rank: int) -> list[str]:
    """One name for each dimension of a site: its plate, or as ArviZ would call it."""
    plates = [*plates, *[None] * (rank - len(plates))]
    return [plate or f"{name}_dim_{i}" for i, plate in enumerate(plates)]
