"""A VAE of handwritten digits with two latents, once with a normal prior and once with a flow in its place.

python examples/vae_flow_prior.py [--smoke] [--out .] [--mnist mnist.npz] [--latents 2] [--seeds 0]

The digits are scikit-learn's, or those of an npz file with ``train_images`` and ``test_images``, 28 x 28 bytes.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pyroflows as pf

TOP = 16  # grey levels run from 0 to this


def images(path: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    """Images to train on, to stop by and to test on, of grey levels 0 to ``TOP``."""
    if path is None:
        rows = torch.tensor(load_digits().images, dtype=torch.float32)
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        return rows[mixed].split([1350, 150, 297])
    data = np.load(path)
    train, test = (torch.tensor(data[f"{part}_images"]).float().div(255).mul(TOP).round() for part in ("train", "test"))
    return *train.split([len(train) - 5000, 5000]), test[:1000]


class Scaled(nn.Module):
    """Flattens images and puts their levels between -1 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-2) / (TOP / 2) - 1


def build(side: int, latents: int, flow: bool) -> pf.VAE:
    """Networks of two hidden layers; each pixel is a binomial count."""
    pixels, width = side * side, 128 if side == 8 else 300
    net = nn.Sequential(Scaled(), nn.Linear(pixels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
    layers = [nn.Linear(latents, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, pixels)]
    prior = pf.FlowPrior(latents, partial(pf.flows.realnvp, layers=6)) if flow else pf.NormalPrior(latents)
    likelihood = partial(dist.Binomial, TOP)
    return pf.VAE(
        pf.FlowEncoder(net, width, latents),
        nn.Sequential(*layers, nn.Unflatten(-1, (side, side))),
        prior,
        lambda logits: likelihood(logits=logits),
    )


@torch.no_grad()
def draw(vaes: dict[str, pf.VAE], test: Tensor) -> plt.Figure:
    """For each prior: its density with the latents of the test images, images from it, and a path between two."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 10), layout="constrained")
    for (name, vae), (left, middle, right) in zip(vaes.items(), axes, strict=True):
        z = vae.encoder(test).sample()
        box = z[:, :2].abs().max(1).values.quantile(0.97).item() * 1.1
        if z.shape[1] == 2:
            grid = torch.stack(torch.meshgrid([torch.linspace(-box, box, 200)] * 2, indexing="xy"), dim=-1)
            density = vae.prior().log_prob(grid)
            shown = density.clamp_min(density.max() - 8)
            left.imshow(shown, extent=(-box, box, -box, box), origin="lower", cmap="magma")
        left.plot(*z[:, :2].T, ".", ms=4, color="cyan", alpha=0.7)
        left.set(xlim=(-box, box), ylim=(-box, box), aspect="equal")
        left.set_title(f"{name}: its log density, and latents of test images")
        middle.imshow(tiles(vae.generate(100)), cmap="gray_r")
        middle.set_title("images from the prior")
        path = torch.cat([vae.interpolate(test[2 * row], test[2 * row + 1], 10) for row in range(10)])
        right.imshow(tiles(path), cmap="gray_r")
        right.set_title("paths between test images")
        for ax in (middle, right):
            ax.axis("off")
    return figure


def tiles(pictures: Tensor) -> Tensor:
    """A hundred images as one."""
    framed = nn.functional.pad(pictures, (1, 1, 1, 1))
    side = framed.shape[-1]
    return framed.view(10, 10, side, side).transpose(1, 2).reshape(10 * side, 10 * side)


def main() -> None:
    """Trains with each prior, prints test likelihoods, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few epochs, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--latents", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()

    torch.set_num_threads(1)
    epochs, samples = (2, 20) if options.smoke else (30 if options.mnist else 150, 500)
    for seed in options.seeds:
        vaes = {}
        for name, flow in (("normal prior", False), ("flow prior", True)):
            pyro.set_rng_seed(seed)
            train, held_out, test = images(options.mnist)
            vae, start = build(train.shape[-1], options.latents, flow), time.perf_counter()
            vae.fit(DataLoader(train, 100, shuffle=True), epochs, validation=DataLoader(held_out, 500), lr=3e-3)
            nats = -torch.cat([vae.log_likelihood(part, samples) for part in test.split(100)]).mean()
            print(f"seed {seed}, {name}: {nats:.2f} nats an image, {time.perf_counter() - start:.0f} s")
            vaes[name] = vae
    draw(vaes, test).savefig(options.out / "vae_flow_prior.png", dpi=80)
    print(f"wrote {options.out / 'vae_flow_prior.png'}")


if __name__ == "__main__":
    main()
