"""Hares and lynxes: the Lotka-Volterra equations."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .density import flat
from .posterior import read_json

# Lengths of the moves of log hares and of log lynxes in turn, symmetric, for a step of length one.
_A = (0.0502627644003922, 0.413514300428344, 0.0450798897943977, -0.188054853819569, 0.541960678450780)
_B = (0.148816447901042, -0.132385865767784, 0.067307604692185, 0.432666402578175)
_A, _B = (*_A, 1 - 2 * sum(_A), *_A[::-1]), (*_B, 0.5 - sum(_B), 0.5 - sum(_B), *_B[::-1], 0.0)


def trajectory(theta: Tensor, start: Tensor, steps: int) -> Tensor:
    """The logs of both populations after each of the unit steps, of shape ``(steps, 2)``.

    In logs each population moves at a rate that depends only on the other, so the moves of one with the other held
    are exact: ``p += a (theta_1 - theta_2 exp q)``, ``q += b (theta_4 exp p - theta_3)``. The constant parts of the
    rates and the factors are known beforehand, which leaves three operations for each move.

    References:
        S. Blanes, P. C. Moan, "Practical symplectic partitioned Runge-Kutta and Runge-Kutta-Nystrom methods", 2002,
        https://doi.org/10.1016/S0377-0427(01)00492-7 (S10, order 6).
    """
    birth, hunting, death, feeding = theta.unbind(-1)
    a, b = torch.tensor(_A * steps), torch.tensor(_B * steps)
    losses = (a.abs().log() + hunting.log() - death * (b.cumsum(0) - b)).unbind()
    gains = (b.abs().log() + feeding.log() + birth * a.cumsum(0)).unbind()
    (p, q), found = start.log().unbind(-1), []
    for loss, gain, down, up in zip(losses, gains, _A * steps, _B * steps, strict=True):
        change = (q + loss).exp()
        p = p - change if down > 0 else p + change
        if not up:
            found += [p, q]
            continue
        change = (p + gain).exp()
        q = q + change if up > 0 else q - change
    drift = torch.stack([birth, -death]) * torch.arange(1.0, steps + 1).unsqueeze(-1)
    return torch.stack(found).reshape(steps, 2) + drift


def lotka_volterra(first: Tensor, later: Tensor) -> None:
    """``first`` and ``later``: logs of the counts at the start and after each year."""
    # Truncated normals; their normalisers are constants.
    loc, scale = torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])
    theta = flat("theta", 4, support=constraints.positive)
    prior = dist.Normal(loc, scale)
    pyro.factor("theta prior", (prior.log_prob(theta) - (1 - prior.cdf(torch.zeros(()))).log()).sum())
    z_init = pyro.sample("z_init", dist.LogNormal(torch.tensor(10.0).log(), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    logs = torch.cat([z_init.log().unsqueeze(0), trajectory(theta, z_init, len(later))])
    counts = torch.cat([first.unsqueeze(0), later])
    noise = dist.Normal(logs, sigma).log_prob(counts)
    pyro.factor("y", (noise - counts).sum())


def read_lotka_volterra(folder: Path) -> tuple[Tensor, Tensor]:
    data = read_json(folder)
    return data["y_init"].log(), data["y"].log()
