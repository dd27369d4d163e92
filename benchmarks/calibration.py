"""Simulation-based calibration of ``fit`` as it stands by default: two conjugate models and the eight schools.

Each simulation draws latents from the prior and data from the model, fits the posterior anew, and ranks the truth among
99 draws. Simulations are done in blocks of 20, each from a seed of its own and written at once to a file of results;
blocks found there are not done again. Prints the p-value of a chi-squared test of uniform ranks for each scalar.

    python benchmarks/calibration.py [--models normal gamma eight] [--simulations 200]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyroflows import Calibration, calibrate

BLOCK = 20
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def normal(y: Tensor | None = None) -> None:
    """The mean of ten normal data of known variance."""
    mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
    with pyro.plate("row", 10):
        pyro.sample("y", dist.Normal(mean, 3.0), obs=y)


def gamma(y: Tensor | None = None) -> None:
    """The rate of five counts."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("row", 5):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def eight(y: Tensor | None = None) -> None:
    """The eight schools, non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * offset, SIGMA), obs=y)


MODELS = {model.__name__: model for model in (normal, gamma, eight)}


def block(name: str, model: Callable, seed: int) -> dict:
    """The ranks of 20 simulations, as a line of the results."""
    pyro.set_rng_seed(seed)
    start = perf_counter()
    found = calibrate(model, observed="y", num_simulations=BLOCK, warm_start=False, progress=False)
    ranks = {site: values.tolist() for site, values in found.ranks.items()}
    seconds = perf_counter() - start
    counts = {"failed": list(found.failed), "untrusted": found.untrusted, "draws": found.draws}
    return {"model": name, "seed": seed, "seconds": seconds, "ranks": ranks, **counts}


def merged(blocks: list[dict]) -> Calibration:
    """The calibration of all blocks."""
    ranks = {site: np.concatenate([np.array(b["ranks"][site]) for b in blocks]) for site in blocks[0]["ranks"]}
    failed = [error for b in blocks for error in b["failed"]]
    return Calibration(ranks, blocks[0]["draws"], failed, sum(b["untrusted"] for b in blocks))


def main() -> None:
    """Does what is missing, and prints the p-values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--results", type=Path, default=Path("calibration.jsonl"))
    parser.add_argument("--pictures", type=Path, help="a folder for the histograms of the ranks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {(line["model"], line["seed"]): line for line in map(json.loads, lines)}
    for name in options.models:
        keys = [(name, seed) for seed in range(options.simulations // BLOCK)]
        for key in keys:
            if key not in done:
                done[key] = block(name, MODELS[name], key[1])
                with options.results.open("a") as file:
                    print(json.dumps(done[key]), file=file)
        found = merged([done[key] for key in keys])
        print(f"## {name}\n\n{found}\n{sum(done[key]['seconds'] for key in keys):.0f} seconds\n", flush=True)
        if options.pictures is not None:
            found.plot(max_scalars=12).savefig(options.pictures / f"calibration_{name}.png", dpi=80)


if __name__ == "__main__":
    main()
