"""A million groups of five measurements each: an effect for every group, in minutes on one core.

The rate of every group is its own, drawn around a mean that all share; how far groups differ and how far measurements
do is learnt too, 1,000,003 latents in all. ``fit`` follows the plate of the groups: the three globals start at the mode
of their density with all effects integrated out, and each effect is a Gaussian that moves with them. With ``--batch``
the model itself sees so many groups in a run, as models of data that do not fit the memory do, and the fit goes through
all of them in passes. The data are simulated, so that the picture can show what is right: effects against the truth,
and how often intervals hold it.

    python examples/million_groups.py [--groups 1000000] [--batch 500] [--smoke] [--seed 0] [--out .]
"""

import argparse
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyroflows

MEASUREMENTS, MEAN, SPREAD, NOISE = 5, 1.0, 0.7, 1.0
# Groups in the picture.
SHOWN = 60


def simulated(groups: int, seed: int) -> tuple[Tensor, Tensor]:
    """The groups' true effects, and their measurements."""
    generator = torch.Generator().manual_seed(seed)
    effects = MEAN + SPREAD * torch.randn(groups, generator=generator)
    return effects, effects[:, None] + NOISE * torch.randn(groups, MEASUREMENTS, generator=generator)


def model(y: Tensor, batch: int | None = None) -> None:
    """Groups around a mean, measurements around groups."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("group", len(y), subsample_size=batch) as rows:
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("y", dist.Normal(effect[..., None], noise).to_event(1), obs=y[rows])


def plot(posterior: pyroflows.PlatePosterior, effects: Tensor, path: Path) -> None:
    """Some groups with their intervals, and of all groups how often intervals hold the truth."""
    mean, sd = (part.double() for part in posterior.moments()["effect"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    shown = torch.linspace(0, len(mean) - 1, SHOWN).long()
    shown = shown[mean[shown].argsort()]
    places = torch.arange(SHOWN)
    left.hlines(places, (mean - 1.645 * sd)[shown], (mean + 1.645 * sd)[shown], color="C0", alpha=0.5)
    left.plot(mean[shown], places, ".", color="C0", label="posterior")
    left.plot(effects[shown], places, "x", color="C3", ms=4, label="truth")
    left.set(xlabel=f"{SHOWN} of {len(mean):,} effects, with 90 % intervals", yticks=[])
    left.legend(loc="upper left")
    levels = np.linspace(0.02, 0.98, 49)
    ranks = torch.distributions.Normal(mean, sd).cdf(effects.double()).numpy()
    right.plot(levels, [(np.abs(2 * ranks - 1) < level).mean() for level in levels], color="C0")
    right.plot([0, 1], [0, 1], color="0.6", lw=1)
    right.set(xlabel="level of an interval", ylabel="share of groups whose truth it holds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, help="groups that a run of the model sees; all without it")
    parser.add_argument("--smoke", action="store_true", help="2,000 groups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    pyro.set_rng_seed(args.seed)
    effects, y = simulated(2000 if args.smoke else args.groups, args.seed)
    began = perf_counter()
    posterior = pyroflows.fit(model, y, args.batch, progress=False)
    print(f"fitted in {perf_counter() - began:.0f} s")
    print(posterior.structure)
    print(posterior.summary())
    plot(posterior, effects, args.out / "million_groups.png")


if __name__ == "__main__":
    main()
