"""Where the sites of a guide start."""

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import biject_to

from ..model.latent_space import LatentSpace
from ..model.sites import innermost
from ..seeds import seed_of, seeded

# Draws behind the spread of a prior, and which of them, in order, lie an sd from the middle of a normal.
DRAWS, ASIDE = 200, (31, 168)


def init_to_origin(site: dict) -> Tensor:
    """Starts a site at the origin of its unconstrained space; works also where a prior cannot be sampled."""
    fn = site["fn"]
    transform = biject_to(fn.support)
    inner = innermost(fn)  # says what device values are on, if anything does
    device = next((t.device for t in vars(inner).values() if isinstance(t, Tensor)), None)
    return transform(torch.zeros(transform.inverse_shape(fn.shape()), device=device))


def init_to_prior(site: dict) -> Tensor:
    """Starts a site at its prior's median, or at the origin where the prior cannot be sampled."""
    try:
        return init_to_median(site, fallback=init_to_origin)
    except NotImplementedError:  # an improper prior of vectors
        return init_to_origin(site)


def prior_spread(space: LatentSpace, trace: poutine.Trace) -> Tensor:
    """The spread of each latent's prior in unconstrained space, an sd, from 0.1 to 10, of shape ``(D,)``.

    The priors are those of a run of the model, each given the values of the others there; a prior without draws counts
    as a normal of sd 1.
    """
    with torch.no_grad(), seeded(seed_of("spread of priors"), space.start.device):
        draws = {site.name: _draws(trace.nodes[site.name]["fn"], space.start) for site in space.sites}
        low, high = space.unconstrain(draws)[0].sort(dim=0).values[list(ASIDE)]  # quantile() has a limit of size
    return ((high - low) / 2).nan_to_num(1.0).clamp(0.1, 10.0)


def _draws(fn: TorchDistribution, like: Tensor) -> Tensor:
    try:
        return fn.sample((DRAWS,))
    except NotImplementedError:
        transform = biject_to(fn.support)
        return transform(torch.randn(DRAWS, *transform.inverse_shape(fn.shape())).to(like))
