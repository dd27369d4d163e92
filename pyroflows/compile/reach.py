"""What lies in functions and is named in the user's code: through closures, globals, attributes, lists and dicts."""

import builtins
import gc
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain, islice
from operator import attrgetter
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from zlib import crc32

import numpy as np
from torch import Tensor, nn

from .errors import Untraceable

OURS = __name__.partition(".")[0]
# These packages and the standard library read nothing that changes.
KNOWN = {"torch", "pyro", "numpy", OURS, *sys.stdlib_module_names}
PLAIN = (int, float, complex, str, bytes, type(None), Enum, np.generic, Decimal, Fraction)
COMPARED = (*PLAIN, Tensor, nn.Module, FunctionType, BuiltinFunctionType, type, CodeType)
# Of the standard library, what holds other things in attributes of its own.
WHOLE = {"collections", "weakref"}
# Of the standard library, what users keep settings in objects of; where one of the names is in code, all of them count.
SETTINGS, OPEN = {"_thread", "argparse", "types"}, {"getattr", "setattr", "vars", "__dict__"}
# Named without being in code; and what counts of every module: some of it is Pyro's, which need not be installed.
IMPLIED = {"training", "forward", "__call__", "__getattr__", "__getitem__"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOLDERS = (*HOOKS, "_parameters", "_buffers", "_modules", "_pyro_params", "_pyro_samples")
# Of a list or dict so many entries are compared; what is reached after so many objects is not looked at. Of entries and
# bytes in one place so many are compared before and after a run.
LONG, MANY, FAR, BYTES = 100, 5000, 10**6, 10**8
# Of a list that is shorter now, a cell that is empty, defaults that are gone.
SHORTER = IndexError, ValueError, TypeError
GONE = object()  # which does not count: lists of results are cleared
RANDOM = (random.Random, np.random.Generator, np.random.RandomState)
MANIFOLD = (dict, list, deque)
# What leads to other things.
LINKS = (MethodType, BuiltinFunctionType, partial, property, staticmethod, classmethod, type(lru_cache(len)))


class Reach:
    """A walk through all that functions lead to.

    Args:
        roots: functions, methods, modules or handlers.
        names: those in the user's code, to which more are added.

    Attributes:
        labels: names of the values that are compared, and of their owners.
        gets: functions that get a value by its key.
        keys: for each function, of all its values.
        holders: dicts of modules whose lengths are compared.
        moving: what has a state that a run may move, with a function that returns it.
        modules: the modules that were reached.
    """

    def __init__(self, roots: Iterable[object], names: set[str]) -> None:
        self.names, self.labels, self.gets, self.keys, self.holders = names, [], [], [], []
        self.moving = [("Python's random numbers", random.getstate), ("NumPy's random numbers", np.random.get_state)]
        self._seen: dict[int, object] = {}
        self._classes: set[type] = set()
        self.modules: list[nn.Module] = []
        stack = [(root, "") for root in roots]
        if self.names & {"environ", "getenv"}:
            stack.append((os.environ._data, "os.environ"))
        while stack:
            thing, label = stack.pop()
            plain = isinstance(thing, PLAIN) or (isinstance(thing, Tensor) and not vars(thing))
            if not plain and id(thing) not in self._seen and len(self._seen) < MANY:
                self._seen[id(thing)] = thing
                stack += self._within(thing, label)

    def _note(self, owner: str, names: Iterable, get: Callable, keys: Iterable = ()) -> list[tuple[object, str]]:
        """Notes those names whose values are compared; returns all values, and what they are called."""
        names = list(names)
        found = [(name, key, value_of(get, key)) for name, key in zip(names, keys or names, strict=True)]
        if kept := [(name, key) for name, key, value in found if isinstance(value, COMPARED)]:
            self.gets.append(get)
            self.labels += [(name, owner) for name, _ in kept]
            self.keys.append([key for _, key in kept])
        return [(value, f"{name} of {owner}") for name, _, value in found]

    def _within(self, thing: Any, label: str) -> Iterable[tuple[object, str]]:
        """What lies in a thing, with what it is called."""
        owner = f"a {type(thing).__name__}{label and f' ({label})'}"
        if isinstance(thing, Iterator):
            raise Untraceable(f"{owner} may be advanced: pass what it gives as a tensor argument")
        if isinstance(thing, LINKS):
            return [(part, label) for part in islice(gc.get_referents(thing), LONG)]
        if isinstance(thing, FunctionType):
            return self._in_function(thing)
        if isinstance(thing, type):
            return self._in_class(thing)
        if isinstance(thing, ModuleType):
            names = self._named(vars(thing)) if is_users(thing.__name__) else ()
            return self._note(thing.__name__, names, vars(thing).get)
        self.moving.append((owner, partial(_state, thing, len(thing) if isinstance(thing, MANIFOLD) else 0)))
        entries: Iterable = ()
        if isinstance(thing, dict):
            entries = self._note(owner, islice(thing, LONG), thing.get)
        elif isinstance(thing, list | tuple | deque):
            entries = self._note(owner, range(min(len(thing), LONG)), thing.__getitem__)
        return chain(entries, self._in_class(type(thing)), self._in_object(thing))

    def _in_function(self, function: FunctionType) -> Iterator[tuple[object, str]]:
        name, code, cells = function.__name__, function.__code__, function.__closure__ or ()
        yield from self._note(name, code.co_freevars, attrgetter("cell_contents"), cells)
        if is_users(function.__module__):
            self.names.update(*(part.co_names for part in codes_of(code)))
            yield function.__kwdefaults__, name
            yield from self._note(name, ["__code__"], function.__getattribute__)
            defaults = range(len(function.__defaults__ or ()))
            yield from self._note(f"the defaults of {name}", defaults, lambda place: function.__defaults__[place])
            yield from self._note(name, self._named(vars(function)), vars(function).get)
            known = function.__globals__
            yield from self._note("the globals", known if "globals" in self.names else self._named(known), known.get)
            known = {name: value for name, value in vars(builtins).items() if isinstance(value, PLAIN)}
            yield from self._note("builtins", self._named(known), vars(builtins).get)
            yield from self._note("sys.modules", filter(is_users, self._named(sys.modules)), sys.modules.get)

    def _in_class(self, kind: type) -> Iterator[tuple[object, str]]:
        libraries = [vars(base) for base in kind.__mro__ if not is_users(base.__module__)]
        for base in kind.__mro__:
            if is_users(base.__module__) and base not in self._classes:
                self._classes.add(base)
                # What a library's base has as well it may call.
                called = [n for n in vars(base) if n[:2] != "__" and any(n in library for library in libraries)]
                yield from self._note(base.__name__, {*self._named(vars(base)), *called}, vars(base).get)

    def _in_object(self, thing: Any) -> Iterator[tuple[object, str]]:
        kind, held = type(thing), getattr(thing, "__dict__", {})
        room, is_module = kind.__module__.partition(".")[0], isinstance(thing, nn.Module)
        if room == OURS and not is_module:
            yield from ((part, "") for part in held.values())
            return
        bases = [vars(base) for base in kind.__mro__ if is_users(base.__module__)]
        names = {*self._named(held, *bases)}  # attributes may shadow those of the class
        is_open = (bases or room in SETTINGS) and OPEN & self.names
        if is_open or room in WHOLE or "messenger" in kind.__module__:  # Pyro's handlers
            names |= held.keys()
        if bases:
            yield from self._note(kind.__name__, ["__class__"], thing.__getattribute__)
        if is_module:
            self.modules.append(thing)
            names |= {"training", "forward"}
            if not is_users(kind.__module__):  # guides make containers anew at each call
                names |= {n for n, part in held.items() if n[0] != "_" and not isinstance(part, list | tuple | dict)}
            for holder in [held[name] for name in HOLDERS if isinstance(held.get(name), dict)]:
                self.holders.append(holder)
                yield from self._note(kind.__name__, holder, holder.get)
        yield from self._note(kind.__name__, sorted(names), held.get)
        slots = (vars(base).get("__slots__", ()) for base in kind.__mro__)
        given = {*chain.from_iterable([part] if isinstance(part, str) else part for part in slots)}
        yield from self._note(kind.__name__, self._named(given), lambda name: getattr(thing, name, GONE))

    def _named(self, *places: Mapping[str, Any]) -> list[str]:
        return sorted(name for name in self.names if any(name in place for place in places))

    def values(self) -> list:
        """All values that are compared, flat."""
        return [value_of(get, key) for get, keys in zip(self.gets, self.keys, strict=True) for key in keys]


def value_of(get: Callable[[Any], Any], key: Any) -> Any:
    """A value by its key, or ``GONE``."""
    try:
        return get(key)
    except SHORTER:
        return GONE


def _state(thing: Any, count: int) -> object:
    """What a run may move in a thing, beyond what is compared at each step; that it grows is no change."""
    if isinstance(thing, RANDOM):
        return thing
    if isinstance(thing, ContextVar):
        return value if isinstance(value := thing.get(None), PLAIN) else None
    if isinstance(thing, MANIFOLD):
        rest = islice(thing.values() if isinstance(thing, dict) else thing, LONG, min(count, FAR))
        return [part for part in rest if isinstance(part, PLAIN)]
    if isinstance(thing, set):
        return sorted(repr(part) for part in thing if isinstance(part, PLAIN))
    with suppress(Exception):  # most have no memory to look at
        view = memoryview(thing if not hasattr(thing, "__array__") or isinstance(thing, Tensor) else np.asarray(thing))
        return crc32(view) if view.nbytes <= BYTES else None
    return None


def is_users(module: str | None) -> bool:
    """Whether it is a module that a user may be working on: none of those above, and none that was installed."""
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    known = (module or "").partition(".")[0] in KNOWN
    return not known and "site-packages" not in file and "dist-packages" not in file


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)
