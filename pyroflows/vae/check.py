"""Batches of data and context, checked."""

from torch import Tensor

from ..autograd import is_traced


def check_batch(x: Tensor, context: Tensor | None) -> None:
    """Raises unless data and context are tensors of as many rows each, at least one, without NaN."""
    for given in (x,) if context is None else (x, context):
        if not isinstance(given, Tensor):
            raise TypeError(f"VAE expected tensors as data and context, got {type(given).__name__}: convert them first")
    if len(x) == 0:
        raise ValueError("VAE expected at least one row of data, got none")
    if context is not None and len(context) != len(x):
        raise ValueError(f"VAE expected {len(x)} rows of context, one for each of the data, got {len(context)}")
    if not is_traced(x) and x.isnan().any():
        raise ValueError(f"VAE expected numbers, got NaN in {int(x.isnan().sum())} of {x.numel()} pixels")
