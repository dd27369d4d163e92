"""Two moons: a spline flow learns a density from data; the picture shows it layer by layer.

python examples/flow_density.py [--smoke] [--out .]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.datasets import make_moons
from torch import Tensor

from pyroflows import FlowDistribution, flows


def moons(count: int, seed: int) -> Tensor:
    """Points on two half circles, with noise, centred and scaled."""
    points = torch.tensor(make_moons(count, noise=0.05, random_state=seed)[0], dtype=torch.float32)
    return (points - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])


def train(flow: flows.Compose, data: Tensor, steps: int) -> None:
    """Maximises the likelihood by SVI with an empty guide, on minibatches."""

    def model(batch: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("rows", len(data), subsample_size=len(batch)):
            pyro.sample("x", FlowDistribution(transform=flow), obs=batch)

    optim = pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(model, lambda batch: None, optim, Trace_ELBO())
    for step in range(steps):
        loss = svi.step(data[torch.randint(len(data), (512,))])
        if step % 250 == 0:
            print(f"step {step:4d}  log likelihood {-loss / len(data):.3f} nats a point")


@torch.no_grad()
def draw(flow: flows.Compose, data: Tensor) -> plt.Figure:
    """The density with the data, samples, and base samples on their way through the layers."""
    density = FlowDistribution(transform=flow)
    figure, axes = plt.subplots(2, 4, figsize=(15, 7.5), layout="constrained")
    side = torch.linspace(-3, 3, 300)
    x, y = torch.meshgrid(side, side, indexing="xy")
    density_values = density.log_prob(torch.stack([x, y], dim=-1)).exp()
    axes[0, 0].imshow(density_values.numpy(), extent=(-3, 3, -3, 3), origin="lower")
    axes[0, 0].set_title("density")
    axes[0, 1].plot(*data[:3000].T.numpy(), ".", ms=2, color="black")
    axes[0, 1].set_title("data")
    x = density.base.sample((6000,))
    colour = torch.atan2(x[:, 1], x[:, 0])
    shown = torch.linspace(0, len(flow), 6).round().int().tolist()
    for ax, depth in zip(axes.flat[2:], shown, strict=True):
        y = x
        for layer in flow.transforms[:depth]:
            y = layer(y)
        ax.scatter(*y.T.numpy(), s=2, c=colour.numpy(), cmap="twilight")
        ax.set_title("base" if depth == 0 else f"after layer {depth} of {len(flow)}")
    for ax in axes.flat:
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    return figure


def main() -> None:
    """Trains, scores on new points, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()

    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    flow = flows.nsf(2, layers=6)
    train(flow, moons(10_000, seed=0), steps=50 if options.smoke else 2000)
    test = moons(10_000, seed=1)
    with torch.no_grad():
        print(f"held out: {FlowDistribution(transform=flow).log_prob(test).mean():.3f} nats a point")
    draw(flow, test).savefig(options.out / "flow_density.png", dpi=120)
    print(f"wrote {options.out / 'flow_density.png'}")


if __name__ == "__main__":
    main()
