"""Two moons: a spline flow learns a density from data; the picture shows it layer by layer.

python examples/density_moons.py [--smoke] [--out .]
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons

from pyroflows import FlowDensity, flows


def draw(density: FlowDensity, rows: np.ndarray) -> plt.Figure:
    """The density, its samples warm and cold, the data, and a walk between two rows."""
    figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
    side = np.linspace(-1.5, 2.5, 300)
    points = np.stack(np.meshgrid(side, side - 0.25), axis=-1)
    values = np.exp(density.score_samples(points.reshape(-1, 2))).reshape(300, 300)
    box = (-1.5, 2.5, -1.75, 2.25)
    axes[0].imshow(values, extent=box, origin="lower", cmap="magma")
    axes[0].set_title("density")
    axes[1].plot(*rows[:3000].T, ".", ms=2, color="black")
    first, last = (rows[np.linalg.norm(rows - end, axis=1).argmin()] for end in ([-1.0, 0.2], [2.0, 0.3]))
    axes[1].plot(*density.interpolate(first, last, 200).T, color="C3", lw=2)
    axes[1].set_title("data, and a path in base space")
    for ax, temperature in zip(axes[2:], (1.0, 0.5), strict=True):
        ax.plot(*density.sample(3000, temperature=temperature).T, ".", ms=2, color="C0")
        ax.set_title(f"samples, temperature {temperature:g}")
    for ax in axes:
        ax.set(xlim=box[:2], ylim=box[2:], aspect="equal")
    return figure


def main() -> None:
    """Trains, scores on new points, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--smoke", action="store_true", help="few epochs, to see that it runs")
    options = parser.parse_args()

    torch.set_num_threads(1)
    train, test = (make_moons(10_000, noise=0.05, random_state=seed)[0] for seed in (0, 1))
    density = FlowDensity(
        partial(flows.nsf, layers=6),
        epochs=2 if options.smoke else 60,
        batch_size=512,
        lr=5e-3,
        random_state=0,
        progress=True,
    ).fit(train)
    print(f"held out: {density.score(test):.3f} nats a point after {len(density.log_.train)} epochs")
    draw(density, test).savefig(options.out / "density_moons.png", dpi=110)
    density.plot_trajectory().savefig(options.out / "density_moons_layers.png", dpi=80)
    print(f"wrote density_moons.png and density_moons_layers.png to {options.out.resolve()}")


if __name__ == "__main__":
    main()
