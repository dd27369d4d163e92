"""Minibatches of rows in memory."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Batches:
    """Minibatches of rows in memory, shuffled anew by torch's generator each time, of nearly equal sizes.

    Args:
        tensors: of as many rows each.
        size: most rows of a batch.

    Example:
        >>> [len(x) for (x,) in Batches([torch.arange(10.0)], 4)]
        [4, 3, 3]
    """

    def __init__(self, tensors: Sequence[Tensor], size: int) -> None:
        self.tensors, self.size = tensors, size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rows = len(self.tensors[0])
        for part in torch.randperm(rows, device="cpu").tensor_split(max(-(-rows // self.size), 1)):
            yield tuple(t[part.to(t.device)] for t in self.tensors)
