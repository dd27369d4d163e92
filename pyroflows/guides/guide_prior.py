"""What was learnt from some data as the prior of a model of others."""

import copy

import pyro
from torch import Tensor

from ..distributions import FlowDistribution
from .auto_flow import AutoFlow


class GuidePrior:
    """The distribution of a guide as a prior: called inside a model, it samples the guide's sites, jointly.

    A guide called inside of a model makes a Delta of each site, which is no prior. Here the guide's unconstrained
    vector is one latent site, and the guide's sites are ``pyro.deterministic`` of it, so that the model works with any
    inference. The whole of a site is one event, whatever its plates were. The flow is copied: it neither learns nor
    changes with the guide.

    Args:
        guide: a guide that is set up.
        name: of the vector's site.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> def first():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> prior = GuidePrior(AutoFlow(first).setup())
        >>> def second(y):
        ...     pyro.sample("y", dist.Normal(0.0, prior()["scale"]), obs=y)
        >>> AutoFlow(second).setup(torch.tensor(1.0)).latent_dim
        1
    """

    def __init__(self, guide: AutoFlow, name: str = "prior") -> None:
        fixed = copy.deepcopy(guide.get_posterior().transform).requires_grad_(False)
        self.name, self.space, self.distribution = name, guide.space, FlowDistribution(guide.base, fixed)

    def __call__(self) -> dict[str, Tensor]:
        """Samples all sites of the guide; values by name."""
        z = pyro.sample(self.name, self.distribution)
        values, _ = self.space.constrain(z)
        shapes = {site.name: site.shape for site in self.space.sites}
        return {k: pyro.deterministic(k, value, event_dim=len(shapes[k])) for k, value in values.items()}
