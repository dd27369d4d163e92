"""What a graph cannot hold is refused while it is traced, with the reason and the user's line."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .errors import READ, Untraceable, where
from .signature import tensors_in

# Larger arrays are not watched.
BYTES = 100_000
LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten._unsafe_index.Tensor,
)
MASKS = (torch.bool, torch.uint8)
# What reads memory without an operation: of these tensors, of a second argument, of tensors in a list.
READERS = {
    Tensor.numpy,
    Tensor.__array__,
    Tensor.tolist,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__dlpack__,
}
SPLITTERS = {torch.tensor_split, Tensor.tensor_split}
MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor, Tensor.new}
_ARRAY = "a large array is read, which may change unnoticed{}: make it a tensor before"
DATA_DEPENDENT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Guard(TorchDispatchMode):
    """Sees every operation: refuses what a replay would get wrong, and notes the leaves that need gradients.

    What is made of numbers in the code alone may be read by Python, as it is the same at each replay.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: set[int] = set()
        self._constants: dict[int, torch.UntypedStorage] = {}  # kept, so that no other takes its place
        self._leaves: dict[int, Tensor] = {}

    def leaves(self, but: list[Tensor]) -> list[Tensor]:
        """The leaves met so far that require gradients, in order, without some."""
        return [leaf for key, leaf in self._leaves.items() if key not in {id(t) for t in but}]

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of numbers in the code alone."""
        return not is_functorch_wrapped_tensor(tensor) and _storage(tensor) in self._constants

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports TorchDynamo, a second of it, to keep out what never gets here

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in INDEXING:
            args = (args[0], self._places(args[1]), *args[2:])
        tensors = tensors_in((args, kwargs))
        fixed = all(self.is_constant(t) for t in tensors)
        if fixed and any(tag in func.tags for tag in DATA_DEPENDENT):
            return self._apart(func, *args, **kwargs)
        self._refuse(func, args, kwargs)
        for tensor in tensors:
            if tensor.requires_grad and tensor.is_leaf and _storage(tensor) not in self._made:
                self._leaves.setdefault(id(tensor), tensor)
        out = func(*args, **kwargs)
        fixed = func in LIFTS or (fixed and torch.Tag.nondeterministic_seeded not in func.tags)
        shared = {_storage(t) for t in tensors} if func not in LIFTS else set()
        for made in tensors_in(out):
            if _storage(made) not in shared:
                self._made.add(_storage(made))
            if fixed:
                self._constants[_storage(made)] = made.untyped_storage()
        for _, changed in _mutated(func, args, kwargs) if not fixed else ():
            self._constants.pop(_storage(changed), None)
        return out

    def _places(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """Indices with the places in a mask, where it is constant, for the mask."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype in MASKS and self.is_constant(index):
                found += self._apart(Tensor.nonzero, index).unbind(1)
            else:
                found.append(index)
        return found

    def _apart(self, func: Callable, *args: Any, **kwargs: Any) -> Any:
        """A result that is the same at each replay, itself a number in the code."""
        with _disable_current_modes():
            out = func(*args, **kwargs)
        with self:
            return pytree.tree_map_only(Tensor, LIFTS[1], out)

    def _refuse(self, func: Any, args: tuple, kwargs: dict) -> None:
        if kwargs.get("generator") is not None:
            raise Untraceable(f"a generator of its own is drawn from{where()}: leave out generator=")
        # Indexing has a shape that depends on values only where an index is a mask.
        masks = func not in INDEXING or any(t.dtype in MASKS for t in tensors_in(args[1]))
        if any(tag in func.tags for tag in DATA_DEPENDENT) and masks:
            raise Untraceable(READ.format(func, where()))
        if func in LIFTS and args[0].nbytes > BYTES and not args[0].untyped_storage().resizable():  # NumPy's memory
            raise Untraceable(_ARRAY.format(where()))
        for name, tensor in _mutated(func, args, kwargs):
            if _storage(tensor) not in self._made:
                raise Untraceable(
                    f"a tensor from outside, of shape {tuple(tensor.shape)}, is changed in place "
                    f"({func}, {name}){where()}: compute a new one, or call .eval() on layers with running statistics"
                )


class Readers(TorchFunctionMode):
    """Refuses what reads a tensor's memory without an operation.

    Args:
        guard: knows which tensors may be read.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        if func in READERS:
            read = given
        elif func in SPLITTERS:
            read = given[1:]
        else:
            read = [part for part in given if not isinstance(part, Tensor)] if func in MAKERS else ()
            if any(isinstance(part, np.ndarray) and part.nbytes > BYTES for part in read):
                raise Untraceable(_ARRAY.format(where()))
        if read and not all(self._guard.is_constant(t) for t in tensors_in(read)):
            raise Untraceable(READ.format(func.__name__, where()))
        return func(*args, **(kwargs or {}))


def check_hooks(leaves: Iterable[Tensor]) -> None:
    """Raises where something is to be called with the gradient of a leaf."""
    for leaf in leaves:
        if leaf._backward_hooks or leaf._post_accumulate_grad_hooks:
            raise Untraceable(f"a parameter of shape {tuple(leaf.shape)} has hooks, which a graph does not call")


def _mutated(func: Any, args: tuple, kwargs: dict) -> Iterator[tuple[str, Tensor]]:
    """The arguments that an operation writes to."""
    # The schema of the older batch norms does not say that they write.
    norm = "batch_norm" in func.__name__ and "backward" not in func.__name__
    values = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    for argument in func._schema.arguments:
        running = norm and argument.name.startswith("running_") and values.get("training", True)
        if running or (argument.alias_info is not None and argument.alias_info.is_write):
            yield from ((argument.name, t) for t in tensors_in(values.get(argument.name)))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
