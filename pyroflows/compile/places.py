"""Places that hold what functions read, such as a module's attributes, compared with what they held."""

import sys
from abc import ABC
from collections.abc import Callable, Collection, Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, Generic, Union

import numpy as np
from torch import Tensor, nn

PLAIN = (int, float, complex, bool, str, bytes, type(None), np.generic)
PARTS = Union[(*PLAIN, Tensor, nn.Module, FunctionType, BuiltinFunctionType)]
SIMPLE = (object, nn.Module, Generic, ABC)
OURS = __name__.partition(".")[0]
# These packages and the standard library read nothing that changes.
KNOWN = {"torch", "pyro", "numpy", OURS, *sys.stdlib_module_names}
# Classes of Pyro's, by their names, as it need not be installed.
MODULE, GUIDE = "pyro.nn.module.PyroModule", "pyro.infer.autoguide.guides.AutoGuide"
HANDLER, REPARAM = "pyro.poutine.messenger.Messenger", "pyro.poutine.reparam_messenger.ReparamHandler"


class Place:
    """Some names in one place and their values, to be compared with what they were.

    Args:
        place: what holds them, and has a length.
        owner: whose it is.
        names: the names of the place that count.
        get: the value of a name; None if it is gone.
        fixed: names that come later do not count.

    Nothing is noted before the first :meth:`keep`.
    """

    def __init__(
        self, place: Collection, owner: str, names: Callable[[Any], Iterable], get: Callable, fixed: bool = False
    ) -> None:
        self.place, self.owner, self.names, self.get, self.fixed = place, owner, names, get, fixed

    def keep(self) -> None:
        """Takes the present names and values for what they were."""
        self.count, self.keys = len(self.place), tuple(self.names(self.place))
        self.values = [self.get(key) for key in self.keys]

    def changed(self, read: set[int] | None) -> str | None:
        """Which value has become another one.

        Args:
            read: of other tensors only shape, dtype and device count; None: there are no others.
        """
        other = set() if self.fixed else {*self.names(self.place)} ^ {*self.keys}
        if other:
            return f"{other.pop()} of {self.owner}"
        now = [self.get(key) for key in self.keys]
        for key, value, old in zip(self.keys, now, self.values, strict=True):
            if not _alike(old, value, read):
                return f"{key} of {self.owner}"
        self.count, self.values = len(self.place), now
        return None

    def rewritten(self, read: set[int]) -> str | None:
        """Which number or string, or which of those tensors, has been replaced by another one."""
        there = self.keys if self.fixed else {*self.names(self.place)}
        for key, old in zip(self.keys, self.values, strict=True):
            counts = id(old) in read or (old is not None and isinstance(old, PLAIN))
            if counts and key in there and not _alike(old, self.get(key), None):
                return f"{key} of {self.owner}"
        return None


def _alike(old: object, new: object, read: set[int] | None) -> bool:
    if old is new or type(old) is not type(new):
        return old is new
    if isinstance(old, Tensor):
        return read is not None and id(old) not in read and _kind(old) == _kind(new)
    return isinstance(old, PLAIN) and bool(old == new)


def _kind(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad


def is_a(kind: type, name: str) -> bool:
    """Whether a class is the one of this full name, or is derived from it."""
    return any(_full_name(base) == name for base in kind.__mro__)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def is_known(module: str | None) -> bool:
    """Whether it is a module of torch, Pyro, NumPy, the standard library or this package."""
    return (module or "").partition(".")[0] in KNOWN


def is_users(module: str | None) -> bool:
    """Whether it is a module that a user may be working on: none of those, and none that was installed."""
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return not is_known(module) and "site-packages" not in file and "dist-packages" not in file


def is_foreign(kind: type) -> bool:
    """Whether a class has bases other than the simplest whose code is not the user's, and may call its methods."""
    bases = (base for base in kind.__mro__ if base not in SIMPLE and _full_name(base) != MODULE)
    return any(not is_users(base.__module__) for base in bases)


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)
