"""A table of globals and rows."""

from collections.abc import Iterator

from numpy.typing import NDArray
from torch import Tensor

from ...model.rows import Structure
from .. import summary
from ..scalars import as_numpy
from .moments import Moments


def by_plate(
    structure: Structure,
    outer: dict[str, NDArray],
    z: Tensor,
    named: Tensor | None,
    moments: Moments,
    mass: float,
    notes: str,
) -> summary.Summary:
    """Globals, the rows that are named, and one line for all rows of each site.

    Args:
        structure: which latents are of which.
        outer: draws of the globals by site, ``(S, *site.shape)``.
        z: draws of rows, ``(S, rows, d)``.
        named: which rows these are, None for all.
        moments: means and sds of all rows, by site; nothing for no such lines.
        mass: probability inside an interval.
        notes: text below the table.
    """
    table, levels = summary.summarize(outer, None, mass, notes), ((1 - mass) / 2, (1 + mass) / 2)
    for label, values in _labelled(structure, z, named):
        table.rows[label] = summary.describe(values, None, levels)
    for name, (mean, _) in moments.items():
        spread = as_numpy({name: mean.double().flatten()})[name]
        table.rows[f"{name} of {structure.rows} rows"] = summary.describe(spread, None, levels)
    return table


def _labelled(structure: Structure, z: Tensor, named: Tensor | None) -> Iterator[tuple[str, NDArray]]:
    """Draws of each number of some rows by label, as ``theta[3]``, in the numbering of the site's values."""
    for site in structure.inner:
        for label, draws in summary.labelled(as_numpy({site.name: site.place(z)[0]})):
            places = label[len(site.name) + 1 : -1].split(",")
            if named is not None:
                places[site.axis] = str(int(named[int(places[site.axis])]))
            yield f"{site.name}[{','.join(places)}]", draws
