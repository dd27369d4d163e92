"""What a graph cannot hold is refused while it is traced, with the reason and the user's line."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
INDEX = torch.ops.aten.index.Tensor
DATA_DEPENDENT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
CAPTURE = str(Path(__file__).with_name("graph.py"))
# Lines in these packages are not the user's.
LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, pyro.__file__, Path(__file__).parent))


class Untraceable(RuntimeError):
    """A function that cannot be replayed as a graph; the message says why and where."""


class Guard(TorchDispatchMode):
    """Sees every operation: refuses what a replay would get wrong, and notes the leaves that need gradients."""

    def __init__(self) -> None:
        super().__init__()
        self._made: set[int] = set()
        self._constants: dict[int, Tensor] = {}
        self._leaves: dict[int, Tensor] = {}

    def leaves(self, but: list[Tensor]) -> list[Tensor]:
        """The leaves met so far that require gradients, in order, without some."""
        return [leaf for key, leaf in self._leaves.items() if key not in {id(t) for t in but}]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports TorchDynamo, a second of it, to keep out what never gets here

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        self._refuse(func, args, kwargs, tensors)
        for tensor in tensors:
            if tensor.requires_grad and tensor.is_leaf:
                self._leaves.setdefault(id(tensor), tensor)
        out = func(*args, **kwargs)
        shared = {_storage(t) for t in tensors} if func not in LIFTS else set()
        for made in tensors_in(out):
            if _storage(made) not in shared:
                self._made.add(_storage(made))
            if func in LIFTS:
                self._constants[id(made)] = made
        return out

    def _refuse(self, func: Any, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
        # Indexing has a shape that depends on values only where an index is a mask.
        known = func is INDEX and all(t.dtype not in (torch.bool, torch.uint8) for t in tensors_in(args[1]))
        known = known or all(id(t) in self._constants for t in tensors)
        if any(tag in func.tags for tag in DATA_DEPENDENT) and not known:
            raise Untraceable(
                f"a value is read by Python ({func}){where()}: replace branches on values, .item() and boolean "
                f"masks as indices by torch.where"
            )
        for name, tensor in _mutated(func, args, kwargs):
            if _storage(tensor) not in self._made:
                raise Untraceable(
                    f"a tensor from outside, of shape {tuple(tensor.shape)}, is changed in place "
                    f"({func}, {name}){where()}: compute a new one, or call .eval() on layers with running statistics"
                )


def _mutated(func: Any, args: tuple, kwargs: dict) -> Iterator[tuple[str, Tensor]]:
    """The arguments that an operation writes to."""
    # The schema of the older batch norms does not say that they write.
    norm = "batch_norm" in func.__name__ and "backward" not in func.__name__
    values = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    for argument in func._schema.arguments:
        running = norm and argument.name.startswith("running_") and values.get("training", True)
        if running or (argument.alias_info is not None and argument.alias_info.is_write):
            yield from ((argument.name, t) for t in tensors_in(values.get(argument.name)))


def reason(error: Exception) -> str:
    """The first line of an error, and the user's line."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{first}{where(error)}"


def where(error: BaseException | None = None) -> str:
    """The user's line that is traced, or that raised, as `` at file:line``."""
    stack = traceback.extract_stack() if error is None else traceback.extract_tb(error.__traceback__)
    start = max(
        (i for i, frame in enumerate(stack) if frame.name == "capture" and frame.filename == CAPTURE), default=0
    )
    own = [frame for frame in stack[start:] if not frame.filename.startswith((*LIBRARIES, "<"))]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in a structure."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
