"""Log densities of one vector that starts are tried on."""

import math

import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Normal

from pyroflows.infer import Gaussian


def gaussian(dim: int) -> Gaussian:
    """A random one whose scales differ a hundredfold."""
    root = torch.randn(dim, dim) * torch.logspace(-1.0, 1.0, dim)[:, None] / math.sqrt(dim)
    return Gaussian.from_root(3.0 * torch.randn(dim), root)


def far_and_sharp(z: Tensor) -> Tensor:
    """A posterior sd of 0.4 at 300, the prior sd is 1000."""
    return (Normal(0.0, 1000.0).log_prob(z) + Normal(300.0, 0.4).log_prob(z)).sum(-1)


def funnel(z: Tensor) -> Tensor:
    """Neal's; normalised, and the density grows without bound down the neck."""
    return Normal(0.0, 3.0).log_prob(z[:, 0]) + Normal(0.0, (z[:, :1] / 2).exp()).log_prob(z[:, 1:]).sum(-1)


def eight_schools(z: Tensor) -> Tensor:
    """Centred; the log evidence is -31.3113."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mu, log_tau, theta = z[:, 0], z[:, 1], z[:, 2:]
    prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(log_tau.exp()) + log_tau
    schools = Normal(mu[:, None], log_tau.exp()[:, None], validate_args=False).log_prob(theta)
    return prior + (schools + Normal(theta, sigma).log_prob(y)).sum(-1)


def gammas(z: Tensor) -> Tensor:
    """Normalised, NaN where any coordinate is negative, and -inf at zero."""
    return (4.0 * z.log() - z - math.lgamma(5.0)).sum(-1)
