"""The centred eight-schools model: a flow guide against the exact posterior.

A funnel that defeats Gaussian guides and that NUTS leaves with divergences. Given mu and tau the school effects are
normal, so quadrature over these two gives the posterior and the evidence to all digits printed.
Data: Rubin (1981), as in Gelman et al., Bayesian Data Analysis, section 5.5.

    python examples/eight_schools.py [--smoke] [--seed 0] [--out .]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

import pyroflows
from pyroflows.posterior import plots, summary

SCHOOLS = ["Choate", "Deerfield", "Phillips Andover", "Phillips Exeter"]
SCHOOLS += ["Hotchkiss", "Lawrenceville", "St. Paul's", "Mt. Hermon"]
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def model(sigma: Tensor, y: Tensor) -> None:
    """Effects of coaching in eight schools, partially pooled."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


class Exact:
    """The posterior on a grid over mu and log tau, with theta integrated out in closed form."""

    def __init__(self) -> None:
        y, sigma = Y.double().numpy(), SIGMA.double().numpy()
        log_tau, mu = np.meshgrid(np.linspace(-20, 8, 2801), np.linspace(-40, 50, 1801), indexing="ij")
        self.log_tau, self.mu, tau = log_tau, mu, np.exp(log_tau)
        cauchy = np.log(2 / (5 * np.pi)) - np.log1p((tau / 5) ** 2) + log_tau
        log_p = normal_log_density(mu, 0, 5) + cauchy
        for yj, sj in zip(y, sigma, strict=True):
            log_p = log_p + normal_log_density(yj, mu, np.hypot(tau, sj))
        cell = (log_tau[1, 0] - log_tau[0, 0]) * (mu[0, 1] - mu[0, 0])
        self.log_evidence = np.log(np.exp(log_p - log_p.max()).sum() * cell) + log_p.max()
        self.mass = np.exp(log_p - self.log_evidence) * cell
        self.moments = {"mu": self._moments(mu), "tau": self._moments(tau), "log tau": self._moments(log_tau)}
        for j, (yj, sj) in enumerate(zip(y, sigma, strict=True)):
            precision = sj**-2 + tau**-2
            mean, sd = self._moments((yj / sj**2 + mu / tau**2) / precision)
            self.moments[f"theta[{j}]"] = mean, float(np.sqrt(sd**2 + (self.mass / precision).sum()))

    def _moments(self, values: NDArray) -> tuple[float, float]:
        mean = (self.mass * values).sum()
        return float(mean), float(np.sqrt((self.mass * (values - mean) ** 2).sum()))


def normal_log_density(x: NDArray, loc: NDArray, scale: NDArray) -> NDArray:
    """The log density of a normal, over arrays."""
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def compare(posterior: pyroflows.Posterior, exact: Exact) -> str:
    """The flow's moments beside the exact ones, errors in posterior standard deviations."""
    draws = scalars(posterior)
    rows = {}
    for name, (mean, sd) in exact.moments.items():
        found = draws[name]
        rows[name] = {"mean": found.mean(), "exact": mean, "sd": found.std(), "exact sd": sd}
        rows[name] |= {"mean err/sd": (found.mean() - mean) / sd, "sd ratio - 1": found.std() / sd - 1}
    return summary.table(rows)


def scalars(posterior: pyroflows.Posterior) -> dict[str, NDArray]:
    """The posterior's draws by scalar, with log tau."""
    draws = {name: value.numpy() for name, value in posterior.draws.items()}
    named = dict(summary.labelled(draws))
    return {**named, "log tau": np.log(named["tau"])}


def draw(posterior: pyroflows.Posterior, exact: Exact) -> plt.Figure:
    """Marginals of mu and log tau, the funnel, and the path of the ELBO."""
    draws = scalars(posterior)
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    grids = {"mu": (exact.mu[0], exact.mass.sum(0)), "log tau": (exact.log_tau[:, 0], exact.mass.sum(1))}
    for ax, (name, (grid, mass)) in zip(axes[0], grids.items(), strict=True):
        ax.hist(draws[name], bins=60, density=True, color="C0", alpha=0.5, label="flow")
        ax.plot(grid, mass / (grid[1] - grid[0]), color="black", label="exact")
        low, high = np.quantile(draws[name], [0.001, 0.999])
        ax.set(xlabel=name, xlim=(low - 1, high + 1))
        ax.legend()
    ax = axes[1, 0]
    ax.plot(draws["theta[0]"], draws["log tau"], ".", ms=3, alpha=0.3, color="C0", label="flow")
    theta, log_tau = exact_draws(exact, 4000)
    ax.plot(theta, log_tau, ".", ms=3, alpha=0.3, color="black", zorder=0, label="exact")
    ax.set(xlabel=f"theta[0], {SCHOOLS[0]}", ylabel="log tau", title="the funnel")
    ax.legend(markerscale=4)
    plots.plot_elbo(posterior.history.elbo, exact.log_evidence, axes[1, 1])
    axes[1, 1].set_title(f"ELBO, k-hat {posterior.khat:.2f}")
    return figure


def exact_draws(exact: Exact, count: int) -> tuple[NDArray, NDArray]:
    """Draws of theta[0] and log tau from the exact posterior."""
    rng = np.random.default_rng(0)
    cells = rng.choice(exact.mass.size, count, p=exact.mass.ravel() / exact.mass.sum())
    mu, log_tau = exact.mu.ravel()[cells], exact.log_tau.ravel()[cells]
    y, sigma, tau = float(Y[0]), float(SIGMA[0]), np.exp(log_tau)
    precision = sigma**-2 + tau**-2
    return rng.normal((y / sigma**2 + mu / tau**2) / precision, precision**-0.5), log_tau


def main() -> None:
    """Fits, compares, draws and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
    pyro.set_rng_seed(options.seed)
    effort = {"steps": 50, "full_rank": None} if options.smoke else {"steps": 5000}
    posterior = pyroflows.fit(model, SIGMA, Y, **effort)
    exact = Exact()

    print(posterior.summary())
    print(f"\nAgainst the exact posterior, by quadrature\n{compare(posterior, exact)}")
    found = posterior.diagnostics
    gap = exact.log_evidence - found.elbo
    print(f"\nELBO {found.elbo:.3f}, exact log evidence {exact.log_evidence:.4f}, gap {gap:.3f}")

    draw(posterior, exact).savefig(options.out / "eight_schools.png", dpi=120)
    posterior.to_arviz(coords={"school": SCHOOLS}).to_netcdf(options.out / "eight_schools.nc")
    print(f"\nwrote {options.out / 'eight_schools.png'} and {options.out / 'eight_schools.nc'}")


if __name__ == "__main__":
    main()
