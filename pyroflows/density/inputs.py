"""What a density is given, checked."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..arguments import check_counts, check_ranges


def check_options(options: dict[str, Any]) -> None:
    """Raises unless the options of a FlowDensity are of the kinds that it knows."""
    counts, ranges = ("epochs", "batch_size", "patience"), ("noise", "weight_decay")
    check_counts("FlowDensity", {}, **{name: options[name] for name in counts})
    check_ranges("FlowDensity", 0, np.inf, **{name: options[name] for name in ranges})
    check_ranges("FlowDensity", 0, 1, validation_fraction=options["validation_fraction"])
    if options["dtype"] not in ("float32", "float64"):
        raise ValueError(f"FlowDensity expected dtype='float32' or 'float64', got {options['dtype']!r}")


def context_of(context: ArrayLike | None, rows: Any) -> NDArray:
    """The context as an array with one row for each of ``rows``, without columns where there is none."""
    from sklearn.utils import check_array

    if context is None:
        return np.zeros((len(rows), 0))
    context = check_array(context, dtype=np.float64, input_name="context")
    if len(context) != len(rows):
        raise ValueError(f"FlowDensity expected {len(rows)} rows of context, one for each of X, got {len(context)}")
    return context


def in_use(*rows: NDArray, weight: NDArray) -> tuple[NDArray, ...]:
    """Arrays of as many rows without those of weight 0, and the other weights, with mean 1."""
    used = weight > 0
    if used.sum() < 2:
        raise ValueError(f"FlowDensity expected 2 rows of positive weight or more, got n_samples = {used.sum()}")
    return *(array[used] for array in rows), weight[used] / weight[used].mean()


def digest_of(*arrays: Tensor) -> str:
    """The shapes of arrays, and a digest of their numbers."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.contiguous().cpu().numpy().tobytes())
    return f"{', '.join(str(tuple(array.shape)) for array in arrays)} of digest {digest.hexdigest()[:16]}"
