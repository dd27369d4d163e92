"""The precision that a model runs in: default dtype, arguments, values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Numbers in the code of a model take this dtype; None leaves it."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype or usual)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def run_in(dtype: torch.dtype, model: Callable, *args: object, **kwargs: object) -> Any:
    """What a model returns under a default dtype."""
    with default_dtype(dtype):
        return model(*args, **kwargs)


def in_precision(values: Any, dtype: torch.dtype | None) -> Any:
    """The structure with its floating tensors in another precision; None leaves it."""
    if dtype is None:
        return values
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)
