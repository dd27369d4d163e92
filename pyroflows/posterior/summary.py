"""Tables of draws: numpy only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray]
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Summary:
    """A table of posterior draws, one row for each scalar, and what the diagnostics say.

    Args:
        rows: ``{label: {"mean": ..., "sd": ..., "5%": ..., "95%": ...}}``, labels as ``theta[3]``.
        notes: text below the table.
    """

    rows: dict[str, dict[str, float]]
    notes: str

    def __str__(self) -> str:
        return f"{table(self.rows)}\n\n{self.notes}"

    __repr__ = __str__

    def __getitem__(self, label: str) -> dict[str, float]:
        return self.rows[label]


def summarize(
    draws: Arrays, weights: NDArray | None, mass: float, notes: str, columns: Mapping[str, Mapping[str, float]] = EMPTY
) -> Summary:
    """Mean, sd and the central interval of every scalar.

    Args:
        draws: arrays ``(S, ...)`` by name.
        weights: ``(S,)`` summing to one, or None for equal ones.
        mass: probability inside the interval.
        notes: text below the table.
        columns: further columns by label.
    """
    tail = (1 - mass) / 2
    rows = {label: describe(values, weights, (tail, 1 - tail)) for label, values in labelled(draws)}
    rows = {label: {**row, **columns.get(label, {})} for label, row in rows.items()}
    return Summary(rows, notes)


def labelled(draws: Arrays) -> Iterator[tuple[str, NDArray]]:
    """Every scalar of arrays ``(S, ...)`` with its label, as ``theta[3]``."""
    for name, array in draws.items():
        for index in np.ndindex(array.shape[1:]):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            yield label, array[(slice(None), *index)].astype(float)


def describe(values: NDArray, weights: NDArray | None, levels: Sequence[float]) -> dict[str, float]:
    """Mean, sd and quantiles of one scalar's draws ``(S,)``."""
    mean = np.average(values, weights=weights)
    sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    order = np.argsort(values)
    mass = np.cumsum(np.full(len(values), 1 / len(values)) if weights is None else weights[order])
    found = {"mean": mean, "sd": sd}
    for level in levels:
        place = min(np.searchsorted(mass, level), len(values) - 1)
        found[f"{100 * level:.4g}%"] = values[order][place]
    return {k: float(v) for k, v in found.items()}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Aligned columns, four significant digits."""
    first = max(map(len, rows))
    widths = {c: max(11, len(c) + 2) for c in next(iter(rows.values()))}
    lines = [" " * first + "".join(f"{c:>{w}}" for c, w in widths.items())]
    for label, row in rows.items():
        lines.append(f"{label:<{first}}" + "".join(f"{row[c]:>{w}.4g}" for c, w in widths.items()))
    return "\n".join(lines)
