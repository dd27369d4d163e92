"""What a guide by plate is trained for: the ELBO, by its path gradient."""

import torch
from torch import Tensor

from ...distributions import FlowDistribution
from ...model.rows import RowJoint
from ...transforms.fixed import Fixed
from .plate_flow import AutoPlateFlow


def plate_weights(guide: AutoPlateFlow, joint: RowJoint, num_particles: int) -> Tensor:
    """``log p - log q`` of draws of all latents, ``(num_particles,)``, with the gradient through the draws alone.

    Args:
        guide: what is trained.
        joint: the model, all rows of it.
        num_particles: how many draws.
    """
    g, _ = guide.outer_posterior().rsample_and_log_prob((num_particles,))
    log_q = FlowDistribution(None, Fixed(guide.transform)).log_prob(g)
    given = guide.given(joint, g)
    z = guide.form.at(given).draw(torch.randn_like(given.pull))
    rows = guide.form.at(given, fixed=True).log_prob(z)
    terms = joint(g, z)
    return terms.outer - log_q + (terms.prior + terms.rest - rows).sum(-1)
