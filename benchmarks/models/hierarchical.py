"""Eight schools three times, a mixture and a Gaussian process."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from .density import LOG_SQRT_2PI, flat
from .posterior import Draws, read_json, read_npz


def eight_centred(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    theta = pyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


def eight_noncentred(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    pyro.sample("y", dist.Normal(mu + tau * z, sigma).to_event(1), obs=y)


def read_eight(folder: Path) -> tuple[Tensor, Tensor]:
    data = read_json(folder)
    return data["y"], data["sigma"]


def eight_reference(draws: Draws, *args: object) -> Draws:
    mu, tau = draws["mu"], draws["tau"]
    return {"theta": mu.unsqueeze(-1) + tau.unsqueeze(-1) * draws["z"], "mu": mu, "tau": tau}


def eight_sites(draws: Draws, *args: object) -> Draws:
    mu, tau = draws["mu"], draws["tau"]
    return {"z": (draws["theta"] - mu.unsqueeze(-1)) / tau.unsqueeze(-1), "mu": mu, "tau": tau}


def eight_log_scale(y: Tensor, sigma: Tensor) -> None:
    average, log_sd = pyro.sample("avg", dist.Normal(0.0, 10.0)), pyro.sample("log_sd", dist.Normal(5.0, 1.0))
    theta = pyro.sample("theta", dist.Normal(average, log_sd.exp()).expand([8]).to_event(1))
    pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


def read_eight_gym(folder: Path) -> tuple[Tensor, Tensor]:
    data = read_npz(folder / "data.npz")
    return data["treatment_effects"], data["treatment_stddevs"]


def mixture(powers: Tensor) -> None:
    mu = flat("mu", 2, support=constraints.ordered_vector)
    pyro.factor("mu prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    precision, weight = sigma.square().reciprocal(), torch.stack([theta, 1 - theta])
    constant = (weight / sigma).log() - LOG_SQRT_2PI - mu.square() * precision / 2
    # The log of each component is a polynomial in y; powers holds 1, y and y^2.
    first, second = torch.stack([constant, mu * precision, -precision / 2]).unbind(-1)
    pyro.factor("y", powers.sum(0) @ first - logsigmoid(powers @ (first - second)).sum())


def read_mixture(folder: Path) -> tuple[Tensor]:
    y = read_json(folder)["y"]
    return (torch.stack([torch.ones_like(y), y, y.square()], dim=-1),)


def gp_poisson(x: Tensor, k: Tensor) -> None:
    rho, alpha = pyro.sample("rho", dist.Gamma(25.0, 4.0)), pyro.sample("alpha", dist.HalfNormal(2.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    f = gp_factor(rho, alpha, x) @ z
    # Written in the log rate: exp(f) and back would overflow far from the mode.
    pyro.factor("k", (k * f - f.exp() - (k + 1).lgamma()).sum())


def gp_factor(rho: Tensor, alpha: Tensor, x: Tensor) -> Tensor:
    """Cholesky factors of the covariance, ``(..., n, n)`` for parameters of shape ``(...)``."""
    rho, alpha = rho[..., None, None], alpha[..., None, None]
    covariance = alpha.square() * (-0.5 * ((x.unsqueeze(-1) - x) / rho).square()).exp()
    # One particle whose covariance is singular in double precision becomes NaN; the others go on.
    factor, failed = torch.linalg.cholesky_ex(covariance + 1e-10 * torch.eye(len(x)).to(x))
    return torch.where(failed[..., None, None] == 0, factor, torch.nan)


def read_gp(folder: Path) -> tuple[Tensor, Tensor]:
    data = read_json(folder)
    return data["x"], data["k"]


def gp_reference(draws: Draws, x: Tensor, k: Tensor) -> Draws:
    factor = gp_factor(draws["rho"], draws["alpha"], x)
    return {"rho": draws["rho"], "alpha": draws["alpha"], "f": (factor @ draws["z"].unsqueeze(-1)).squeeze(-1)}


def gp_sites(draws: Draws, x: Tensor, k: Tensor) -> Draws:
    factor = gp_factor(draws["rho"], draws["alpha"], x)
    z = torch.linalg.solve_triangular(factor, draws["f"].unsqueeze(-1), upper=False).squeeze(-1)
    return {"rho": draws["rho"], "alpha": draws["alpha"], "z": z}
