"""Watch: what a model reads besides tensors, however it is held, is noticed when it changes, and nothing else is."""

import argparse
import contextvars
import enum
import functools
import itertools
import random
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

from pyroflows.compile import Untraceable
from pyroflows.compile.changes import Watch

RATE, LIMITS, PRIOR = 0.5, {"low": 1.0, "deep": [1.0, 2.0]}, dist.Normal(0.0, 1.0)
OTHER = types.ModuleType("other")
OTHER.rate = 1.0
FUNCTIONS = {"act": torch.tanh}


class Mode(enum.Enum):
    ON = 1
    OFF = 2


class Base(nn.Module):
    rate = 1.0

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.unread = 0
        vars(self).update(held)


class Reader(Base):
    """Reads ``held`` in a method that ``forward`` calls, and a global."""

    def forward(self) -> Any:
        return self.helper(), self.rate

    def helper(self) -> Any:
        return self.held, self._held, RATE

    def other(self) -> Any:
        return self.unread


class Private(Base):
    def forward(self) -> Any:
        return self._rate


class Plain:
    settings: ClassVar[dict] = {"rate": 1.0}
    factor = 2.0

    def __init__(self) -> None:
        self.rate = 1.0

    @property
    def doubled(self) -> float:
        return self.rate * 2

    def model(self) -> Any:
        return self.doubled * self.factor * self.settings["rate"]

    def __call__(self) -> Any:
        return RATE


def reads_globals() -> Any:
    return LIMITS["low"], LIMITS["deep"], PRIOR, OTHER.rate, FUNCTIONS["act"]


def with_default(rate: float = 1.0) -> Any:
    return rate * with_default.factor


with_default.factor = 1.0


class Scaled(torch.distributions.transforms.Transform):
    """Torch calls its methods."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def _call(self, x: Any) -> Any:
        return self.rate * x * RATE


class Named(dist.TorchDistribution):
    def log_prob(self, value: Any) -> Any:
        return value * RATE


def held_by(held: Any, change: Callable[[Any], Any]) -> tuple:
    """A module that holds something, and what changes that."""
    return Reader(held=held, _held=0), lambda reader: change(reader.held)


def local(rate: float) -> threading.local:
    held = threading.local()
    held.rate = rate
    return held


def constrained() -> PyroModule:
    layer = PyroModule()
    layer.scale = PyroParam(torch.tensor(1.0), constraints.positive)
    return layer


def setter(name: str, value: Any) -> Callable[[Any], None]:
    return lambda holder: setattr(holder, name, value)


def replacer(key: Any, value: Any) -> Callable[[Any], None]:
    return lambda holder: holder.__setitem__(key, value)


CHANGES = {
    "dict": held_by({"rate": 1.0}, replacer("rate", 2.0)),
    "removed key": held_by({"rate": 1.0}, lambda held: held.pop("rate")),
    "nested": held_by({"a": [(1.0, {"b": [1.0]})]}, lambda held: replacer(0, 2.0)(held["a"][0][1]["b"])),
    "tensor in a dict": held_by({"y": torch.zeros(2)}, replacer("y", torch.zeros(2))),
    "list": held_by([1.0], replacer(0, 2.0)),
    "transform": held_by(Scaled(1.0), setter("rate", 2.0)),
    "SimpleNamespace": held_by(types.SimpleNamespace(rate=1.0), setter("rate", 2.0)),
    "Namespace": held_by(argparse.Namespace(rate=1.0), setter("rate", 2.0)),
    "threading.local": held_by(local(1.0), setter("rate", 2.0)),
    "Dropout": held_by(nn.Dropout(0.1), setter("p", 0.2)),
    "eval": held_by(nn.Sequential(nn.Dropout(0.1)), lambda held: held.eval()),
    "ModuleList": held_by(nn.ModuleList(), lambda held: held.append(nn.ReLU())),
    "PyroSample": held_by(PyroModule[nn.Linear](1, 1), setter("bias", PyroSample(PRIOR))),
    "constraint": held_by(constrained(), setter("scale", PyroParam(torch.tensor(1.0), constraints.unit_interval))),
    "hook": held_by(nn.ReLU(), lambda held: held.register_forward_hook(lambda *args: None)),
    "backward hook": held_by(nn.ReLU(), lambda held: held.register_full_backward_hook(lambda *args: None)),
    "partial": held_by(functools.partial(Reader, held={"a": 1}), lambda held: held.keywords["held"].update(a=2)),
    "enum": (Reader(held=Mode.ON, _held=0), setter("held", Mode.OFF)),
    "function": (Reader(held=torch.exp, _held=0), setter("held", torch.tanh)),
    "NumPy number": (Reader(held=np.float32(1.0), _held=0), setter("held", np.float32(2.0))),
    "underscore": (Reader(held=0, _held=1.0), setter("_held", 2.0)),
    "only underscore": (Private(_rate=1.0), setter("_rate", 2.0)),
    "default of the class shadowed": (Reader(held=0, _held=0), setter("rate", 2.0)),
    "attribute behind a property": (Plain().model, lambda method: setattr(method.__self__, "rate", 2.0)),
    "attribute of a function": (with_default, setter("factor", 2.0)),
    "handler": (poutine.scale(reads_globals, 0.5), lambda scaled: setattr(scaled.args[0], "scale", 0.1)),
}


@pytest.mark.parametrize(("root", "change"), CHANGES.values(), ids=CHANGES)
def test_changes_are_noticed(root: Any, change: Callable[[Any], Any]) -> None:
    watch = Watch(root)
    assert watch.changed() is None
    change(root)
    assert watch.changed() is not None


def linked(depth: int) -> list:
    chain: list = []
    for _ in range(depth):
        chain = [chain]
    return chain


HERE = sys.modules[__name__]
PLACES = {
    "RATE": (Reader(held=0, _held=0), HERE, "RATE", 2.0),
    "RATE in __call__": (Plain(), HERE, "RATE", 2.0),
    "RATE in a transform": (Reader(held=Scaled(1.0), _held=0), HERE, "RATE", 2.0),
    "RATE in a distribution": (Reader(held=Named(validate_args=False), _held=0), HERE, "RATE", 2.0),
    "module in a reparameterised function": (poutine.reparam(reads_globals, {}), OTHER, "rate", 2.0),
    "module": (reads_globals, OTHER, "rate", 2.0),
    "class": (Plain().model, Plain, "factor", 3.0),
    "base class": (Reader(held=0, _held=0), Base, "rate", 3.0),
    "method": (Reader(held=0, _held=0), Reader, "helper", lambda self: 0),
}


@pytest.mark.parametrize(("root", "holder", "name", "value"), PLACES.values(), ids=PLACES)
def test_shared_names(root: Any, holder: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(root)
    assert watch.changed() is None
    monkeypatch.setattr(holder, name, value)
    assert watch.changed().startswith(f"{name} of")


@pytest.mark.parametrize("change", [replacer("low", 2.0), lambda held: replacer(0, 3.0)(held["deep"])])
def test_global_containers(change: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HERE, "LIMITS", {"low": 1.0, "deep": [1.0, 2.0]})
    watch = Watch(reads_globals)
    change(LIMITS)
    assert watch.changed() is not None


def test_closures() -> None:
    rate, parts = 1.0, []

    def function() -> Any:
        return rate, parts

    watch = Watch(function)
    rate = 1.0 * 1
    assert watch.changed() is None
    rate = 2.0
    assert watch.changed() == "rate of function"
    parts.append(1)
    watch = Watch(function)
    parts.append(2)  # perhaps a result
    assert watch.changed() is None
    parts[0] = 3
    assert watch.changed() == "0 of a list (parts of function)"


@pytest.mark.parametrize("name", ["unread", "unheard"])
def test_what_is_not_read_does_not_count(name: str) -> None:
    reader = Reader(held=[], _held=0)
    watch = Watch(reader)
    setattr(reader, name, 5)
    HERE.__dict__["unheard"] = 1
    assert watch.changed() is None


def test_names_of_sites_are_not_those_of_globals() -> None:
    def model() -> Any:
        return len("PRIOR")

    watch = Watch(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HERE, "PRIOR", None)
        assert watch.changed() is None


def test_what_python_may_call_aside_does_not_count() -> None:
    class Experiment:
        def __init__(self) -> None:
            self.rate, self.losses = 1.0, []

        def __repr__(self) -> str:
            return str(vars(self))

        def model(self) -> Any:
            return self.rate

    experiment = Experiment()
    watch = Watch(experiment.model)
    experiment.losses = [1.0]
    assert watch.changed() is None
    experiment.rate = 2.0
    assert watch.changed() == "rate of Experiment"


def test_deep_and_wide_containers_take_little_time() -> None:
    start = time.perf_counter()
    reader = Reader(held=[linked(20_000), [[[0] * 10 for _ in range(100)] for _ in range(1000)]], _held=0)
    assert Watch(reader).changed() is None
    assert time.perf_counter() - start < 20  # it took minutes


def test_objects_that_cannot_be_looked_at() -> None:
    class Odd(list):
        def __len__(self) -> int:
            raise RuntimeError("no length")

    with pytest.raises(Untraceable, match="cannot be looked at: no length"):
        Watch(Reader(held=Odd([1]), _held=0))


def test_equal_values_and_unread_tensors_do_not_count() -> None:
    y, other = torch.zeros(3), torch.ones(3)
    reader = Reader(held=y, _held=1.0, rate=3.0)
    watch, strict = Watch(reader, read=[other]), Watch(reader)
    reader.held, reader._held = y.clone(), 1.0 * 1
    assert watch.changed() is None
    assert strict.changed() == "held of Reader"
    reader.held = torch.zeros(4)
    assert watch.changed() == "held of Reader"


def test_what_a_run_changes() -> None:
    y, results = torch.zeros(3), []

    def run() -> None:
        results.append(1.0)

    reader = Reader(held=y, _held=1, run=run)
    watch = Watch(reader, reader.run, states=True)
    run()
    assert watch.rewritten([y], watch) is None
    assert watch.changed() is None
    reader._held = 2
    assert watch.rewritten([y], watch) == "_held of Reader"
    reader._held, reader.held = 1, torch.zeros(3)
    assert watch.rewritten([], watch) is None
    assert watch.rewritten([y], watch) == "held of Reader"


GENERATORS = {
    "random": (reads_globals, random.random, "Python's random numbers"),
    "numpy": (reads_globals, np.random.rand, "NumPy's random numbers"),
    "Generator": (Reader(held=np.random.default_rng(0), _held=0), None, "a Generator (held of Reader)"),
    "Random": (Reader(held=random.Random(0), _held=0), None, "a Random (held of Reader)"),
}


@pytest.fixture
def kept_states() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


@pytest.mark.usefixtures("kept_states")
@pytest.mark.parametrize(("root", "draw", "name"), GENERATORS.values(), ids=GENERATORS)
def test_random_numbers_of_others(root: Any, draw: Callable | None, name: str) -> None:
    watch = Watch(root, states=True)
    assert watch.rewritten([], watch) is None
    (draw or root.held.random)()
    assert watch.changed() is None
    assert watch.rewritten([], watch) == f"the state of {name}"


@pytest.mark.parametrize("schedule", [itertools.count(), iter([1.0]), (rate for rate in [1.0])])
def test_iterators_are_refused(schedule: Iterator) -> None:
    with pytest.raises(Untraceable, match=r"\(held of Reader\) may be advanced: pass what it gives as a tensor"):
        Watch(Reader(held=schedule, _held=0))


def test_an_array_and_a_context_that_a_run_writes_to() -> None:
    counts, context = np.zeros(3), contextvars.ContextVar("count", default=0)
    for held, write in ((counts, lambda: replacer(0, 1.0)(counts)), (context, lambda: context.set(1))):
        watch = Watch(Reader(held=held, _held=0), states=True)
        assert watch.rewritten([], watch) is None
        write()
        assert watch.rewritten([], watch).endswith("(held of Reader)")
