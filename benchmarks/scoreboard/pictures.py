"""Errors against seconds, one marker for each method and posterior."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .results import Key, Record, chosen
from .table import error, seconds

MARKERS = "osD^v<>Pp*hX"


def errors_against_seconds(found: Mapping[Key, Record], path: Path) -> None:
    """Draws the picture: medians over the seeds, both axes logarithmic."""
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    methods = dict.fromkeys(key[1] for key in found)
    for method, marker in zip(methods, MARKERS, strict=False):
        kept = [chosen(found, method, name) for name in dict.fromkeys(key[0] for key in found)]
        points = [(median(map(seconds, records)), median(map(error, records))) for records in kept if records]
        if points:
            ax.plot(*zip(*points, strict=True), marker, label=method, alpha=0.7, ms=9 if method == "fit" else 6)
    ax.axhline(0.05, color="0.7", lw=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel="seconds", ylabel="larger of dmean and dsd")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
