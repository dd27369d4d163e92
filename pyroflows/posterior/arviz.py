"""ArviZ objects from draws, whichever of 0.x and 1.x is installed."""

from collections.abc import Mapping, Sequence
from typing import Any

from .summary import Arrays

WITHOUT_DRAWS = ("observed_data", "constant_data")


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
