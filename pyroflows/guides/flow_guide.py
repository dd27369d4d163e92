"""A guide whose distribution is a flow's: its parts, and what it answers once it is set up."""

from collections.abc import Sequence

import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from torch.distributions import Distribution

from ..arguments import check_counts
from ..distributions import ComponentBase, FlowDistribution
from ..model import LatentSpace
from ..seeds import seed_of, seeded
from ..transforms import Compose, FlowTransform

# Of the draws behind its moments, so that they are the same in every call.
SEED = seed_of("moments of a guide")


class FlowGuide(AutoContinuous):
    """What an :class:`~pyroflows.guides.AutoFlow` answers: its distribution and its parts, draws and moments."""

    base: Distribution | None
    space: LatentSpace

    @property
    def core(self) -> Compose:
        """The flow and the affine map: the transform without the fixed coordinates of :meth:`within`."""
        return self.transform[0] if self._is_within else self.transform

    @property
    def fixed(self) -> FlowTransform | None:
        """The coordinates of :meth:`within`."""
        return self.transform[1] if self._is_within else None

    def core_posterior(self) -> FlowDistribution:
        """The distribution of the core, in the coordinates of :meth:`within`."""
        return FlowDistribution(self.base, self.core)

    @property
    def components(self) -> list[ComponentBase]:
        """The base, if it has components whose masses can be moved, and nothing else."""
        return [self.base] if isinstance(self.base, ComponentBase) else []

    def get_base_dist(self) -> Distribution:
        """The base distribution over vectors."""
        return self.get_posterior().base

    def get_transform(self, *args: object, **kwargs: object) -> FlowTransform:
        """The whole transform from the base to the unconstrained vector."""
        self._check_ready()
        return self.transform

    def get_posterior(self, *args: object, **kwargs: object) -> FlowDistribution:
        """The guide's distribution over the unconstrained vector."""
        self._check_ready()
        return FlowDistribution(self.base, self.transform)

    @torch.no_grad()
    def sample(self, num_samples: int = 1000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws ``num_samples`` values of every site, of shape ``(num_samples, *site.shape)``.

        Args:
            num_samples: how many.
            seed: draws from this seed and leaves torch's generator as it was; None draws from the generator.
        """
        self._check_ready()
        check_counts("AutoFlow", {}, num_samples=num_samples)
        with seeded(seed, self.device):
            return self.space.constrain(self.get_posterior().sample((num_samples,)))[0]

    def log_prob(self, samples: dict[str, Tensor]) -> Tensor:
        """The guide's log density of values of all sites, in their own (constrained) space.

        Args:
            samples: values by site, of shapes ``(..., *site.shape)``.

        Returns:
            Shape ``(...)``.
        """
        self._check_ready()
        z, ladj = self.space.unconstrain(samples)
        return self.get_posterior().log_prob(z) + ladj

    @torch.no_grad()
    def entropy(self, num_samples: int = 4000, *, seed: int | None = SEED) -> Tensor:
        """Monte Carlo estimate of the entropy of the guide in constrained space, in nats."""
        self._check_ready()
        with seeded(seed, self.device):
            z, log_prob = self.get_posterior().rsample_and_log_prob((num_samples,))
        return (self.space.constrain(z)[1] - log_prob).mean()

    def median(
        self, *args: object, num_samples: int = 4000, seed: int | None = SEED, **kwargs: object
    ) -> dict[str, Tensor]:
        """The median of every site, from samples in constrained space; model arguments are not needed."""
        return {name: v.quantile(0.5, dim=0) for name, v in self.sample(num_samples, seed=seed).items()}

    def quantiles(
        self,
        quantiles: Sequence[float] | Tensor,
        *args: object,
        num_samples: int = 4000,
        seed: int | None = SEED,
        **kwargs: object,
    ) -> dict[str, Tensor]:
        """Quantiles of every site from samples, of shape ``(len(quantiles), *site.shape)``."""
        samples = self.sample(num_samples, seed=seed)
        return {name: v.quantile(torch.as_tensor(quantiles).to(v), dim=0) for name, v in samples.items()}

    def mean(self, *, num_samples: int = 4000, seed: int | None = SEED) -> dict[str, Tensor]:
        """The mean of every site, from samples in constrained space."""
        return {name: v.mean(0) for name, v in self.sample(num_samples, seed=seed).items()}

    def sd(self, *, num_samples: int = 4000, seed: int | None = SEED) -> dict[str, Tensor]:
        """The standard deviation of every site, from samples in constrained space."""
        return {name: v.std(0) for name, v in self.sample(num_samples, seed=seed).items()}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.transform.parameters()).device

    def _check_ready(self) -> None:
        if self.prototype_trace is None:
            raise RuntimeError("expected a guide that is set up, got a new one: call guide.setup(*model_args)")
