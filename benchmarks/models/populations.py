"""Hares and lynxes: the Lotka-Volterra equations."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .posterior import read_json


def trajectory(theta: Tensor, start: Tensor, years: int, steps: int = 4) -> Tensor:
    """The logs of both populations after each year, of shape ``(years, 2)``, by Runge-Kutta steps of order four.

    In logs, and in units in which both interactions have strength one, ``d p = birth - exp q`` and
    ``d q = exp p - death``. With four steps a year the logs are off by 3e-4 at most under the reference draws.
    """
    birth, hunting, death, feeding = theta.unbind(-1)
    growth, units = torch.stack([birth, -death]), torch.stack([feeding, hunting]).log()
    sign, h = torch.tensor([-1.0, 1.0]), 1 / steps

    def rate(x: Tensor) -> Tensor:
        return torch.addcmul(growth, sign, x.exp().flip(-1))

    x, found = start.log() + units, []
    for step in range(years * steps):
        k1 = rate(x)
        k2 = rate(torch.add(x, k1, alpha=h / 2))
        k3 = rate(torch.add(x, k2, alpha=h / 2))
        k4 = rate(torch.add(x, k3, alpha=h))
        x = torch.add(x, torch.add(k1 + k4, k2 + k3, alpha=2), alpha=h / 6)
        found += [x] if (step + 1) % steps == 0 else []
    return torch.stack(found) - units


def lotka_volterra(first: Tensor, later: Tensor) -> None:
    """``first`` and ``later``: logs of the counts at the start and after each year."""
    loc, scale = torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])
    # Flat, but starts are drawn near the prior: at one, where unconstrained space has its origin, no solver gets far.
    theta = pyro.sample("theta", dist.LogNormal(loc.log(), 0.1).to_event(1).mask(False))
    prior = dist.Normal(loc, scale)
    pyro.factor("theta prior", (prior.log_prob(theta) - prior.cdf(2 * loc).log()).sum())  # truncated at zero
    z_init = pyro.sample("z_init", dist.LogNormal(torch.tensor(10.0).log(), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    logs = torch.cat([z_init.log().unsqueeze(0), trajectory(theta, z_init, len(later))])
    counts = torch.cat([first.unsqueeze(0), later])
    noise = dist.Normal(logs, sigma).log_prob(counts)
    pyro.factor("y", (noise - counts).sum())


def read_lotka_volterra(folder: Path) -> tuple[Tensor, Tensor]:
    data = read_json(folder)
    return data["y_init"].log(), data["y"].log()
