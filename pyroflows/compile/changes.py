"""What a function reads besides its arguments and its tensors' values: modes, parameters, hooks, plain settings."""

import pickle
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from enum import Enum
from functools import partial
from itertools import chain, islice
from operator import attrgetter, is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from .errors import Untraceable, reason
from .refuse import BYTES
from .signature import kind_of
from .users import OURS, codes_of, is_users

PLAIN = (int, float, complex, bool, str, bytes, type(None), Enum, np.generic)
COMPARED = (*PLAIN, Tensor, nn.Module, FunctionType, BuiltinFunctionType, type)
# Of the standard library, what users keep settings in objects of.
SETTINGS = ("_thread", "argparse", "types")
# Named without being in code; and what counts of every module: some of it is Pyro's, which need not be installed.
IMPLIED = {"training", "forward", "__call__", "__getattr__", "__getitem__"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOLDERS = (*HOOKS, "_parameters", "_buffers", "_modules", "_pyro_params", "_pyro_samples")
# Of a list or dict so many entries are compared; what is reached after so many objects is not looked at.
LONG, MANY = 100, 5000
GONE = object()  # which does not count: lists of results are cleared
# What has a state that a function may move, and what leads to other things.
STATES = (random.Random, np.random.Generator, np.random.RandomState, np.ndarray, ContextVar)
LINKS: dict[type, Callable[[Any], Iterable]] = {
    MethodType: lambda method: (method.__self__, method.__func__),
    partial: lambda made: (made.func, made.args, made.keywords),
    property: lambda made: (made.fget,),
    staticmethod: lambda made: (made.__func__,),
    classmethod: lambda made: (made.__func__,),
    tuple: lambda made: islice(made, LONG),
}


class Watch:
    """Notes what functions reach, to tell when something of it becomes something else.

    Compared are modes, parameters, buffers, parts and hooks of modules, and what the user's own functions name:
    numbers, strings and enums by value, and tensors, modules, functions and classes by identity, among closures,
    globals, attributes, methods, and entries of lists and dicts. Objects of the user's lead on to these; that one of
    them, or anything else, has become another one is for audits to find.

    Args:
        roots: functions, methods, modules or handlers.
        read: the tensors whose values matter; of others only shape, dtype and device count. None: all.

    Attributes:
        modules: the modules that were reached.

    Raises:
        Untraceable: if an object raises an error when it is looked at, or is an iterator, which may be advanced.

    Example:
        >>> module = nn.Dropout(0.5)
        >>> watch = Watch(module)
        >>> watch.changed() is None
        True
        >>> _ = module.eval()
        >>> watch.changed()
        'training of Dropout'
    """

    def __init__(self, *roots: object, read: Iterable[Tensor] | None = None) -> None:
        self._read = None if read is None else {id(tensor) for tensor in read}
        self._names, known = set(IMPLIED), 0
        try:
            while known < len(self._names):  # what was passed by may be named now
                known = len(self._names)
                self._look(roots)
            self._keep()
            self._states = [(name, state, pickle.dumps(state())) for name, state in self._moving]
        except Untraceable:
            raise
        except Exception as error:  # objects may raise whatever they like when they are looked at
            raise Untraceable(f"what it reads cannot be looked at: {reason(error)}") from error

    def changed(self) -> str | None:
        """What has changed, or None."""
        with suppress(IndexError, ValueError):  # of a list that is shorter now, of a cell that is empty
            now = chain.from_iterable(map(map, self._gets, self._keys))
            if [*map(len, self._holders)] == self._counts and all(map(is_, now, self._values)):
                return None
        found = self._other(lambda old, new: not _alike(old, new, self._read))
        if found is None and [*map(len, self._holders)] != self._counts:
            return "the number of parts, parameters or hooks of a module"
        return found or self._keep()

    def rewritten(self, read: Iterable[Tensor] = ()) -> str | None:
        """What is another one now: a number, a string, one of these tensors, a state of random numbers; or None."""
        ids = {id(tensor) for tensor in read}
        moved = (f"the state of {name}" for name, state, old in self._states if pickle.dumps(state()) != old)

        def other(old: object, new: object) -> bool:
            counts = id(old) in ids or (old is not None and isinstance(old, PLAIN))
            return counts and new is not None and not _alike(old, new, None)

        return next(moved, None) or self._other(other)

    def _other(self, differ: Callable[[Any, Any], bool]) -> str | None:
        """The first name whose value differs from what it was."""
        values = iter(self._values)
        for owner, names, get, keys in zip(self._owners, self._labels, self._gets, self._keys, strict=True):
            for name, key, old in zip(names, keys, islice(values, len(keys)), strict=True):
                if differ(old, _value(get, key)):
                    return f"{name} of {owner}"
        return None

    def _keep(self) -> None:
        """Takes the present values for what they were, flat, so that comparing them takes Python a single line."""
        self._counts = [*map(len, self._holders)]
        self._values = [_value(get, key) for get, keys in zip(self._gets, self._keys, strict=True) for key in keys]

    def _look(self, roots: Iterable[object]) -> None:
        self._owners, self._labels, self._gets, self._keys, self._holders = [], [], [], [], []
        self._moving = [("Python's random numbers", random.getstate), ("NumPy's random numbers", np.random.get_state)]
        self._seen: dict[int, object] = {}
        self._classes: set[type] = set()
        self.modules: list[nn.Module] = []
        stack = [(root, "") for root in roots]
        while stack:
            thing, label = stack.pop()
            if not isinstance(thing, (*PLAIN, Tensor)) and id(thing) not in self._seen and len(self._seen) < MANY:
                self._seen[id(thing)] = thing
                stack += self._within(thing, label)

    def _note(self, owner: str, names: Iterable, get: Callable, keys: Iterable = ()) -> list[tuple[object, str]]:
        """Notes those names whose values are compared; returns all values, and what they are called."""
        names = list(names)
        found = [(name, key, _value(get, key)) for name, key in zip(names, keys or names, strict=True)]
        if kept := [(name, key) for name, key, value in found if isinstance(value, COMPARED)]:
            self._owners.append(owner)
            self._gets.append(get)
            self._labels.append([name for name, _ in kept])
            self._keys.append([key for _, key in kept])
        return [(value, f"{name} of {owner}") for name, _, value in found]

    def _within(self, thing: Any, label: str) -> Iterable[tuple[object, str]]:
        """What lies in a thing, with what it is called."""
        for kind, parts in LINKS.items():
            if isinstance(thing, kind):
                return [(part, label) for part in parts(thing)]
        owner = f"a {type(thing).__name__}{label and f' ({label})'}"
        if isinstance(thing, Iterator):
            raise Untraceable(f"{owner} may be advanced: pass what it gives as a tensor argument")
        if isinstance(thing, STATES):
            self._moving.append((owner, partial(_state, thing)))
        if isinstance(thing, dict):
            return self._note(owner, islice(thing, LONG), thing.get)
        if isinstance(thing, list | deque):
            self._moving.append((owner, partial(_rest, thing, len(thing))))
            return self._note(owner, range(min(len(thing), LONG)), thing.__getitem__)
        if isinstance(thing, ModuleType):
            names = self._named(vars(thing)) if is_users(thing.__name__) else ()
            return self._note(thing.__name__, names, vars(thing).get)
        if isinstance(thing, FunctionType):
            return self._in_function(thing)
        if isinstance(thing, type):
            return self._in_class(thing)
        return chain(self._in_class(type(thing)), self._in_object(thing))

    def _in_function(self, function: FunctionType) -> Iterator[tuple[object, str]]:
        name, code, cells = function.__name__, function.__code__, function.__closure__ or ()
        yield from self._note(name, code.co_freevars, attrgetter("cell_contents"), cells)
        if is_users(function.__module__):
            self._names.update(*(part.co_names for part in codes_of(code)))
            yield (function.__defaults__, function.__kwdefaults__), name
            yield from self._note(name, self._named(vars(function)), vars(function).get)
            yield from self._note("the globals", self._named(function.__globals__), function.__globals__.get)

    def _in_class(self, kind: type) -> Iterator[tuple[object, str]]:
        libraries = [vars(base) for base in kind.__mro__ if not is_users(base.__module__)]
        for base in kind.__mro__:
            if is_users(base.__module__) and base not in self._classes:
                self._classes.add(base)
                # What a library's base has as well it may call.
                called = [n for n in vars(base) if n[:2] != "__" and any(n in library for library in libraries)]
                yield from self._note(base.__name__, {*self._named(vars(base)), *called}, vars(base).get)

    def _in_object(self, thing: Any) -> Iterator[tuple[object, str]]:
        kind, held, names = type(thing), getattr(thing, "__dict__", {}), []
        if is_users(kind.__module__) or kind.__module__ in SETTINGS:  # attributes may shadow those of the class
            names = self._named(held, *(vars(base) for base in kind.__mro__ if is_users(base.__module__)))
        elif "messenger" in kind.__module__:  # Pyro's handlers
            names = list(held)
        elif kind.__module__.partition(".")[0] == OURS and not isinstance(thing, nn.Module):
            yield from ((part, "") for part in held.values())
        elif isinstance(thing, nn.Module):  # guides make containers anew at each call
            names = [n for n, part in held.items() if n[0] != "_" and not isinstance(part, list | tuple | dict)]
        if isinstance(thing, nn.Module):
            self.modules.append(thing)
            names = {*names, "training", "forward"}
            for holder in [held[name] for name in HOLDERS if isinstance(held.get(name), dict)]:
                self._holders.append(holder)
                yield from self._note(kind.__name__, holder, holder.get)
        yield from self._note(kind.__name__, names, held.get)
        slots = (vars(base).get("__slots__", ()) for base in kind.__mro__ if is_users(base.__module__))
        given = chain.from_iterable([part] if isinstance(part, str) else part for part in slots)
        yield from self._note(kind.__name__, self._named({*given}), lambda name: getattr(thing, name, GONE))

    def _named(self, *places: Mapping[str, Any]) -> list[str]:
        return sorted(name for name in self._names if any(name in place for place in places))


def _value(get: Callable[[Any], Any], key: Any) -> Any:
    try:
        return get(key)
    except (IndexError, ValueError):
        return GONE


def _alike(old: object, new: object, read: set[int] | None) -> bool:
    if old is GONE or new is GONE:
        return True
    if old is new or type(old) is not type(new):
        return old is new
    if isinstance(old, Tensor):
        return read is not None and id(old) not in read and kind_of(old) == kind_of(new)
    return isinstance(old, PLAIN) and bool(old == new)


def _state(thing: Any) -> object:
    if isinstance(thing, np.ndarray):
        return thing.tobytes() if thing.nbytes <= BYTES else None
    if isinstance(thing, ContextVar):
        return value if isinstance(value := thing.get(None), PLAIN) else None
    return thing


def _rest(things: Sequence, count: int) -> list:
    """The numbers and strings, of so many, beyond what is compared at each step; that a list grows is no change."""
    return [thing for thing in islice(things, LONG, min(count, BYTES)) if isinstance(thing, PLAIN)]
