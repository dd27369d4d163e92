"""Plots of a fit: the ELBO, pairs of latents, ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..figures import new_axes
from .summary import labelled


def plot_elbo(elbo: Sequence[float], evidence: float | None = None, ax: Any = None) -> Any:
    """The ELBO over steps, noisy and smoothed; returns the Figure.

    Args:
        elbo: estimates in nats, NaN where a step was dropped.
        evidence: the log evidence, drawn as a line if known.
        ax: the Axes to draw on, by default a new Figure's.
    """
    ax = new_axes(1, 1, (6, 4))[0, 0] if ax is None else ax
    values = np.asarray(elbo, dtype=float)
    ax.plot(values, color="0.8", lw=0.5)
    size = max(len(values) // 50, 1)
    blocks = values[: len(values) // size * size].reshape(-1, size)
    found = np.isfinite(blocks).sum(axis=1)
    smooth = np.where(found, np.nansum(blocks, axis=1) / np.maximum(found, 1), np.nan)
    ax.plot((np.arange(len(smooth)) + 0.5) * size, smooth, color="C0", label="ELBO")
    if evidence is not None:
        ax.axhline(evidence, color="C3", ls="--", label="log evidence")
    late = values[len(values) // 10 :]
    top = np.nanquantile(late, 0.999)
    ax.set_ylim(np.nanquantile(late, 0.01), (top if evidence is None else max(top, evidence)) + 0.1)
    ax.set(xlabel="step", ylabel="nats")
    ax.legend(loc="lower right")
    return ax.figure


def plot_rows(mean: NDArray, sd: NDArray, name: str, most: int = 60) -> Any:
    """A caterpillar plot of rows: means in order with intervals of 90 %, one panel for each number; the Figure.

    Args:
        mean: means of shape ``(R, numbers)``.
        sd: standard deviations of that shape.
        name: of the site.
        most: rows that are shown, at equal distances in the order, if there are more.
    """
    count = mean.shape[1]
    axes = new_axes(1, count, (4 * count + 1, 5))
    for number in range(count):
        ax, order = axes[0, number], np.argsort(mean[:, number])
        order = order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))]
        middle, half = mean[order, number], 1.645 * sd[order, number]
        places = np.arange(len(order))
        ax.hlines(places, middle - half, middle + half, color="C0", alpha=0.5, lw=1)
        ax.plot(middle, places, ".", color="C0", ms=4)
        ax.axvline(mean[:, number].mean(), color="C3", ls="--", lw=1)
        shown = len(order) < len(mean)
        ax.set(xlabel=name if count == 1 else f"{name}[{number}]", yticks=[])
        ax.set_ylabel(f"{len(order)} of {len(mean)} rows in order" if shown else f"{len(mean)} rows in order")
    return axes[0, 0].figure


def plot_pairs(draws: Mapping[str, NDArray], max_scalars: int = 6) -> Any:
    """Histograms on the diagonal and scatter plots below it; returns the Figure.

    Args:
        draws: arrays ``(S, ...)`` by name.
        max_scalars: how many scalars at most, the first ones.
    """
    scalars = dict(list(labelled(draws))[:max_scalars])
    size = len(scalars)
    axes = new_axes(size, size, (2 * size + 1, 2 * size + 1))
    for (row, (name, y)), (column, (other, x)) in (
        (a, b) for a in enumerate(scalars.items()) for b in enumerate(scalars.items())
    ):
        ax = axes[row, column]
        if column > row:
            ax.axis("off")
        elif column == row:
            ax.hist(y, bins=50, color="C0", histtype="stepfilled", alpha=0.6)
            ax.set_yticks([])
        else:
            ax.plot(x[:2000], y[:2000], ".", ms=2, alpha=0.3, color="C0")
        if row == size - 1:
            ax.set_xlabel(other)
        if column == 0 and row:
            ax.set_ylabel(name)
    return axes[0, 0].figure


def plot_ranks(counts: Mapping[str, NDArray], expected: NDArray, edges: NDArray) -> Any:
    """Histograms of ranks beside what uniform ranks give; returns the Figure.

    Args:
        counts: how many ranks lie in each bin, ``(bins,)`` by label.
        expected: how many would, ``(bins,)``.
        edges: where bins begin and end, ``(bins + 1,)``.
    """
    columns = min(len(counts), 4)
    rows = -(-len(counts) // columns)
    axes = new_axes(rows, columns, (3 * columns, 2 * rows + 0.5)).ravel()
    # 98 % of a binomial count lie inside, about.
    band = 2.33 * np.sqrt(expected * (1 - expected / expected.sum()))
    for ax, (label, count) in zip(axes, counts.items(), strict=False):
        ax.stairs(expected + band, edges, baseline=np.maximum(expected - band, 0), fill=True, color="0.85")
        ax.stairs(expected, edges, color="0.5", ls="--")
        ax.stairs(count, edges, color="C0", lw=1.5)
        ax.set(title=label, xlabel="rank", ylim=(0, None))
    for ax in axes[len(counts) :]:
        ax.axis("off")
    return axes[0].figure
