"""Radon in the houses of 85 counties, of which some were measured once and some forty times: varying slopes.

The measurements are simulated, in the manner of the study in Gelman and Hill, Data Analysis Using Regression and
Multilevel Models, chapter 12: the log of the radon level, lower on the first floor than in the basement, with a level
and an effect of the floor for each county. ``fit`` follows the plate of the counties. The picture shows the counties'
levels in order, and how far each is drawn from the mean of its own measurements towards the mean of all counties: the
further, the fewer there are. Another one shows the model.

    python examples/radon.py [--smoke] [--seed 0] [--out .]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyroflows

COUNTIES = 85
LEVEL, FLOOR, NOISE = (1.4, 0.4), (-0.7, 0.3), 0.75


def simulated(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each house's county, whether it was measured on the first floor, and the log of the level."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 41, (COUNTIES,), generator=generator)
    county = torch.arange(COUNTIES).repeat_interleave(sizes)
    floor = (torch.rand(len(county), generator=generator) < 0.3).float()
    level, effect = (mean + sd * torch.randn(COUNTIES, generator=generator) for mean, sd in (LEVEL, FLOOR))
    noise = NOISE * torch.randn(len(county), generator=generator)
    return county, floor, level[county] + effect[county] * floor + noise


def model(county: Tensor, floor: Tensor, radon: Tensor) -> None:
    """A level and an effect of the floor for each county."""
    level = pyro.sample("level", dist.Normal(0.0, 5.0))
    effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(torch.ones(2)).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("county", COUNTIES):
        levels = pyro.sample("levels", dist.Normal(level, spread[..., 0]))
        effects = pyro.sample("effects", dist.Normal(effect, spread[..., 1]))
    with pyro.plate("house", len(radon)):
        pyro.sample("radon", dist.Normal(levels[..., county] + effects[..., county] * floor, noise), obs=radon)


def plot(posterior: pyroflows.PlatePosterior, county: Tensor, floor: Tensor, radon: Tensor, path: Path) -> None:
    """Levels in order beside levels against the counties' own means."""
    levels, sd = posterior.moments()["levels"]
    effects, _ = posterior.moments()["effects"]
    order = levels.argsort()
    counts = torch.bincount(county, minlength=COUNTIES)
    own = torch.zeros(COUNTIES).index_add(0, county, (radon - effects[county] * floor).float()) / counts
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
    places = torch.arange(COUNTIES)
    left.hlines(places, (levels - 1.645 * sd)[order], (levels + 1.645 * sd)[order], color="C0", alpha=0.5)
    left.plot(levels[order], places, ".", color="C0")
    left.set(xlabel="level of a county, with 90 % intervals", ylabel="counties in order", yticks=[])
    right.scatter(own, levels, s=4 + 4 * counts, alpha=0.6, color="C0")
    ends = [float(own.min()), float(own.max())]
    right.plot(ends, ends, color="0.6", lw=1)
    right.axhline(float(levels.mean()), color="C3", ls="--", lw=1)
    right.set(xlabel="mean of the county's own measurements", ylabel="level by the model", title="larger: more houses")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="no steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    pyro.set_rng_seed(args.seed)
    data = simulated(args.seed)
    posterior = pyroflows.fit(model, *data, steps=1 if args.smoke else 1000, progress=False)
    print(posterior.structure)
    print(posterior.summary())
    posterior.plot_structure().savefig(args.out / "radon_structure.png", dpi=100)
    plot(posterior, *data, args.out / "radon.png")


if __name__ == "__main__":
    main()
