"""Whether the posteriors of simulated data hold what the data were made of, in ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..posterior import plots, summary

# A p-value below this, over the number of scalars, is no accident.
LEVEL = 0.01
# So many simulations for each bin of ranks, and so many of them at least; so many failures before any success end it.
PER_BIN, LEAST, HOPELESS = 10, 20, 5


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among posterior draws, over simulations; made by :func:`calibrate`.

    Args:
        ranks: how many of the draws lie below the truth, ``(num_simulations, *site.shape)`` by site.
        draws: number of draws of each posterior: ranks go from 0 to this.
        failed: the errors of the fits that gave no posterior.
        untrusted: how many posteriors said themselves that they are not to be trusted.

    Example:
        >>> found = Calibration({"x": np.arange(200) // 4}, draws=99)  # never in the upper half of the draws
        >>> found.p_values["x"] < 1e-6, found.verdict.split(":")[1:]
        (True, [' do not trust', ' the posteriors are too high. Fit for more steps, or calibrate refined draws.'])
    """

    ranks: Mapping[str, NDArray]
    draws: int
    failed: Sequence[str] = field(default=(), repr=False)
    untrusted: int = 0

    @property
    def num_simulations(self) -> int:
        """How many posteriors there were."""
        return len(next(iter(self.ranks.values())))

    @property
    def p_values(self) -> dict[str, float]:
        """The p-value of a chi-squared test of uniform ranks, by scalar."""
        return {label: _p_value(self._count(ranks), self._expected) for label, ranks in summary.labelled(self.ranks)}

    @property
    def verdict(self) -> str:
        """One sentence: whether the ranks are uniform, or how the posteriors are wrong, and what to do."""
        tried, p_values = self.num_simulations + len(self.failed), self.p_values
        worst = min(p_values, key=p_values.get)
        found = f"smallest p-value {p_values[worst]:.2g} ({worst}) of {len(p_values)} scalars"
        if len(self.failed) > 0.1 * tried:
            return f"{found}: do not trust: {len(self.failed)} of {tried} fits failed, the first by: {self.failed[0]}"
        if p_values[worst] >= LEVEL / len(p_values):
            return f"{found}: good, the ranks are as uniform as {self.num_simulations} simulations can tell."
        shape = _shape(dict(summary.labelled(self.ranks))[worst] / self.draws)
        return f"{found}: do not trust: the posteriors are {shape}. Fit for more steps, or calibrate refined draws."

    def plot(self, *, max_scalars: int = 12) -> Any:
        """Histograms of the ranks, with the band where 98 % of uniform bars end; returns a matplotlib Figure."""
        shown = dict(list(summary.labelled(self.ranks))[:max_scalars])
        counts = {label: self._count(ranks) for label, ranks in shown.items()}
        return plots.plot_ranks(counts, self._expected, self._edges)

    def __str__(self) -> str:
        rows, p_values = {}, self.p_values
        for label, ranks in summary.labelled(self.ranks):
            place = ranks / self.draws
            rows[label] = {"p": p_values[label], "mean rank": place.mean(), "sd / uniform": place.std() * 12**0.5}
        return (
            f"{summary.table(rows)}\n\n{self.verdict}\n{self.num_simulations} simulations, {self.draws} draws each, "
            f"{len(self.failed)} failed fits, {self.untrusted} posteriors not to be trusted by their own verdict"
        )

    @property
    def _edges(self) -> NDArray:
        """First rank of each bin, and one past the last rank."""
        bins = min(max(self.num_simulations // PER_BIN, 2), 20, self.draws + 1)
        return np.linspace(0, self.draws + 1, bins + 1).round()

    @property
    def _expected(self) -> NDArray:
        return self.num_simulations * np.diff(self._edges) / (self.draws + 1)

    def _count(self, ranks: NDArray) -> NDArray:
        return np.histogram(ranks, self._edges - 0.5)[0]


def _p_value(counts: NDArray, expected: NDArray) -> float:
    """The upper tail of the chi-squared distribution at Pearson's statistic."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    tail = partial(torch.tensor, dtype=torch.float64)
    return float(torch.special.gammaincc(tail((len(counts) - 1) / 2), tail(statistic / 2)))


def _shape(place: NDArray) -> str:
    """What ranks that are not uniform say of the posteriors; ``place`` is in [0, 1]."""
    shift = (place.mean() - 0.5) * math.sqrt(12 * len(place))
    if abs(shift) > 3:
        return "too low" if shift > 0 else "too high"
    spread = place.std() * 12**0.5
    return "too narrow" if spread > 1.05 else "too wide" if spread < 0.95 else "of another shape than the truth's"
