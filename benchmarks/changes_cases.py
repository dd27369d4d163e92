"""What changes between steps, for `changes.py`: places of numbers, networks, what SVI and its optimizers honour."""

import argparse
import array
import builtins
import ctypes
import dataclasses
import enum
import functools
import itertools
import json
import operator
import os
import sys
import tempfile
import threading
import types
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, ClippedAdam, PyroOptim
from torch import Tensor, nn

ONE = torch.ones(1, 2)
Place = tuple[Callable[[], float], Callable[[float], object]]


@dataclass
class Run:
    """A loop as it is run: what a change may reach."""

    steps: int
    leaves: Callable[[], list[Tensor]]
    svi: SVI | None = None
    elbo: Trace_ELBO | None = None
    step: int = 0


@dataclass
class Case:
    """How a model reads a number, and what changes it."""

    read: Callable[[], Any] = lambda: 1.0
    change: Callable[[Run], object] = lambda run: None
    net: nn.Module | None = None
    stairs: bool = False  # many changes; else there is one
    model: Callable | None = None
    guide: Callable | None = None
    other: Callable[[], Any] = lambda: 1.0
    optim: Callable[[], PyroOptim] = lambda: Adam({"lr": 0.003})
    only_svi: bool = False
    restore: Callable[[], object] = field(default=lambda: None)
    tolerance: float = 1e-3


PLACES: dict[str, Callable[[], Place]] = {}
NETS: dict[str, Callable[[], Case]] = {}
STEPPERS: dict[str, Callable[[], Case]] = {}


def place(make: Callable[[], Place]) -> Callable[[], Place]:
    PLACES[make.__name__.strip("_")] = make
    return make


def attribute_of(held: Any) -> Place:
    return lambda: held.rate, lambda value: setattr(held, "rate", value)


def entry_of(held: Any, key: Any = 0) -> Place:
    return lambda: float(held[key]), lambda value: operator.setitem(held, key, value)


class Holder:
    kept = 1.0

    def __init__(self) -> None:
        self.rate = 1.0


GLOBAL = 1.0
SETTINGS = {"rate": 1.0}
CONTEXT: ContextVar[float] = ContextVar("rate")
CFG = types.ModuleType("made_up_settings")
sys.modules[CFG.__name__] = CFG

SIMPLE_ATTRIBUTES = {
    "attribute": Holder,
    "SimpleNamespace": types.SimpleNamespace,
    "argparse.Namespace": argparse.Namespace,
    "threading.local": threading.local,
    "module made by hand": lambda: types.ModuleType("by_hand"),
    "module in sys.modules": lambda: CFG,
    "slots": lambda: type("Slots", (), {"__slots__": ("rate",)})(),
    "class": lambda: type("Config", (), {}),
    "metaclass": lambda: type("Meta", (type,), {})("Made", (), {}),
    "exception": ValueError,
    "function": lambda: lambda: None,
    "Module": nn.Module,
    "dataclass": lambda: dataclasses.make_dataclass("Data", [("rate", float)])(1.0),
    "dataclass with slots": lambda: dataclasses.make_dataclass("Data", [("rate", float)], slots=True)(1.0),
    "subclass of dict": lambda: type("Attributes", (dict,), {})(),
    "Event": threading.Event,
    "Path": lambda: type("Place", (type(Path()),), {})("."),
    "Tensor": lambda: torch.zeros(1),
    "Parameter": lambda: nn.Parameter(torch.zeros(1)),
    "Distribution": lambda: dist.Normal(0.0, 1.0),
    "optimizer": lambda: torch.optim.SGD([torch.zeros(1)], 0.1),
}
SIMPLE_ENTRIES = {
    "list": (lambda: [1.0], 0),
    "entry 2,000 of a list": (lambda: [1.0] * 3000, 2000),
    "dict": (lambda: {"rate": 1.0}, "rate"),
    "dict of 3,000": (lambda: dict.fromkeys(range(3000), 1.0), 2500),
    "deque": (lambda: deque([1.0]), 0),
    "array.array": (lambda: array.array("d", [1.0]), 0),
    "NumPy array": (lambda: np.ones(3), 0),
    "large NumPy array": (lambda: np.ones(200_000), 0),
    "ctypes": (lambda: (ctypes.c_double * 1)(1.0), 0),
    "memoryview": (lambda: memoryview(np.ones(2)), 0),
    "ChainMap": (lambda: ChainMap({}, {"rate": 1.0}), "rate"),
    "defaultdict": (lambda: defaultdict(float), "rate"),
    "OrderedDict": (lambda: OrderedDict(rate=1.0), "rate"),
    "UserDict": (lambda: UserDict(rate=1.0), "rate"),
    "UserList": (lambda: UserList([1.0]), 0),
    "WeakKeyDictionary": (weakref.WeakKeyDictionary, Holder),
    "pandas Series": (lambda: pd.Series({"rate": 1.0}), "rate"),
    "xarray cell": (lambda: xr.DataArray(np.ones(1), dims="x"), 0),
    "pyro's store": (lambda: torch.ones(1), 0),
}
for name, make in SIMPLE_ATTRIBUTES.items():
    PLACES[f"attribute of {name}"] = lambda make=make: attribute_of(make())
for name, (make, key) in SIMPLE_ENTRIES.items():
    PLACES[f"entry of {name}"] = lambda make=make, key=key: entry_of(make(), key)


@place
def closure() -> Place:
    rate = 1.0

    def put(value: float) -> None:
        nonlocal rate
        rate = value

    return lambda: rate, put


@place
def global_() -> Place:
    return lambda: GLOBAL, lambda value: globals().update(GLOBAL=value)


@place
def name_in_globals() -> Place:
    return lambda: globals()["GLO" + "BAL"], lambda value: globals().update(GLOBAL=value)


@place
def global_dict() -> Place:
    return lambda: SETTINGS["rate"], lambda value: SETTINGS.update(rate=value)


@place
def global_dict_replaced() -> Place:
    return lambda: SETTINGS["rate"], lambda value: globals().update(SETTINGS={"rate": value})


@place
def nested() -> Place:
    held = {"a": [types.SimpleNamespace(b={"rate": 1.0})]}
    return lambda: held["a"][0].b["rate"], lambda value: held["a"][0].b.update(rate=value)


@place
def default_argument() -> Place:
    def get(rate: float = 1.0) -> float:
        return rate

    return get, lambda value: setattr(get, "__defaults__", (value,))


@place
def keyword_default() -> Place:
    def get(*, rate: float = 1.0) -> float:
        return rate

    return lambda: get(), lambda value: setattr(get, "__kwdefaults__", {"rate": value})


@place
def code() -> Place:
    def get() -> float:
        return 1.0

    return lambda: get(), lambda value: setattr(get, "__code__", eval(f"lambda: {value!r}").__code__)


@place
def class_swapped() -> Place:
    held = Holder()
    kinds = functools.cache(lambda value: type("Other", (Holder,), {"value": lambda self: value}))
    return lambda: held.value(), lambda value: setattr(held, "__class__", kinds(value))


@place
def method_of_instance() -> Place:
    held = Holder()
    return lambda: held.value(), lambda value: setattr(held, "value", lambda: value)


@place
def method_of_class() -> Place:
    kind = type("Kind", (), {})
    held = kind()
    return lambda: held.value(), lambda value: setattr(kind, "value", lambda self: value)


@place
def call_of_object() -> Place:
    class Called(Holder):
        def __call__(self) -> float:
            return self.rate

    held = Called()
    return held, lambda value: setattr(held, "rate", value)


@place
def property_() -> Place:
    class Hidden:
        value = property(lambda self: self._rate)

    held = Hidden()
    return lambda: held.value, lambda value: setattr(held, "_rate", value)


@place
def getattr_() -> Place:
    held = Holder()
    return lambda: getattr(held, "ra" + "te"), lambda value: setattr(held, "rate", value)


@place
def dunder_getattr() -> Place:
    inner: dict[str, float] = {}

    class Lazy:
        def __getattr__(self, name: str) -> float:
            return inner[name]

    held = Lazy()
    return lambda: held.anything, lambda value: inner.update(anything=value)


@place
def vars_() -> Place:
    held = Holder()
    return lambda: vars(held)["rate"], lambda value: setattr(held, "rate", value)


@place
def frozen_dataclass_replaced() -> Place:
    kind = dataclasses.make_dataclass("Frozen", [("rate", float)], frozen=True)
    held = Holder()
    return lambda: held.config.rate, lambda value: setattr(held, "config", kind(value))


@place
def namedtuple_replaced() -> Place:
    kind, held = namedtuple("Kind", ["rate"]), Holder()
    return lambda: held.config.rate, lambda value: setattr(held, "config", kind(value))


@place
def enum_() -> Place:
    held = Holder()
    kinds = enum.Enum("Mode", {"SLOW": 1.0, "FAST": 2.0})

    def put(value: float) -> None:
        held.mode, held.scale = kinds.FAST if value == 2 else kinds.SLOW, value / 2 if value == 2 else value

    return lambda: held.mode.value * held.scale, put


@place
def word() -> Place:
    held = Holder()
    return lambda: float(held.word), lambda value: setattr(held, "word", str(value))


@place
def json_text() -> Place:
    held = [""]
    return lambda: json.loads(held[0])["rate"], lambda value: operator.setitem(held, 0, json.dumps({"rate": value}))


@place
def decimal() -> Place:
    held = Holder()
    return lambda: float(held.rate), lambda value: setattr(held, "rate", Decimal(value))


@place
def fraction() -> Place:
    held = Holder()
    return lambda: float(held.rate), lambda value: setattr(held, "rate", Fraction(value))


@place
def numpy_number() -> Place:
    held = Holder()
    return lambda: float(held.rate), lambda value: setattr(held, "rate", np.float64(value))


@place
def mean_of_a_large_array() -> Place:
    held = np.ones((300, 300))
    return lambda: float(held.mean()), lambda value: held.fill(value)


@place
def context_variable() -> Place:
    return CONTEXT.get, CONTEXT.set


@place
def environment() -> Place:
    return lambda: float(os.environ["RATE"]), lambda value: os.environ.update(RATE=str(value))


@place
def import_in_the_model() -> Place:
    def get() -> float:
        import made_up_settings

        return made_up_settings.rate

    return get, lambda value: setattr(CFG, "rate", value)


@place
def file() -> Place:
    path = Path(tempfile.gettempdir()) / f"rate_{os.getpid()}.txt"
    return lambda: float(path.read_text()), lambda value: path.write_text(str(value))


@place
def cached() -> Place:
    @functools.cache
    def get() -> list[float]:
        return [1.0]

    return lambda: get()[0], lambda value: operator.setitem(get(), 0, value)


@place
def cache_cleared() -> Place:
    held = [1.0]
    get = functools.lru_cache(lambda: held[0])
    return lambda: get(), lambda value: (operator.setitem(held, 0, value), get.cache_clear())


@place
def partial_keywords() -> Place:
    get = functools.partial(lambda rate: rate, rate=1.0)
    return lambda: get(), lambda value: get.keywords.update(rate=value)


@place
def partial_replaced() -> Place:
    held = Holder()
    return lambda: held.get(), lambda value: setattr(held, "get", functools.partial(float, value))


@place
def bound_method() -> Place:
    held = Holder()
    held.rate = [1.0]
    return held.rate.__getitem__.__self__.copy and (lambda: held.rate[-1]), lambda value: held.rate.append(value)


@place
def length() -> Place:
    held: list[int] = []
    return lambda: float(len(held)) / 16, lambda value: operator.setitem(held, slice(None), [0] * round(16 * value))


@place
def member_of_a_set() -> Place:
    held: set[float] = set()
    return lambda: max(held), lambda value: (held.clear(), held.add(value))


@place
def weak_reference() -> Place:
    held = Holder()
    held.keep = held
    get = weakref.ref(held)
    return lambda: get().rate, lambda value, held=held: setattr(held, "rate", value)


@place
def generator_that_is_sent_to() -> Place:
    def run() -> Iterator[float]:
        rate = 1.0
        while True:
            got = yield rate
            rate = rate if got is None else got

    held = run()
    next(held)
    return lambda: held.send(None), held.send


@place
def builtins_() -> Place:
    return lambda: RATE_OF_ALL, lambda value: setattr(builtins, "RATE_OF_ALL", value)  # noqa: F821


@place
def tensor_rebound() -> Place:
    held = Holder()
    return lambda: held.rate, lambda value: setattr(held, "rate", torch.as_tensor(value))


@place
def tensor_in_place() -> Place:
    held = torch.ones(())
    return lambda: held * 1, lambda value: held.copy_(torch.as_tensor(value))


@place
def tensor_of_another_shape() -> Place:
    held = Holder()

    def put(value: float) -> None:
        held.rate = torch.full((round(float(value) * 16),), float(value))

    return lambda: held.rate.mean(), put


@place
def handler() -> Place:
    scaled = poutine.scale(lambda: pyro.sample("none", dist.Delta(torch.zeros(()))), 1.0)
    return lambda: scaled.args[0].scale, lambda value: setattr(scaled.args[0], "scale", value)


@place
def property_of_class() -> Place:
    kind = type("Kind", (), {})
    held = kind()
    return lambda: held.value, lambda value: setattr(kind, "value", property(lambda self: value))


@place
def iterator_made_anew() -> Place:
    held = [itertools.repeat(1.0)]
    return lambda: next(held[0]), lambda value: operator.setitem(held, 0, itertools.repeat(value))


@place
def frame() -> Place:
    held = Holder()

    class Stack(list):
        def top(self) -> float:
            return self[-1].rate

    stack = Stack([held])
    return stack.top, lambda value: stack.append(types.SimpleNamespace(rate=value))


class Net(nn.Module):
    """A small network of everything that may change."""

    table: dict = {"act": torch.tanh}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear, self.out = nn.Linear(2, 3), nn.Linear(3, 1)
        self.drop, self.norm = nn.Dropout(0.5), nn.LayerNorm(3)
        self.parts = nn.Sequential(nn.Identity())
        self.acts, self.act = nn.ModuleDict({"a": nn.Tanh(), "b": nn.ReLU()}), "a"
        self.register_buffer("shift", torch.zeros(()))
        self.eval()

    def forward(self) -> Tensor:
        hidden = self.acts[self.act](self.norm(self.linear(ONE)))
        return 1 + 0.3 * (self.out(self.drop(self.parts(hidden))) + self.shift).sum()


class Tripled(Net):
    def forward(self) -> Tensor:
        return 3 * super().forward()


def zeroed(leaf: Tensor) -> None:
    leaf.grad = torch.zeros_like(leaf)


def doubled(net: nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)


def forward_of_class(net: nn.Module) -> Callable[[], None]:
    kind = type(net)
    kind.forward = lambda self: torch.tensor(3.0) * self.out.weight.sum()
    return lambda: None


NET_CHANGES: dict[str, Callable[[Net], object]] = {
    "train": lambda net: net.train(),
    "train of a part": lambda net: net.drop.train(),
    "p of Dropout": lambda net: (net.train(), setattr(net.drop, "p", 0.1)),
    "eps": lambda net: setattr(net.norm, "eps", 1.0),
    "requires_grad off": lambda net: net.linear.weight.requires_grad_(False),
    "requires_grad of all": lambda net: net.out.requires_grad_(False),
    "values of parameters": doubled,
    "data of a parameter": lambda net: setattr(net.linear.weight, "data", torch.ones(3, 2)),
    "load_state_dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "a buffer in place": lambda net: net.shift.add_(1),
    "a buffer replaced": lambda net: setattr(net, "shift", torch.ones(())),
    "a forward hook": lambda net: net.linear.register_forward_hook(lambda m, i, o: 2 * o),
    "a forward pre-hook": lambda net: net.out.register_forward_pre_hook(lambda m, i: (2 * i[0],)),
    "a full backward hook": lambda net: net.out.register_full_backward_hook(lambda m, i, o: (2 * i[0],)),
    "a full backward pre-hook": lambda net: net.out.register_full_backward_pre_hook(lambda m, o: (2 * o[0],)),
    "a part replaced": lambda net: setattr(net, "drop", nn.Tanh()),
    "a part appended": lambda net: net.parts.append(nn.Tanh()),
    "an entry of Sequential": lambda net: operator.setitem(net.parts, 0, nn.Tanh()),
    "a word that picks a part": lambda net: setattr(net, "act", "b"),
    "an entry of ModuleDict": lambda net: net.acts.update({"a": nn.ReLU()}),
    "forward of the object": lambda net: setattr(net, "forward", lambda: 3 * net.out.weight.sum()),
    "forward of a part": lambda net: setattr(net.linear, "forward", lambda x: 2 * x @ net.linear.weight.T),
    "the class": lambda net: setattr(net, "__class__", Tripled),
    "the class of a part": lambda net: setattr(net.acts["a"], "__class__", nn.Sigmoid),
    "a parametrization": lambda net: nn.utils.parametrize.register_parametrization(net.linear, "weight", nn.Tanh()),
    "double and back": lambda net: net.double().float(),
    "a hook on a parameter": lambda net: net.linear.weight.register_hook(lambda g: torch.zeros_like(g)),
    "a post-accumulate hook": lambda net: net.linear.weight.register_post_accumulate_grad_hook(
        lambda p: p.grad.zero_()
    ),
    "elementwise_affine off": lambda net: (setattr(net.norm, "weight", None), setattr(net.norm, "bias", None)),
    "out of Linear": lambda net: setattr(net.linear, "bias", None),
}


def net_case(change: Callable[[Net], object]) -> Case:
    kind = type("Own", (Net,), {})
    net = kind()
    return Case(net, lambda run: change(net), net=net)


for name, change in NET_CHANGES.items():
    NETS[f"net: {name}"] = lambda change=change: net_case(change)
NETS["net: forward of the class"] = lambda: net_case(forward_of_class)
NETS["net: hooks of all modules"] = lambda: global_hook()


def global_hook() -> Case:
    case, handles = net_case(lambda net: None), []
    case.change = lambda run: handles.append(
        nn.modules.module.register_module_forward_hook(lambda m, i, o: 2 * o if isinstance(m, nn.Linear) else None)
    )
    case.restore = lambda: [handle.remove() for handle in handles]
    return case


def owners(run: Run) -> list[Any]:
    found = run.svi.optim.optim_objs.values()
    return [getattr(each, "optimizer", each) for each in found]


def option(name: str, value: Any) -> Callable[[Run], object]:
    return lambda run: [owner.param_groups[0].update({name: value}) for owner in owners(run)]


def add_gradients(run: Run) -> None:
    for leaf in run.leaves():
        leaf.grad = torch.full_like(leaf, 50.0) + (0 if leaf.grad is None else leaf.grad)


def replaced_state(run: Run) -> None:
    for owner in owners(run):
        owner.state = defaultdict(dict)


def clipped(run: Run) -> None:
    for leaf in run.svi.optim.grad_clip:
        run.svi.optim.grad_clip[leaf] = lambda p: None if p.grad is None else p.grad.mul_(0.0)


def rescaled(run: Run) -> None:
    for owner in owners(run):
        for state in owner.state.values():
            state["exp_avg"].mul_(-3)


def other_moments(run: Run) -> None:
    for owner in owners(run):
        for state in owner.state.values():
            state["exp_avg"] = -3 * state["exp_avg"]


def lowered(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None if p.grad is None else -p.grad


def sgd(run: Run) -> None:
    for leaf in run.svi.optim.optim_objs:
        run.svi.optim.optim_objs[leaf] = torch.optim.SGD([leaf], 1e-4)


def stored(run: Run) -> None:
    pyro.get_param_store()["start"] = torch.tensor(3.0)


def shifted(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.add_(0.01)


def noised(run: Run) -> None:
    for leaf in run.leaves():
        leaf.register_hook(lambda g: -g)


CLIPPED = lambda: ClippedAdam({"lr": 0.003, "clip_norm": 10.0})  # noqa: E731
SVI_CHANGES: dict[str, Callable[[Run], object]] = {
    "gradients in .grad": add_gradients,
    "hooks on parameters": noised,
    "post-accumulate hooks": lambda run: [leaf.register_post_accumulate_grad_hook(zeroed) for leaf in run.leaves()],
    "pre-hooks of optimizers": lambda run: [owner.register_step_pre_hook(lowered) for owner in owners(run)],
    "post-hooks of optimizers": lambda run: [owner.register_step_post_hook(shifted) for owner in owners(run)],
    "grad_clip": clipped,
    "state cleared": lambda run: [owner.state.clear() for owner in owners(run)],
    "state replaced": replaced_state,
    "moments in place": rescaled,
    "moments replaced": other_moments,
    "lr": option("lr", 0.001),
    "betas": option("betas", (0.0, 0.5)),
    "eps": option("eps", 1.0),
    "weight_decay": option("weight_decay", 5.0),
    "maximize": option("maximize", True),
    "amsgrad off and on": lambda run: (option("amsgrad", False)(run), option("lr", 0.002)(run)),
    "groups replaced": lambda run: [
        setattr(owner, "param_groups", [{**group, "lr": 0.0001} for group in owner.param_groups])
        for owner in owners(run)
    ],
    "optim_objs cleared": lambda run: run.svi.optim.optim_objs.clear(),
    "optimizers replaced": sgd,
    "optim replaced": lambda run: setattr(run.svi, "optim", Adam({"lr": 0.0001})),
    "parameter in the store": stored,
    "store cleared": lambda run: pyro.clear_param_store(),
    "a frozen parameter": lambda run: [leaf.requires_grad_(False) for leaf in run.leaves()[:1]],
    "loss_and_grads replaced": lambda run: setattr(run.svi, "loss_and_grads", Trace_ELBO().loss_and_grads),
}


def svi_case(
    change: Callable[[Run], object], optim: Callable[[], PyroOptim] | None = None, stairs: bool = False
) -> Case:
    net = type("Own", (Net,), {})()
    case = Case(net, change, net=net, only_svi=True, stairs=stairs)
    case.optim = optim or case.optim
    return case


for name, change in SVI_CHANGES.items():
    STEPPERS[f"SVI: {name}"] = lambda change=change: svi_case(change)
STEPPERS["SVI: gradients in .grad, again and again"] = lambda: svi_case(add_gradients, stairs=True)
STEPPERS["SVI: clip_norm"] = lambda: svi_case(option("clip_norm", 0.01), CLIPPED)
STEPPERS["SVI: lrd"] = lambda: svi_case(option("lrd", 0.9), CLIPPED)


@functools.partial(STEPPERS.__setitem__, "SVI: no gradient in some steps")
def idle() -> Case:
    """A part of the network is at times left out: the optimizer moves it by its momentum all the same."""
    net = type("Own", (Net,), {})()
    used = [True]

    def read() -> Tensor:
        return net() if used[0] else net.linear.weight.sum()

    return Case(read, lambda run: operator.setitem(used, 0, not used[0]), net=net, stairs=True, only_svi=True)


@functools.partial(STEPPERS.__setitem__, "SVI: a plate's size")
def plates() -> Case:
    held = Holder()
    held.size = 2

    def model(y: Tensor) -> None:
        at = pyro.sample("at", dist.Normal(0.0, 10.0))
        with pyro.plate("row", held.size):
            pyro.sample("y", dist.Normal(at, 1.0), obs=y.repeat(held.size // 2))

    return Case(change=lambda run: setattr(held, "size", 6), model=model, only_svi=True)


@functools.partial(STEPPERS.__setitem__, "SVI: scale around the model")
def scaled() -> Case:
    held = Holder()

    def model(y: Tensor) -> None:
        at = pyro.sample("at", dist.Normal(0.0, 10.0))
        with poutine.scale(scale=float(os.environ.get("SCALE_OF_MODEL", "1"))):
            pyro.sample("y", dist.Normal(at * held.rate, 1.0).expand([2]).to_event(1), obs=y)

    return Case(
        change=lambda run: os.environ.update(SCALE_OF_MODEL="3"),
        model=model,
        only_svi=True,
        restore=lambda: os.environ.pop("SCALE_OF_MODEL", None),
    )
