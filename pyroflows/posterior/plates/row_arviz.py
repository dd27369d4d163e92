"""Draws of chosen rows for ArviZ."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...model import LogJoint
from ...model.rows import Structure
from .. import arviz
from ..draws import dims_of


def of_rows(
    draws: Mapping[str, NDArray],
    log_joint: LogJoint,
    structure: Structure,
    rows: list[int],
    coords: Mapping[str, Sequence] | None,
    dims: Mapping[str, Sequence[str]] | None,
) -> Any:
    """An ArviZ object of globals and some rows, with the data of these rows; the plate's labels are their numbers.

    Args:
        draws: by site, ``(S, *site.shape)`` with the dimension of the plate for these rows.
        log_joint: the model, which knows the data.
        structure: the rows.
        rows: which rows, by number.
        coords: labels of dimensions, for all rows in that of the plate.
        dims: names of dimensions by site.
    """
    named = {site.name: dims_of(site.name, site.plates, len(site.shape)) for site in log_joint.space.sites}
    data = {}
    for name, (value, plates) in log_joint.observed().items():
        named[name] = dims_of(name, plates, value.ndim)
        axis = named[name].index(structure.plate) if structure.plate in named[name] else None
        data[name] = value if axis is None else np.take(value, rows, axis)
    labels = dict(coords or {})
    labels[structure.plate] = [labels[structure.plate][row] for row in rows] if structure.plate in labels else rows
    groups = {"posterior": {name: value[None] for name, value in draws.items()}, "observed_data": data}
    return arviz.inference_data(groups, named | dict(dims or {}), labels)
