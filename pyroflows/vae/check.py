"""Batches of data and context, checked."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..autograd import is_traced
from ..seeds import generators, rewind


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


class CheckedBatches:
    """The batches of a loader as data and context, checked.

    Args:
        loader: gives tensors, or tuples that start with the data and the context.
        ready: makes of data and context what a model takes, and raises if they cannot be right.
        with_context: whether the model takes a context.
    """

    def __init__(self, loader: Iterable, ready: Callable[..., tuple], with_context: bool) -> None:
        self.loader, self.ready, self.with_context = loader, ready, with_context

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in self.loader:
            x, *rest = batch if isinstance(batch, tuple | list) else (batch,)
            yield self.ready(x, rest[0] if rest and self.with_context else None)

    def described(self) -> dict[str, Tensor]:
        """What tells these data from others, for a checkpoint: sums over the first batch, of numbers and by place.

        Nothing where the loader can be gone through only once, or gives another batch from the same state of torch's
        generators, which stay as they are.
        """
        if isinstance(self.loader, Iterator):
            return {}
        states, found = generators(), []
        for _ in range(2):
            rewind(states)
            found.append(_sums(next(iter(self), ())))
        rewind(states)
        return found[0] if found[0] == found[1] else {}


def _sums(batch: Iterable[Tensor | None]) -> dict[str, Tensor]:
    sums = {}
    for name, given in zip(("data", "context"), batch, strict=False):
        numbers = torch.empty(0) if given is None else given.detach().double().flatten().cpu()
        places = torch.arange(len(numbers), dtype=numbers.dtype) / max(len(numbers), 1)
        sums[f"a sum over the first batch of {name}"] = numbers.sum()
        sums[f"one by place over the first batch of {name}"] = (numbers * places).sum()
    return sums
