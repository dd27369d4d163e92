"""Tables and ArviZ objects from draws: numpy and ArviZ only, whichever of 0.x and 1.x is installed."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray]
WITHOUT_DRAWS = ("observed_data", "constant_data")
EMPTY: Mapping[str, Any] = MappingProxyType({})


def inference_data(groups: Mapping[str, Arrays], dims: Mapping[str, Sequence[str]], coords: Mapping | None) -> Any:
    """Makes an ArviZ object: ``InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x.

    Args:
        groups: arrays by group and name; all but those of ``observed_data`` and ``constant_data`` have leading
            dimensions ``(chain, draw)``. Empty groups are left out.
        dims: names of an array's further dimensions, by the array's name; of a log likelihood the first of them.
        coords: labels by dimension name.

    Raises:
        ValueError: if ``dims`` has a name that no array has, or not as many dimensions as the array.
    """
    arrays = {group: dict(values) for group, values in groups.items() if values}
    _check_dims(arrays, dims)
    # A datum that is a vector has one likelihood: ArviZ takes one list of dimensions a name.
    scores = arrays.pop("log_likelihood", {})
    data = _from_dict(arrays, dims, coords)
    if scores:
        left = {name: list(dims[name])[: score.ndim - 2] for name, score in scores.items() if name in dims}
        more = _from_dict({"log_likelihood": scores}, left, coords)
        data["log_likelihood"] = more["log_likelihood"]
    return data


def _from_dict(arrays: Mapping[str, Arrays], dims: Mapping[str, Sequence[str]], coords: Mapping | None) -> Any:
    import arviz

    options = {"dims": {k: list(v) for k, v in dims.items()}, "coords": coords}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(arrays, **options)
    return arviz.from_dict(**arrays, **options)


def _check_dims(arrays: Mapping[str, Arrays], dims: Mapping[str, Sequence[str]]) -> None:
    ranks = {name: array.ndim - 2 for values in arrays.values() for name, array in values.items()}
    for group in WITHOUT_DRAWS:
        ranks |= {name: array.ndim for name, array in arrays.get(group, {}).items()}
    for name, names in dims.items():
        if name not in ranks:
            raise ValueError(f"expected dims by site, one of {sorted(ranks)}, got {name!r}")
        if len(names) != ranks[name]:
            raise ValueError(f"expected {ranks[name]} names of dimensions for {name!r}, got {list(names)}")


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


def page(title: str, text: str, figures: Sequence[Any]) -> str:
    """An HTML page of its own: preformatted text, then pictures.

    Args:
        title: title of the page.
        text: shown as it is.
        figures: matplotlib Figures.
    """
    pictures = []
    for figure in figures:
        png = BytesIO()
        figure.savefig(png, format="png", dpi=100)
        pictures.append(f'<img alt="" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">')
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return "\n".join([head, f"<pre>{html.escape(text)}</pre>", *pictures, "</html>", ""])
