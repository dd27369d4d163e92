"""What a function reads besides its arguments and its tensors' values: modules' modes, attributes, closures."""

import sys
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

PLAIN = (int, float, bool, str, type(None))
# The standard library's functions and those of these packages read nothing that changes.
FIXED = ("torch", "pyro", "numpy", *sys.stdlib_module_names)


class Watch:
    """Notes the numbers, flags, strings and tensors (by identity) that functions reach, to tell when one changes.

    Reached are a function's closure and the globals that it names, a method's object, modules with their
    submodules, Pyro's handlers around a function, and what lies in lists, tuples and dicts on the way.

    Args:
        roots: functions, methods, modules or handlers.

    Example:
        >>> module = nn.Dropout(0.5)
        >>> watch = Watch(module)
        >>> watch.changed() is None
        True
        >>> _ = module.eval()
        >>> watch.changed()
        'training of Dropout'
    """

    def __init__(self, *roots: object) -> None:
        self._entries: list[tuple[dict, str, Any, str]] = []
        self._cells: list[tuple[Any, Any, str]] = []
        self._seen: dict[int, object] = {}
        self.modules: list[nn.Module] = []
        for root in roots:
            self._visit(root)

    def changed(self) -> str | None:
        """What has changed, or None."""
        for holder, key, value, owner in self._entries:
            now = holder.get(key, self)
            if now is not value and (not isinstance(value, PLAIN) or type(now) is not type(value) or now != value):
                return f"{key} of {owner}"
        for cell, value, name in self._cells:
            now = _contents(cell)
            if now is not value and (not isinstance(value, PLAIN) or type(now) is not type(value) or now != value):
                return name
        return None

    def _visit(self, thing: object) -> None:
        if id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            self._visit_module(thing)
        elif isinstance(thing, MethodType):
            self._visit(thing.__self__)
            self._visit(thing.__func__)
        elif isinstance(thing, FunctionType):
            self._visit_function(thing)
        elif isinstance(thing, partial):
            for part in (thing.func, *thing.args, *thing.keywords.values()):
                self._visit(part)
        elif isinstance(thing, list | tuple):
            for part in thing:
                self._visit(part)
        elif _has_state(thing):
            self._note(vars(thing), list(vars(thing)), type(thing).__name__)

    def _visit_module(self, module: nn.Module) -> None:
        self.modules.append(module)
        name = type(module).__name__
        for holder in (module._parameters, module._buffers, module._modules):
            self._note(holder, list(holder), name)
        # Names with an underscore are the module's own business: caches, contexts.
        self._note(vars(module), [key for key in vars(module) if not key.startswith("_")], name)
        self._visit_function(type(module).forward)

    def _visit_function(self, function: FunctionType) -> None:
        if not isinstance(function, FunctionType):
            return
        inside = (function.__module__ or "").split(".")[0] in FIXED
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = _contents(cell)
            if isinstance(value, (*PLAIN, Tensor)):
                self._cells.append((cell, value, name))
            self._visit(value)
        if not inside:
            used = [name for name in set(_names(function.__code__)) if name in function.__globals__]
            self._note(function.__globals__, used, "the globals")

    def _note(self, holder: dict, keys: list[str], owner: str) -> None:
        for key in keys:
            value = holder[key]
            if isinstance(value, (*PLAIN, Tensor, nn.Module)):
                self._entries.append((holder, key, value, owner))
            if not isinstance(value, (*PLAIN, Tensor)):
                self._visit(value)


def _has_state(thing: object) -> bool:
    """Whether to look into an object: users' own, Pyro's handlers and distributions."""
    if isinstance(thing, Messenger | Distribution):
        return True
    known = type(thing).__module__.split(".")[0] in (*FIXED, "builtins")
    return not known and hasattr(thing, "__dict__") and not isinstance(thing, type)


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function's code uses, also in functions within."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None
