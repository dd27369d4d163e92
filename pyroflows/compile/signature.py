"""What decides whether a traced graph fits a call: shapes of the tensors, values of everything else."""

from collections.abc import Hashable, Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import Untraceable

VALUES = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size, Enum, slice)
IDENTITIES = (nn.Module, FunctionType, BuiltinFunctionType, MethodType, type)


def signature(tree: Any, tensors: list[Tensor]) -> Hashable:
    """Describes arguments up to the values of their tensors, which are appended to ``tensors``.

    Args:
        tree: tensors, numbers, strings, functions and modules, in tuples, lists and dicts.
        tensors: collects the tensors, in order.

    Returns:
        Equal for calls that one graph serves.

    Raises:
        Untraceable: if there is anything else, whose changes could not be noticed.

    Example:
        >>> signature(([torch.ones(2)], 3), []) == signature(([torch.zeros(2)], 3), [])
        True
    """
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return kind_of(tree)
    if isinstance(tree, VALUES):
        # 1, 1.0 and True are equal, -0.0 and 0.0 as well, but not the same; a slice is hashable only lately.
        return type(tree), repr(tree) if isinstance(tree, float | complex | slice) else tree
    if isinstance(tree, dict):
        return dict, tuple((key, signature(value, tensors)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree), tuple(signature(value, tensors) for value in tree)
    if isinstance(tree, IDENTITIES):
        return tree
    raise Untraceable(
        f"an argument of type {type(tree).__name__} may change unnoticed: pass tensors, numbers, strings, functions "
        f"and modules, in tuples, lists and dicts"
    )


def functions_in(tree: Any) -> list[Any]:
    """The functions and modules among arguments."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, IDENTITIES)]


def kind_of(tensor: Tensor) -> tuple:
    """All of a tensor that a graph relies on but its values; strides decide whether it can be a view without a copy."""
    layout = tensor.layout
    strides = tensor.stride() if layout is torch.strided else None
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, layout, strides


def replace_tensors(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same arguments with other tensors, in the order of :func:`signature`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, dict):
        return type(tree)((key, replace_tensors(value, tensors)) for key, value in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(replace_tensors(value, tensors) for value in tree))
    if isinstance(tree, list | tuple) and not isinstance(tree, torch.Size):
        return type(tree)(replace_tensors(value, tensors) for value in tree)
    return tree


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in a structure."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
