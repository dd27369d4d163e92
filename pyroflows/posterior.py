"""The result of a fit: draws, densities, diagnostics, ArviZ and pictures of a flow posterior."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import plots, report
from .diagnostics import Diagnostics
from .guides import AutoFlow
from .infer import History, LogJoint
from .numeric import seeded


class Posterior:
    """A fitted flow posterior of a Pyro model; made by :func:`pyroflows.fit`.

    Args:
        guide: the trained guide, an :class:`~pyroflows.guides.AutoFlow`; use it wherever Pyro takes one.
        log_joint: the model's log joint density.
        history: what the fit recorded.
        num_draws: draws behind diagnostics, summary, ArviZ and plots.
        seed: seed of these draws.
    """

    def __init__(
        self, guide: AutoFlow, log_joint: LogJoint, history: History, num_draws: int = 4000, seed: int = 0
    ) -> None:
        self.guide, self.log_joint, self.history = guide, log_joint, history
        self.num_draws, self.seed = num_draws, seed

    def sample(self, num_samples: int = 1000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every latent site, of shape ``(num_samples, *site.shape)``."""
        return self.guide.sample(num_samples, seed=seed)

    def log_prob(self, samples: dict[str, Tensor]) -> Tensor:
        """The posterior's log density at values of all sites, of shape ``(...)``."""
        with torch.no_grad():
            return self.guide.log_prob(samples)

    @functools.cached_property
    def draws(self) -> dict[str, Tensor]:
        """The fixed draws that the diagnostics are about, ``(num_draws, *site.shape)`` by site."""
        return self.log_joint.constrain(self._scored[0])

    @functools.cached_property
    def log_weights(self) -> NDArray:
        """``log p(draw, data) - log q(draw)`` of the fixed draws, shape ``(num_draws,)``, in nats."""
        return self._scored[1].double().cpu().numpy()

    @functools.cached_property
    def _scored(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), seeded(self.seed, self.guide.device):
            z, log_q = self.guide.get_posterior().rsample_and_log_prob((self.num_draws,))
            return z, self.log_joint(z) - log_q

    @functools.cached_property
    def _judged(self) -> tuple[Diagnostics, NDArray]:
        return Diagnostics.of(self.log_weights, self.log_joint.minibatch)

    @property
    def diagnostics(self) -> Diagnostics:
        """k-hat, spread of the weights, ELBO and evidence, from the fixed draws."""
        return self._judged[0]

    @property
    def khat(self) -> float:
        """The k-hat of PSIS; below 0.7 the importance weights can be relied on."""
        return self.diagnostics.khat

    @property
    def weights(self) -> NDArray:
        """PSIS weights of the fixed draws, shape ``(num_draws,)``, summing to one."""
        if self.log_joint.minibatch:
            raise ValueError(
                f"expected a log joint of all the data, got one of a minibatch: {self.diagnostics.verdict}"
            )
        return self._judged[1]

    def summary(self, *, weighted: bool = False, mass: float = 0.9) -> report.Summary:
        """Mean, sd and central interval of every scalar, and a sentence on the k-hat.

        Args:
            weighted: use the importance weights rather than the draws as they are.
            mass: probability inside the interval.
        """
        draws = {name: value.cpu().numpy() for name, value in self.draws.items()}
        if not 0 < mass < 1:
            raise ValueError(f"expected a mass between 0 and 1, got {mass}")
        weights = self.weights if weighted else None
        return report.summarize(draws, weights, mass, str(self.diagnostics))

    def to_arviz(self, *, coords: Mapping[str, Sequence] | None = None, dims: Mapping | None = None) -> Any:
        """The fixed draws as an ArviZ object, with log weights and k-hat in ``sample_stats``.

        Dimensions are named by the plates that they come from.

        Args:
            coords: labels by dimension name, for example ``{"school": names}``.
            dims: names of a site's dimensions by site, where a plate does not name them.

        Returns:
            ``InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x.
        """
        stats = {}
        if not self.log_joint.minibatch:
            stats = {"log_weight": self.log_weights, "psis_weight": self.weights}
            stats["khat"] = np.full(self.num_draws, self.khat)
        observed = self.log_joint.observed()
        groups = {
            "posterior": {name: value.cpu().numpy()[None] for name, value in self.draws.items()},
            "sample_stats": {name: value[None] for name, value in stats.items()},
            "observed_data": {name: value for name, (value, _) in observed.items()},
        }
        named = {site.name: _dims(site.name, site.plates, len(site.shape)) for site in self.log_joint.space.sites}
        named |= {name: _dims(name, plates, value.ndim) for name, (value, plates) in observed.items()}
        return report.inference_data(groups, named | dict(dims or {}), coords)

    def plot_loss(self) -> Any:
        """The ELBO over the steps of the fit; returns a matplotlib Figure."""
        return plots.plot_elbo(self.history.elbo)

    def plot_pairs(self, names: Sequence[str] | None = None, *, max_scalars: int = 6) -> Any:
        """Scatter plots of pairs of scalars and their histograms; returns a matplotlib Figure.

        Args:
            names: sites to show, all by default.
            max_scalars: how many scalars at most.
        """
        draws = self.draws if names is None else {name: self.draws[name] for name in names}
        return plots.plot_pairs({k: v.cpu().numpy() for k, v in draws.items()}, max_scalars)

    def __repr__(self) -> str:
        return f"Posterior of {list(self.draws)} after {len(self.history.elbo)} steps.\n{self.diagnostics}"


def _dims(name: str, plates: Sequence[str | None], rank: int) -> list[str]:
    """One name for each dimension of a site: its plate, or as ArviZ would call it."""
    plates = [*plates, *[None] * (rank - len(plates))]
    return [plate or f"{name}_dim_{i}" for i, plate in enumerate(plates)]
