"""A density that depends on covariates: two branches, noise that grows, and a check of the calibration.

python examples/conditional_density.py [--smoke] [--out .]
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

from pyroflows import FlowDensity, flows


def branches(rows: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Covariate ``x``, response ``y`` on one of two branches, and the exact log density of each response."""
    rng = np.random.default_rng(seed)
    x, upper = rng.uniform(-3, 3, rows), rng.random(rows) < 0.7
    centre, scale = np.stack([np.cos(x) + 1.5, np.sin(2 * x) - 1.0]), 0.1 + 0.15 * np.abs(x)
    y = np.where(upper, *centre) + scale * rng.normal(size=rows)
    each = np.exp(-0.5 * ((y - centre) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
    return x[:, None], y[:, None], np.log(0.7 * each[0] + 0.3 * each[1])


def draw(density: FlowDensity, x: NDArray, y: NDArray) -> plt.Figure:
    """The data, the density of the response for each covariate, and the calibration."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    axes[0].plot(x, y, ".", ms=1.5, color="black", alpha=0.5)
    axes[0].set_title("data")
    across, up = np.meshgrid(np.linspace(-3, 3, 300), np.linspace(-4, 4, 300))
    values = np.exp(density.score_samples(up.reshape(-1, 1), context=across.reshape(-1, 1))).reshape(300, 300)
    axes[1].imshow(np.sqrt(values), extent=(-3, 3, -4, 4), origin="lower", aspect="auto", cmap="magma")
    axes[1].set_title("p(y | x), square root")
    for ax in axes[:2]:
        ax.set(xlabel="x", ylabel="y", xlim=(-3, 3), ylim=(-4, 4))
    density.plot_calibration(y, context=x, ax=axes[2])
    axes[2].set_title("calibration on new rows")
    return figure


def main() -> None:
    """Trains, compares with the truth on new rows, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few epochs, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    x, y, _ = branches(6000, seed=0)
    flow = partial(flows.nsf, bins=16)
    density = FlowDensity(flow, epochs=2 if options.smoke else 150, random_state=0, progress=True)
    density.fit(y, context=x)
    x, y, exact = branches(4000, seed=1)
    print(f"held out: {density.score(y, context=x):.3f} nats a row, exact {exact.mean():.3f}")
    drawn = density.sample(4000, [0.0])
    print(f"at x = 0 a share of {(drawn > 1).mean():.2f} is on the upper branch, exact 0.70")
    draw(density, x, y).savefig(options.out / "conditional_density.png", dpi=110)
    print(f"wrote {options.out / 'conditional_density.png'}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
