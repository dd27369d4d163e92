"""What a function reads besides its arguments and its tensors' values: modes, attributes, closures, globals."""

import pickle
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain, islice
from operator import getitem, is_
from types import FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from .errors import Untraceable, reason
from .places import GUIDE, HANDLER, OURS, PARTS, PLAIN, REPARAM, Place, codes_in, is_a, is_foreign, is_known, is_users
from .refuse import BYTES

# Of what every module has these count, and whether it trains.
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
HOLDERS = *HOOKS, "_parameters", "_buffers", "_modules", "_pyro_params", "_pyro_samples"
INTERNAL = {*vars(nn.Module())} - {"training"}
# Code with these may read any attribute.
DYNAMIC = {"getattr", "vars", "__dict__", "asdict", "astuple"}
# Users keep settings in these of the standard library's.
SETTINGS = ("argparse", "collections", "types")
# Python calls these by itself, but not in a model.
_BIRTHS = "__init__", "__new__", "__post_init__", "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__"
ASIDE = {*_BIRTHS, "__del__", "__repr__", "__str__", "__getstate__", "__setstate__", "__enter__", "__exit__"}
# Of longer lists and dicts the first parts are watched, and the length; larger arrays are only known apart; and what
# is reached after so many places is not looked at.
LONG, MANY = 1000, 3000
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


class Watch:
    """Notes what functions reach, to tell when something of it becomes something else.

    Reached are a function's closure, defaults and attributes; the globals, attributes and methods that it names; a
    method's object; modules with their submodules and hooks; Pyro's handlers around a function; and what lies in
    lists, tuples, dicts, sets and small arrays on the way. The code of installed packages is not looked at. Numbers and
    strings are compared by value, all else by identity.

    Args:
        roots: functions, methods, modules or handlers.
        read: the tensors whose values matter; of others only shape, dtype and device count. None: all.
        before: notes from before the functions ran: what has grown since is what they fill, such as a list of
            results, and is left out.

    Attributes:
        modules: the modules that were reached.

    Raises:
        Untraceable: if an object raises an error when it is looked at.

    Example:
        >>> module = nn.Dropout(0.5)
        >>> watch = Watch(module)
        >>> watch.changed() is None
        True
        >>> _ = module.eval()
        >>> watch.changed()
        'training of Dropout'
    """

    def __init__(self, *roots: object, read: Iterable[Tensor] | None = None, before: "Watch | None" = None) -> None:
        self._filled = before._grown() if before else {}
        self._read = None if read is None else {id(tensor) for tensor in read}
        self._places: list[Place] = []
        self._drawn = [
            _state_of("Python's random numbers", random.getstate),
            _state_of("NumPy's random numbers", np.random.get_state),
        ]
        self._seen: dict[int, object] = {}
        self._names: set[str] = set()  # in code
        self._strings: set[str] = set()
        self.modules: list[nn.Module] = []
        try:
            self._look(roots)
        except Exception as error:  # objects may raise whatever they like when they are looked at
            raise Untraceable(f"what it reads cannot be looked at: {reason(error)}") from error

    def _look(self, roots: Iterable[object]) -> None:
        self._visit_all(roots)
        known = done = 0
        while known < len(self._names) or done < len(self._places):
            if known < len(self._names):  # more of what was passed by is named now
                known, done = len(self._names), 0
            places, done = self._places[done:], len(self._places)
            for place in places:
                place.keep()
                self._visit_all(place.values)
        self._keep()

    def changed(self) -> str | None:
        """What has changed, or None."""
        if self._same():
            return None
        found = ((place, what) for place in self._places if (what := place.changed(self._read)))
        place, what = next(found, (None, None))
        self._keep()
        return what if what is None else what + self._home(place)

    def _home(self, place: Place) -> str:
        """Where a container that has no name of its own is held."""
        named = (f" ({key} of {p.owner})" for p in self._places for key, value in _items(p) if value is place.place)
        return next(named, "") if place.owner.startswith("a ") else ""

    def rewritten(self, read: Iterable[Tensor] = ()) -> str | None:
        """What is another one now: a number, a string, one of these tensors, a state of random numbers; or None."""
        ids = {id(tensor) for tensor in read}
        places = (*self._places, *self._drawn)
        return next((what + self._home(place) for place in places if (what := place.rewritten(ids))), None)

    def _grown(self) -> dict[int, object]:
        """Lists and dicts that have changed their length, and those that had before."""
        grown = [
            p.place for p in self._places if isinstance(p.place, list | dict | set | deque) and len(p.place) != p.count
        ]
        return self._filled | {id(place): place for place in grown}

    def _keep(self) -> None:
        # Flat, so that comparing them takes Python a single line.
        growing, full = [p for p in self._places if not p.fixed], [p for p in self._places if p.keys]
        self._holders, self._counts = [p.place for p in growing], [p.count for p in growing]
        self._gets, self._keys = [p.get for p in full], [p.keys for p in full]
        self._values = [value for p in full for value in p.values]

    def _same(self) -> bool:
        now = chain.from_iterable(map(map, self._gets, self._keys))
        return list(map(len, self._holders)) == self._counts and all(map(is_, now, self._values))

    def _note(
        self,
        place: Collection,
        owner: str,
        names: Callable[[Any], Iterable] = tuple,
        get: Callable | None = None,
        fixed: bool = False,
    ) -> None:
        fixed = fixed or isinstance(place, tuple)
        self._places.append(Place(place, owner, names, get or place.get, fixed))

    def _visit_all(self, things: Iterable[object]) -> None:
        for thing in things:
            if not isinstance(thing, (*PLAIN, Tensor)) and id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                self._visit(thing)

    def _visit(self, thing: Any) -> None:
        if isinstance(thing, nn.Module):
            self._visit_module(thing)
        elif isinstance(thing, FunctionType):
            self._visit_function(thing)
        elif isinstance(thing, MethodType):
            self._visit_all([thing.__self__, thing.__func__])
        elif isinstance(thing, partial):
            self._visit_all([thing.func, *thing.args, *thing.keywords.values()])
        elif isinstance(thing, property):
            self._visit_all([thing.fget])
        elif isinstance(thing, staticmethod | classmethod):
            self._visit_all([thing.__func__])
        elif isinstance(thing, type):
            self._visit_class(thing)
        elif isinstance(thing, ModuleType):
            if is_users(thing.__name__):
                self._note(vars(thing), thing.__name__, self._attributes)
        elif isinstance(thing, GENERATORS):
            self._drawn.append(_state_of(f"a {type(thing).__name__}", lambda: thing))
        elif len(self._places) < MANY:
            self._visit_parts(thing)
            self._visit_object(thing)

    def _visit_function(self, function: FunctionType) -> None:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if cells:
            self._note(cells, function.__name__, get=lambda name: _contents(cells[name]))
        if is_users(function.__module__):
            for code in codes_in(function.__code__):
                self._names.update(code.co_names)
                self._strings.update(constant for constant in code.co_consts if isinstance(constant, str))
            self._note(vars(function), function.__name__)
            self._note(("__defaults__", "__kwdefaults__"), function.__name__, get=partial(getattr, function))
            self._note(function.__globals__, "the globals", self._named)

    def _visit_module(self, module: nn.Module) -> None:
        kind, attributes = type(module), vars(module)
        self.modules.append(module)
        for holder in attributes.keys() & HOLDERS:
            if isinstance(attributes[holder], dict):
                self._note(attributes[holder], kind.__name__)
        if is_foreign(kind):
            # Names with an underscore are such a module's own business: caches, contexts.
            public = [key for key in attributes if not key.startswith("_")]
            containers = list | tuple | dict if _is_ours(kind) else ()
            self._visit_all([attributes[key] for key in public if not isinstance(attributes[key], containers)])
            kinds = PARTS | tuple if kind.__module__.startswith("torch.") else PARTS
            parts = [key for key in public if isinstance(attributes[key], kinds)]
            self._note(attributes, kind.__name__, lambda found: parts, fixed=True)
        if is_users(kind.__module__):
            # Guides make containers of theirs anew at each call.
            kinds = PARTS if is_a(kind, GUIDE) else object
            self._note(attributes, kind.__name__, lambda found: self._own(found, kinds))
        self._visit_class(kind)
        self._visit_all([getattr(kind, "forward", None)])

    def _visit_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if is_users(base.__module__) and base not in self._seen:
                self._seen[base] = base
                self._note(vars(base), base.__name__, partial(self._members, every=is_foreign(kind)))

    def _visit_parts(self, thing: Any) -> None:
        """What lies in a container."""
        owner, filled = f"a {type(thing).__name__}", id(thing) in self._filled
        if isinstance(thing, dict | MappingProxyType):
            keys = list(islice(thing, LONG)) if filled else ()
            self._note(thing, owner, lambda found: keys or list(islice(found, LONG)), fixed=filled)
        elif filled:
            return
        elif isinstance(thing, set | frozenset):
            self._note(thing, owner, lambda found: list(islice(found, LONG)), lambda key: key in thing)
        elif isinstance(thing, list | tuple | deque):
            self._note(thing, owner, lambda found: range(min(len(found), LONG)), partial(getitem, thing))
        elif isinstance(thing, np.ndarray) and thing.nbytes <= BYTES:
            self._note(("values",), owner, get=lambda name: thing.tobytes())

    def _visit_object(self, thing: Any) -> None:
        kind, attributes = type(thing), getattr(thing, "__dict__", {})
        if isinstance(thing, Distribution | Transform) or is_a(kind, HANDLER) or kind.__module__.startswith("torch."):
            parts = [key for key in attributes if isinstance(attributes[key], PARTS | tuple)]
            self._note(attributes, kind.__name__, lambda found: parts, fixed=True)
            self._visit_all(list(attributes.values()))
        elif _is_ours(kind) or is_a(kind, REPARAM):  # holds functions of users
            self._visit_all(list(attributes.values()))
        elif not is_known(kind.__module__) or kind.__module__ in SETTINGS:
            self._note(attributes, kind.__name__, tuple if is_foreign(kind) else self._attributes)
            slots = [name for base in kind.__mro__ for name in _listed(vars(base).get("__slots__", ()))]
            if slots:
                self._note(slots, kind.__name__, self._attributes, lambda name: getattr(thing, name, None))
        self._visit_class(kind)

    def _named(self, place: Collection[str]) -> set[str]:
        return {name for name in self._names if name in place}

    def _attributes(self, place: Collection[str]) -> set[str]:
        every = not DYNAMIC.isdisjoint(self._names)
        return {name for name in place if every or name in self._names or name in self._strings or name == "training"}

    def _own(self, place: dict, kinds: Any) -> set[str]:
        own = {name for name in self._attributes(place) - INTERNAL if not name.startswith("_pyro_")}
        return {name for name in own if isinstance(place[name], kinds)}

    def _members(self, place: Mapping[str, Any], every: bool) -> set[str]:
        """Of a class: what is named, and the methods that Python, or a base of others, calls by itself."""
        methods = {key for key, value in place.items() if isinstance(value, FunctionType | staticmethod | classmethod)}
        called = {key for key in methods - ASIDE if every or key.startswith("__")}
        return {key for key in self._attributes(place) if not key.startswith("__")} | called


def _items(place: Place) -> Iterable[tuple[Any, object]]:
    return zip(place.keys, place.values, strict=True)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == OURS


def _state_of(generator: str, state: Callable[[], object]) -> Place:
    place = Place(("state",), generator, tuple, lambda name: pickle.dumps(state()), fixed=True)
    place.keep()
    return place


def _listed(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None
