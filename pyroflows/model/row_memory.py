"""A model at many rows by vmap, with memory that it fills in place, which vmap refuses, made one for each row."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..compile import Untraceable
from ..compile.signature import tensors_in

# Calls that are found to make such memory, one in each turn, before this is given up.
TURNS = 100


class ManyRows:
    """Calls functions of one row at many of them by vmap, and one by one, after a warning, where that cannot be.

    What is found out of a model at one call holds for later ones.

    Attributes:
        one_by_one: whether rows were found to run one by one only.
    """

    def __init__(self) -> None:
        self.one_by_one = False
        self._calls: set[int] | None = None

    def __call__(self, function: Callable[..., Any], *rows: Tensor) -> Any:
        """What a function of one row returns, tensors in a structure, at rows ``(B, ...)``: with a dimension more.

        A row may be several tensors.
        """
        if not self.one_by_one:
            try:
                return rowwise(function, rows, self._calls)
            except (Untraceable, torch.linalg.LinAlgError):  # of a matrix at one row, which says nothing about vmap
                raise
            except RuntimeError as error:
                function(
                    *(part[0] for part in rows)
                )  # a model that fails on one row by itself has its own error to show
                if self._calls is None:  # it may fill memory in place
                    self._calls = set()
                    return self(function, *rows)
                self.one_by_one = True
                warnings.warn(
                    "the model cannot be evaluated for many particles at once and runs one by one, which is "
                    f"slow: replace branches on values and .item() by torch.where. vmap said: {error}",
                    stacklevel=4,
                )
        return pytree.tree_map(lambda *parts: torch.stack(parts), *map(function, *rows))


def rowwise(function: Callable[..., Any], rows: tuple[Tensor, ...], calls: set[int] | None) -> Any:
    """A function at each of some rows, by vmap.

    Args:
        function: of one row, the same calls of torch at each.
        rows: what it is called with, each of shape ``(B, ...)``, floating-point numbers first.
        calls: which calls of torch make memory for each row; found while it runs, and added. None looks for none.

    Raises:
        RuntimeError: if vmap cannot run it.
    """
    if calls is None:
        return torch.func.vmap(function, randomness="same")(*rows)

    def apart(*row: Tensor) -> Any:
        with _OfItsOwn(row[0], calls):
            return function(*row)

    for _ in range(TURNS):
        before = len(calls)
        try:
            return torch.func.vmap(apart, randomness="same")(*rows)
        except RuntimeError:
            if len(calls) == before:
                raise
    raise RuntimeError(f"more than {TURNS} tensors are filled in place")


class _OfItsOwn(TorchFunctionMode):
    """Gives each row memory of its own from the calls of torch that make what is filled in place later.

    All views of such memory are then views of the row's own, so that nothing can be read or written elsewhere.

    Args:
        row: any tensor that vmap runs over.
        calls: which calls, counted from 1; where one is missing it is added, and vmap raises its error.
    """

    def __init__(self, row: Tensor, calls: set[int]) -> None:
        super().__init__()
        self._row, self._calls, self._count = row, calls, 0
        self._made: dict[int, tuple[int, torch.UntypedStorage]] = {}  # kept, so that no other takes its place

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self._count += 1
        one_for_all = _changes(func) and isinstance(args[0], Tensor) and not is_batchedtensor(args[0])
        if one_for_all and any(map(is_batchedtensor, tensors_in((args[1:], kwargs)))):
            self._calls.update(self._made.get(_storage(args[0]), ())[:1])
        if func is Tensor.__setitem__ and _is_mask(args[1]):
            return _put(*args)
        given = tensors_in((args, kwargs))
        out = func(*args, **kwargs)
        old = {_storage(t) for t in given if not is_batchedtensor(t)}
        return pytree.tree_map_only(Tensor, lambda t: self._noted(t, old), out)

    def _noted(self, made: Tensor, old: set[int]) -> Tensor:
        """New memory, noted, or one for each row; views of what was there before stay."""
        if is_batchedtensor(made) or _storage(made) in old:
            return made
        if self._count in self._calls:
            return self._row.new_empty(made.shape, dtype=made.dtype, device=made.device).copy_(made)
        self._made.setdefault(_storage(made), (self._count, made.untyped_storage()))
        return made


def _changes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return func is Tensor.__setitem__ or name.startswith("__i") or (name.endswith("_") and not name.startswith("_"))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() > 0


def _put(base: Tensor, mask: Tensor, value: Any) -> None:
    """``base[mask] = value`` with shapes that do not depend on the mask, so that it can be traced."""
    value, inner = torch.as_tensor(value).to(base), base.dim() - mask.dim()
    if value.dim() > inner and len(value) == 0:
        return
    if value.dim() > inner:
        place = (mask.flatten().cumsum(0) - 1).clamp(0, len(value) - 1)
        value = value.index_select(0, place).reshape(mask.shape + value.shape[1:])
    base.copy_(torch.where(mask.reshape(mask.shape + (1,) * inner), value, base))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
