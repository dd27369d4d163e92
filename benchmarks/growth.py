"""How the time of an SVI step grows with particles, dimensions and layers: a table with exponents, and a picture.

The model has a heavy-tailed prior and one normal observation in each dimension; the guide is an AutoFlow, realnvp with
hidden [64, 64]: 4 layers, 16 dimensions and 64 particles, of which one changes at a time. Steps are those of
CompiledSVI, replayed, or compiled with --compile, which takes many minutes. The exponent is the slope of log time over
log size for the larger half of the sizes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from timing import clock, table, turn

from pyroflows import AutoFlow, CompiledSVI, CompiledTrace_ELBO, flows

BASE = {"particles": 64, "dimensions": 16, "layers": 4}
SIZES = {
    "particles": [1, 4, 16, 64, 256, 1024, 4096],
    "dimensions": [2, 4, 8, 16, 32, 64, 128, 256, 512],
    "layers": [2, 4, 8, 16, 32],  # one coupling would leave half of the dimensions as they are
}


def model(dimensions: int) -> None:
    z = pyro.sample("z", dist.StudentT(torch.full((dimensions,), 4.0)).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(dimensions))


def steps(particles: int, dimensions: int, layers: int, compile: bool) -> Callable[[], object]:
    """Ten steps, after a first one."""
    pyro.clear_param_store()
    guide = AutoFlow(model, partial(flows.realnvp, layers=layers, hidden_dims=[64, 64])).setup(dimensions)
    elbo = CompiledTrace_ELBO(particles, compile=compile, strict=True)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), elbo)
    svi.run(2, dimensions)
    return partial(svi.run, 10, dimensions)


def measure(what: str, compile: bool, repeats: int) -> list[float]:
    """Milliseconds of a step by size, the least of some repeats."""
    found = []
    for size in SIZES[what]:
        run = steps(**{**BASE, what: size}, compile=compile)
        found.append(min(100 * turn(run) for _ in range(repeats)))
    return found


def exponent(sizes: list[int], ms: list[float]) -> float:
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(ms[half:]), 1)[0])


def draw(found: dict[str, list[float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(9, 2.8), sharey=True, layout="constrained")
    for axis, (what, ms) in zip(axes, found.items(), strict=True):
        axis.loglog(SIZES[what], ms, "o-", label=f"exponent {exponent(SIZES[what], ms):.2f}")
        axis.set(xlabel=what, xticks=SIZES[what], xticklabels=SIZES[what])
        axis.set_yticks([1, 2, 5, 10, 20], [1, 2, 5, 10, 20])
        axis.minorticks_off()
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms per step")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = clock()
    found = {what: measure(what, args.compile, args.repeats) for what in SIZES}
    for what, ms in found.items():
        print(table([what, *map(str, SIZES[what]), "exponent"], [["ms", *ms, exponent(SIZES[what], ms)]]), end="\n\n")
    if args.picture:
        draw(found, args.picture)
    print(f"{clock() - start:.0f} s")


if __name__ == "__main__":
    main()
