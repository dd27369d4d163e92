"""The result of a fit: draws, densities, diagnostics, refinement, ArviZ and pictures of a flow posterior."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import files
from ..flows import with_tails
from ..guides import AutoFlow, GuidePrior
from ..model import LogJoint
from ..seeds import seed_of, seeded
from ..training import History
from . import archive, plots
from .draws import Draws
from .importance_diagnostics import Diagnostics
from .refine import refine
from .refine.judge import look_again
from .refine.refined import Refined, propose
from .refine.weights import weight_stats
from .report import write_report
from .scalars import open_scalars

# Of the draws that judge a fit: data that were made from a seed of the user's own do not have the same numbers.
SEED = seed_of("draws of a posterior")


class Posterior(Draws):
    """A fitted flow posterior of a Pyro model; made by :func:`pyroflows.fit`.

    Args:
        guide: the trained guide, an :class:`~pyroflows.guides.AutoFlow`; use it wherever Pyro takes one.
        log_joint: the model's log joint density; parameters of the model itself are kept at their values now.
        history: what the fit recorded.
        num_draws: draws behind diagnostics, summary, ArviZ and plots.
        seed: seed of these draws, by default one that no data are likely to come from.
    """

    weighted = False

    def __init__(
        self, guide: AutoFlow, log_joint: LogJoint, history: History, num_draws: int = 4000, seed: int = SEED
    ) -> None:
        self.guide, self.log_joint = guide, log_joint.holding(log_joint.parameters())
        self.history = history
        self.num_draws, self.seed = num_draws, seed

    def new(self, num_samples: int) -> Tensor:
        """Draws of the guide in unconstrained space, of shape ``(num_samples, D)``."""
        return self.guide.get_posterior().sample((num_samples,))

    def log_prob(self, samples: dict[str, Tensor]) -> Tensor:
        """The posterior's log density at values of all latent sites, of shape ``(...)``."""
        with torch.no_grad():
            return self.guide.log_prob(samples)

    @property
    def vectors(self) -> Tensor:
        """The fixed draws that the diagnostics are about, in unconstrained space, of shape ``(1, num_draws, D)``."""
        return self._scored[0][None]

    @property
    def log_weights(self) -> NDArray:
        """``log p(draw, data) - log q(draw)`` of the fixed draws, shape ``(num_draws,)``, in nats."""
        return self._scored[1]

    @functools.cached_property
    def _scored(self) -> tuple[Tensor, NDArray]:
        with seeded(self.seed, self.guide.device):
            return propose(self.guide, self.log_joint, self.num_draws)

    @functools.cached_property
    def _judged(self) -> tuple[Diagnostics, NDArray]:
        scalars = open_scalars(self.log_joint.space, self.draws)
        found, weights = Diagnostics.of(self.log_weights, self.log_joint.minibatch, scalars=scalars)
        found = look_again(found, self.guide, self.log_joint, self._values)
        return replace(found, missed=self.history.missed), weights

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

    @property
    def stats(self) -> dict[str, NDArray]:
        """Log weights, PSIS weights and k-hat, each ``(1, num_draws)``; nothing for a minibatch."""
        return {} if self.log_joint.minibatch else weight_stats(self.log_weights, self.weights, self.khat)

    def refine(self, method: str, **options: object) -> Refined:
        """Draws that are those of the exact posterior in the limit, from the flow and the log joint.

        Args:
            method: ``"importance"`` for weighted draws, ``"resample"`` for draws picked by their weights, ``"imh"``
                for Metropolis chains with the flow as proposal, ``"neutra"`` for NUTS in the flow's base space.
            options: those of :func:`~pyroflows.posterior.refine.importance`,
                :func:`~pyroflows.posterior.refine.resample`, :func:`~pyroflows.posterior.refine.imh` or
                :func:`~pyroflows.posterior.refine.neutra`: for one ``num_draws``.

        Returns:
            Draws that are read in the same way: ``sample``, ``draws``, ``summary``, ``to_arviz``, ``plot_pairs``.

        Raises:
            ValueError: if the method is unknown, the log joint is of a minibatch, or there are too few draws.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> from pyroflows import flows, log_joint
            >>> def model():
            ...     pyro.sample("x", dist.Normal(0.0, 1.0))
            >>> guide = AutoFlow(model, flows.full_rank, init_scale=1.2).setup()
            >>> posterior = Posterior(guide, log_joint(model), History())
            >>> chains = posterior.refine("imh", num_draws=500, chains=2)
            >>> chains.draws["x"].shape, chains.diagnostics.chains
            (torch.Size([1000]), 2)
        """
        return refine(method, self.guide, self.log_joint, **options).beside(self.history.missed)

    def as_prior(self, name: str = "prior") -> GuidePrior:
        """The posterior as the prior of a model of further data, which calls it to sample all sites.

        Args:
            name: of the one latent site that the model then has for them.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> from pyroflows import fit
            >>> def first(y):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            >>> prior = fit(first, torch.tensor(1.0), steps=100, progress=False).as_prior()
            >>> def second(y):
            ...     pyro.sample("y", dist.Normal(prior()["mean"], 1.0), obs=y)
            >>> posterior = fit(second, torch.tensor(2.0), steps=100, progress=False)
            >>> abs(posterior.summary()["mean"]["mean"] - 1.0) < 0.05
            True
        """
        return GuidePrior(self.guide, name)

    def save(self, path: str | Path) -> None:
        """Writes the guide's numbers, the model's parameters, the history and what tells the model apart.

        No code and no data are written. The file is whole or the old one is left, and it ends in a checksum.

        Args:
            path: where the file goes.

        Raises:
            ValueError, OSError: if it cannot be written there.
        """
        files.write(archive.pack(self.guide, self.log_joint, self.history, self.num_draws, self.seed), path)

    @classmethod
    def load(
        cls, path: str | Path, model: Callable, *args: object, guide: AutoFlow | None = None, **kwargs: object
    ) -> "Posterior":
        """Reads what :meth:`save` wrote, for the same model, arguments and kind of guide.

        Args:
            path: the file.
            model: the Pyro model.
            args: the model's arguments.
            guide: a new guide made like the saved one; by default that of ``fit``,
                ``AutoFlow(model, flows.with_tails)``.
            kwargs: the model's keyword arguments.

        Raises:
            ValueError: if the file is damaged, of something else, or of other latents, another flow, or other data.
        """
        found = archive.read(path)
        guide = (AutoFlow(model, with_tails) if guide is None else guide).setup(*args, **kwargs)
        density = archive.held(found, LogJoint(model, args, kwargs, guide.space, dtype=found["dtype"]))
        return cls(guide, density, *archive.unpack(found, guide, density))

    def report(self, path: str | Path | None = None) -> str:
        """One page: the verdict, the table and how the fit went; written as HTML with pictures if given a path.

        Args:
            path: a file to write, for example ``"fit.html"``.

        Returns:
            The page's text.
        """
        return write_report(self, self.history, path)

    def plot_loss(self) -> Any:
        """The ELBO over the steps of the fit; returns a matplotlib Figure."""
        return plots.plot_elbo(self.history.elbo)

    def __repr__(self) -> str:
        return f"Posterior of {list(self.draws)} after {len(self.history.elbo)} steps.\n{self.diagnostics}"
