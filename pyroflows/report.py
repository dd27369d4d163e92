"""Tables and ArviZ objects from draws: numpy and ArviZ only, whichever of 0.x and 1.x is installed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray]


def inference_data(groups: Mapping[str, Arrays], dims: Mapping[str, Sequence[str]], coords: Mapping | None) -> Any:
    """Makes an ArviZ object: ``InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x.

    Args:
        groups: arrays by group and name; those of ``posterior`` and ``sample_stats`` have leading
            dimensions ``(chain, draw)``.
        dims: names of an array's further dimensions, by the array's name.
        coords: labels by dimension name.
    """
    import arviz

    options = {"dims": {k: list(v) for k, v in dims.items()}, "coords": coords}
    arrays = {group: dict(values) for group, values in groups.items() if values}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(arrays, **options)
    return arviz.from_dict(**arrays, **options)


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


def summarize(draws: Arrays, weights: NDArray | None, mass: float, notes: str) -> Summary:
    """Mean, sd and the central interval of every scalar.

    Args:
        draws: arrays ``(S, ...)`` by name.
        weights: ``(S,)`` summing to one, or None for equal ones.
        mass: probability inside the interval.
        notes: text below the table.
    """
    tail = (1 - mass) / 2
    rows = {label: describe(values, weights, (tail, 1 - tail)) for label, values in labelled(draws)}
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
