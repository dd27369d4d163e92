"""Pieces of log densities: flat priors, normal errors, recurrences in logarithmic depth."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

LOG_SQRT_2PI = math.log(2 * math.pi) / 2


def flat(name: str, *shape: int, support: constraints.Constraint = constraints.real) -> Tensor:
    """A latent site of density one on its support."""
    return pyro.sample(name, dist.ImproperUniform(support, (), shape))


def normal(noise: Tensor, scale: Tensor | float) -> Tensor:
    """Log density of independent ``noise ~ N(0, scale)``, with one scale for all."""
    log_scale = torch.as_tensor(scale, dtype=noise.dtype).log()
    return -0.5 * (noise / scale).square().sum() - noise.numel() * (log_scale + LOG_SQRT_2PI)


def decaying_sum(x: Tensor, rate: Tensor) -> Tensor:
    """The recurrence ``s[0] = x[0], s[t] = x[t] + rate s[t - 1]`` for a vector, by doubling.

    After k rounds each entry holds the last 2^k terms of its sum.
    """
    shift = 1
    while shift < len(x):
        x = x + rate * pad(x[:-shift], (shift, 0))
        rate, shift = rate.square(), 2 * shift
    return x


def log_chain(steps: Tensor) -> Tensor:
    """Log of the product of n non-negative matrices, given as logs of shape ``(K, K, n)``, in pairs of neighbours."""
    while (n := steps.shape[-1]) > 1:
        left, right = steps[..., : n - 1 : 2], steps[..., 1::2]
        pairs = (left.unsqueeze(2) + right.unsqueeze(0)).logsumexp(1)
        steps = torch.cat([pairs, steps[..., n - n % 2 :]], dim=-1)
    return steps.squeeze(-1)
