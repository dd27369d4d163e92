"""Accuracy on the centred eight schools, against the exact posterior: ``fit`` and Pyro's own guides.

Errors are the largest over mu, tau and theta of |mean error| / sd and |sd ratio - 1|; log tau, whose left tail is the
neck of the funnel, has columns of its own. Pyro's guides (AutoNormalizingFlow of 4 affine_autoregressive) take 2,500
steps with 64 vectorised particles, rate decaying.

    python benchmarks/eight_schools.py [--seeds 0 1 2]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scoreboard.peers import GUIDES
from timing import table
from torch import Tensor

import pyroflows

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from eight_schools import SIGMA, Exact, Y, model


def errors(draws: dict[str, Tensor], exact: Exact) -> list[str]:
    """The four error columns from draws of mu, tau and theta."""
    scalars = {name: value.reshape(len(value), -1).double().numpy() for name, value in draws.items()}
    found = {"mu": scalars["mu"], "tau": scalars["tau"], "log tau": np.log(scalars["tau"])}
    found |= {f"theta[{j}]": scalars["theta"][:, j] for j in range(8)}
    mean = {name: abs(found[name].mean() - m) / sd for name, (m, sd) in exact.moments.items()}
    spread = {name: abs(found[name].std() / sd - 1) for name, (_, sd) in exact.moments.items()}
    tail = f"{mean.pop('log tau'):.3f}", f"{spread.pop('log tau'):.3f}"
    return [f"{max(mean.values()):.3f}", f"{max(spread.values()):.3f}", *tail]


def run_fit(seed: int, exact: Exact) -> list[str]:
    """One row for ``pyroflows.fit`` with its defaults."""
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    posterior = pyroflows.fit(model, SIGMA, Y, progress=False)
    seconds, found = time.perf_counter() - start, posterior.diagnostics
    ess = f"{found.efficiency:.2f}"
    judged = [f"{found.elbo:.3f}", f"{found.khat:.2f}", f"{found.log_weight_sd:.3f}", ess, f"{seconds:.0f}"]
    return ["pyroflows.fit", str(seed), *errors(posterior.sample(40_000), exact), *judged]


def run_pyro(name: str, seed: int, exact: Exact, steps: int = 2500) -> list[str]:
    """One row for a guide of Pyro."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    guide, elbo = GUIDES[name](model), Trace_ELBO(num_particles=64, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.01 ** (1 / steps)}), elbo)
    for _ in range(steps):
        svi.step(SIGMA, Y)
    seconds = time.perf_counter() - start
    bound = -np.mean([svi.evaluate_loss(SIGMA, Y) for _ in range(50)])
    draws = Predictive(model, guide=guide, num_samples=20_000, parallel=True, return_sites=["mu", "tau", "theta"])
    return [name, str(seed), *errors(draws(SIGMA, Y), exact), f"{bound:.3f}", "", "", "", f"{seconds:.0f}"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    exact = Exact()
    print(f"exact log evidence {exact.log_evidence:.4f}\n")
    rows = [run_fit(seed, exact) for seed in options.seeds]
    rows += [run_pyro(name, options.seeds[0], exact) for name in GUIDES]
    columns = ["guide", "seed", "dmean", "dsd", "dmean log tau", "dsd log tau"]
    print(table([*columns, "ELBO", "k-hat", "sd log w", "ESS/S", "seconds"], rows))


if __name__ == "__main__":
    main()
