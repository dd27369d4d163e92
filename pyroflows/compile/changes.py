"""What a function reads besides its arguments and its tensors' values: modes, parameters, hooks, plain settings."""

import pickle
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from operator import is_
from types import CodeType
from typing import Any

from torch import Tensor

from .errors import Untraceable, reason
from .reach import GONE, IMPLIED, PLAIN, SHORTER, Reach
from .signature import kind_of

# What a run that changes it would have to change again at a replay.
WRITTEN = (*PLAIN, CodeType, type)


class Watch:
    """Notes what functions reach, to tell when something of it becomes something else.

    Compared are modes, parameters, buffers, parts and hooks of modules, and what the user's own functions name:
    numbers, strings and enums by value, and tensors, modules, functions and classes by identity, among closures,
    globals, attributes, methods, and entries of lists and dicts. Objects lead on to these; that one of them, or
    anything else, has become another one is for audits to find.

    Args:
        roots: functions, methods, modules or handlers.
        read: the tensors whose values matter; of others only shape, dtype and device count. None: all.
        states: whether :meth:`rewritten` also looks at what is not compared at each step.

    Attributes:
        modules: the modules that were reached.

    Raises:
        Untraceable: if an object raises an error when it is looked at, or is an iterator, which may be advanced.

    Example:
        >>> from torch import nn
        >>> module = nn.Dropout(0.5)
        >>> watch = Watch(module)
        >>> watch.changed() is None
        True
        >>> _ = module.eval()
        >>> watch.changed()
        'training of Dropout'
    """

    def __init__(self, *roots: object, read: Iterable[Tensor] | None = None, states: bool = False) -> None:
        self._read = None if read is None else {id(tensor) for tensor in read}
        names, known = set(IMPLIED), 0
        try:
            while known < len(names):  # what was passed by may be named now
                known = len(names)
                self._reach = Reach(roots, names)
            self._keep()
            moving = self._reach.moving if states else ()
            self._states = [(name, state, pickle.dumps(state())) for name, state in moving]
        except Untraceable:
            raise
        except Exception as error:  # objects may raise whatever they like when they are looked at
            raise Untraceable(f"what it reads cannot be looked at: {reason(error)}") from error
        self.modules = self._reach.modules

    def changed(self) -> str | None:
        """What has changed, or None."""
        same = [*map(len, self._reach.holders)] == self._counts
        with suppress(*SHORTER):
            now = chain.from_iterable(map(map, self._reach.gets, self._reach.keys))
            if same and all(map(is_, now, self._values)):
                return None
        found = self._other(lambda old, new: not _alike(old, new, self._read), self._reach)
        return found or (self._keep() if same else "the number of parts, parameters or hooks of a module")

    def rewritten(self, read: Iterable[Tensor], after: "Watch") -> str | None:
        """What a run has changed: a number, a string, one of these tensors, memory, a state of random numbers; or None.

        Args:
            read: tensors that count.
            after: another look at the same functions, after the run.
        """
        ids = {id(tensor) for tensor in read}
        moved = (f"the state of {name}" for name, state, old in self._states if pickle.dumps(state()) != old)

        def other(old: object, new: object) -> bool:
            counts = id(old) in ids or (old is not None and isinstance(old, WRITTEN))
            return counts and new is not None and not _alike(old, new, None)

        # Objects may have become others, whose numbers stand in the same places.
        return next(moved, None) or self._other(other, self._reach) or self._other(other, after._reach)

    def _other(self, differ: Callable[[Any, Any], bool], now: Reach) -> str | None:
        """The first name whose value differs from what it was, as far as names are the same now."""
        for label, name, old, new in zip(self._reach.labels, now.labels, self._values, now.values(), strict=False):
            if label != name:
                return None
            if differ(old, new):
                return "{} of {}".format(*label)
        return None

    def _keep(self) -> None:
        """Takes the present values for what they were, flat, so that comparing them takes Python a single line."""
        self._counts, self._values = [*map(len, self._reach.holders)], self._reach.values()


def _alike(old: object, new: object, read: set[int] | None) -> bool:
    if old is GONE or new is GONE:
        return True
    if old is new or type(old) is not type(new):
        return old is new
    if isinstance(old, Tensor):
        return read is not None and id(old) not in read and kind_of(old) == kind_of(new)
    return isinstance(old, PLAIN) and bool(old == new)
