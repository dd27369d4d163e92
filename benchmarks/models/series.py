"""Time series: volatility, hidden states, diffusions and an ordinary differential equation."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .density import decaying_sum, flat, log_chain, normal
from .posterior import Draws, read_json, read_npz


def garch(y: Tensor, sigma1: Tensor) -> None:
    mu, alpha0 = flat("mu"), flat("alpha0", support=constraints.positive)
    alpha1, beta1, _ = flat("weights", 3, support=constraints.simplex).unbind(-1)
    shocks = alpha0 + alpha1 * (y[:-1] - mu).square()
    variance = decaying_sum(torch.cat([sigma1.square().unsqueeze(-1), shocks]), beta1)
    pyro.sample("y", dist.Normal(mu, variance.sqrt()).to_event(1), obs=y)


def read_garch(folder: Path) -> tuple[Tensor, Tensor]:
    data = read_json(folder)
    return data["y"], data["sigma1"]


def garch_reference(draws: Draws, *args: object) -> Draws:
    alpha1, beta1, _ = draws["weights"].unbind(-1)
    return {"mu": draws["mu"], "alpha0": draws["alpha0"], "alpha1": alpha1, "beta1": beta1}


def garch_sites(draws: Draws, *args: object) -> Draws:
    alpha1, beta1 = draws["alpha1"], draws["beta1"]
    weights = torch.stack([alpha1, beta1, 1 - alpha1 - beta1], dim=-1)
    return {"mu": draws["mu"], "alpha0": draws["alpha0"], "weights": weights}


def hmm(y: Tensor) -> None:
    theta = flat("theta", 2, 2, support=constraints.independent(constraints.simplex, 1))
    mu = flat("mu", 2, support=constraints.positive_ordered_vector)
    pyro.factor("mu prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emission = dist.Normal(mu.unsqueeze(-1), 1.0).log_prob(y)
    paths = log_chain(theta.log().unsqueeze(-1) + emission[:, 1:])
    pyro.factor("y", (emission[:, :1] + paths).logsumexp((0, 1)))


def read_y(folder: Path) -> tuple[Tensor]:
    return (read_json(folder)["y"],)


def hmm_reference(draws: Draws, *args: object) -> Draws:
    theta1, theta2 = draws["theta"].unbind(-2)
    return {"theta1": theta1, "theta2": theta2, "mu": draws["mu"]}


def hmm_sites(draws: Draws, *args: object) -> Draws:
    return {"theta": torch.stack([draws["theta1"], draws["theta2"]], dim=-2), "mu": draws["mu"]}


def brownian(y: Tensor, seen: Tensor, step: float, error: float) -> None:
    x = flat("x", len(y))
    pyro.factor("x prior", normal(torch.cat([x[:1], x.diff()]), step))
    pyro.sample("y", dist.Normal(x, error).mask(seen).to_event(1), obs=y)


def read_brownian(folder: Path) -> tuple[Tensor, Tensor, float, float]:
    data = read_npz(folder / "data.npz")
    y = data["OBSERVED_LOC"]
    return y.nan_to_num(), ~y.isnan(), float(data["INNOVATION_NOISE"]), float(data["OBSERVATION_NOISE"])


def volatility(returns: Tensor) -> None:
    phi = pyro.sample("phi", dist.AffineBeta(20.0, 1.5, -1.0, 2.0))
    m, s = pyro.sample("m", dist.Cauchy(0.0, 5.0)), pyro.sample("s", dist.HalfCauchy(2.0))
    h = flat("h", len(returns))
    start, d = (1 - phi) * (1 + phi), h - m
    noise = torch.cat([d[:1] * start.sqrt(), d[1:] - phi * d[:-1]])
    pyro.factor("h prior", normal(noise, s) + start.log() / 2)
    pyro.sample("returns", dist.Normal(0.0, (h / 2).exp()).to_event(1), obs=returns)


def read_volatility(folder: Path) -> tuple[Tensor]:
    return (read_npz(folder / "data.npz")["centered_returns"],)


def lorenz(y: Tensor, seen: Tensor, step: float, noise: float, error: float) -> None:
    """Euler steps of size ``step``, each with noise of scale ``noise``; x is observed."""
    state = flat("state", len(y), 3)
    x, y_, z = state[:-1].unbind(-1)
    drift = torch.stack([10 * (y_ - x), x * (28 - z) - y_, x * y_ - 8 / 3 * z], dim=-1)
    pyro.factor("state prior", normal(state[0], 1.0) + normal(state.diff(dim=0) - step * drift, noise))
    pyro.sample("y", dist.Normal(state[:, 0], error).mask(seen).to_event(1), obs=y)


def read_lorenz(folder: Path) -> tuple[Tensor, Tensor, float, float, float]:
    data = read_npz(folder / "data.npz")
    y, seen, step = data["OBSERVED_VALUES"].nan_to_num(), data["OBSERVATION_MASK"].bool(), float(data["STEP_SIZE"])
    return y, seen, step, float(data["INNOVATION_SCALE"]) * step**0.5, float(data["OBSERVATION_SCALE"])
