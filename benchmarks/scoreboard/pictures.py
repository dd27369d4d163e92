"""Errors against seconds, one marker for each method and posterior."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from .results import Key, Record, chosen
from .table import CLOSE, error, seconds

MARKERS = "osD^v<>Pp*hX"
# Larger errors are drawn here: what went astray shall not squeeze what did not.
TOP = 10.0


def errors_against_seconds(found: Mapping[Key, Record], path: Path) -> None:
    """Draws the picture: medians over the seeds, both axes logarithmic."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.add_subplot()
    methods = dict.fromkeys(key[1] for key in found)
    for method, marker in zip(methods, MARKERS, strict=False):
        kept = [chosen(found, method, name) for name in dict.fromkeys(key[0] for key in found)]
        points = [(median(map(seconds, rs)), min(median(map(error, rs)), TOP)) for rs in kept if rs]
        if points:
            ax.plot(*zip(*points, strict=True), marker, label=method, alpha=0.7, ms=9 if method == "fit" else 6)
    ax.axhline(CLOSE, color="0.7", lw=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="seconds", ylabel=f"larger of dmean and dsd, at most {TOP:.0f}")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=100)
