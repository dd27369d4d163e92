"""Plots of densities: the way of rows through the layers, and calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..figures import new_axes


def plot_trajectory(layers: Sequence[NDArray], most: int = 8) -> Any:
    """Points in the first two dimensions after each layer, coloured by where they start; returns the Figure.

    Args:
        layers: arrays ``(S, D)``, the base first, as ``Compose.trajectory`` gives them.
        most: how many are shown at most, the first and the last always.
    """
    shown = np.unique(np.linspace(0, len(layers) - 1, most).round().astype(int))
    columns = min(len(shown), 4)
    axes = new_axes(-(-len(shown) // columns), columns, (3.5 * columns, 3.5 * -(-len(shown) // columns)))
    flat = [np.pad(values, ((0, 0), (0, 1)))[:, :2] for values in layers]
    colour = np.arctan2(flat[0][:, 1], flat[0][:, 0])
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    for ax, depth in zip(axes.flat, shown, strict=False):
        ax.scatter(*flat[depth].T, s=2, c=colour, cmap="twilight", rasterized=True)
        ax.set_title("base" if depth == 0 else f"after layer {depth} of {len(layers) - 1}")
    return axes[0, 0].figure


def plot_calibration(shares: NDArray, ax: Any = None) -> Any:
    """How many rows lie in each region of highest density, against how many should; returns the Figure.

    Args:
        shares: for each row the share of the model's draws that are likelier, uniform if the model is right.
        ax: the Axes to draw on, by default a new Figure's.
    """
    ax = new_axes(1, 1, (4.5, 4.5))[0, 0] if ax is None else ax
    level = np.linspace(0, 1, 101)
    held = np.searchsorted(np.sort(shares), level, side="right") / len(shares)
    spread = 2 * np.sqrt(level * (1 - level) / len(shares))
    ax.fill_between(level, level - spread, level + spread, color="0.85", label="two standard errors")
    ax.plot(level, level, color="0.5", lw=0.5)
    ax.plot(level, held, color="C0", label="rows held")
    ax.set(
        xlabel="region of highest density", ylabel="share of the rows in it", aspect="equal", xlim=(0, 1), ylim=(0, 1)
    )
    ax.legend(loc="upper left")
    return ax.figure
