"""Where the sites of a guide start."""

import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import biject_to

from ..model.sites import innermost


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
