"""Audits: what changes unseen between traced steps is found, said, and done right from then on."""

import os
import sys
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, repeat
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyroflows import CompiledSVI, CompiledTrace_ELBO
from pyroflows.compile import TracedLoss, capture
from pyroflows.compile.audit import Audit

CONTEXT, LOCAL = ContextVar("scale", default=1.0), threading.local()
LARGE, LONG, SCALE = np.ones(200_000), [1.0] * 3000, 1.0
Y = torch.tensor([1.0, 3.0])


class Holder:
    def read(self) -> float:
        return 1.0


class Other(Holder):
    def read(self) -> float:
        return 2.0


@dataclass(frozen=True)
class Frozen:
    rate: float = 1.0


@dataclass(slots=True)
class Slots:
    rate: float = 1.0


def with_default(rate: float = 1.0) -> float:
    return rate


HOLDER, SLOTS, QUEUE, SMALL, GROWN = Holder(), Slots(), deque([1.0]), np.ones(3), [1.0]
HELD = SimpleNamespace(config=Frozen(), prior=dist.Normal(0.0, 1.0))


def code() -> float:
    return 1.0


@cache
def cached() -> list[float]:
    return [1.0]


# How a model reads a number, and what makes it 2.
KINDS: dict[str, tuple[Callable[[], float], Callable[[], object]]] = {
    "ContextVar": (CONTEXT.get, lambda: CONTEXT.set(2.0)),
    "threading.local": (lambda: LOCAL.scale, lambda: setattr(LOCAL, "scale", 2.0)),
    "environment": (lambda: float(os.environ["SCALE"]), lambda: os.environ.update(SCALE="2.0")),
    "large array": (lambda: float(LARGE[0]), lambda: LARGE.fill(2.0)),
    "entry of a long list": (lambda: LONG[2000], lambda: LONG.__setitem__(2000, 2.0)),
    "globals()": (lambda: globals()["SC" + "ALE"], lambda: globals().update(SCALE=2.0)),
    "sys.modules": (
        lambda: sys.modules["made_for_audits"].rate,
        lambda: setattr(sys.modules["made_for_audits"], "rate", 2.0),
    ),
    "class": (lambda: HOLDER.read(), lambda: setattr(HOLDER, "__class__", Other)),
    "code": (lambda: code(), lambda: setattr(code, "__code__", (lambda: 2.0).__code__)),
    "cache": (lambda: cached()[0], lambda: cached().__setitem__(0, 2.0)),
    "slots": (lambda: SLOTS.rate, lambda: setattr(SLOTS, "rate", 2.0)),
    "deque": (lambda: QUEUE[-1], lambda: QUEUE.append(2.0)),
    "array": (lambda: float(SMALL[0]), lambda: SMALL.fill(2.0)),
    "appended": (lambda: GROWN[-1], lambda: GROWN.append(2.0)),
    "dataclass replaced": (lambda: HELD.config.rate, lambda: setattr(HELD, "config", Frozen(2.0))),
    "distribution replaced": (lambda: HELD.prior.scale, lambda: setattr(HELD, "prior", dist.Normal(0.0, 2.0))),
    "default argument": (lambda: with_default(), lambda: setattr(with_default, "__defaults__", (2.0,))),
}


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("made_for_audits")
    module.rate, LOCAL.scale, before = 1.0, 1.0, code.__code__
    monkeypatch.setitem(sys.modules, "made_for_audits", module)
    monkeypatch.setenv("SCALE", "1.0")
    yield
    LARGE.fill(1.0)
    LONG[2000], HOLDER.__class__, code.__code__ = 1.0, Holder, before
    globals().update(SCALE=1.0)
    cached.cache_clear()
    CONTEXT.set(1.0)
    SLOTS.rate, HELD.config, HELD.prior, with_default.__defaults__ = 1.0, Frozen(), dist.Normal(0.0, 1.0), (1.0,)
    SMALL.fill(1.0)
    QUEUE.append(1.0)
    GROWN[:] = [1.0]


def step_of(kind: str, read: Callable[[], float], audit: int = 256) -> tuple[Callable[[], float], Callable[[], float]]:
    """A step, and what its loss should be."""
    weight = torch.tensor(0.5, requires_grad=True)
    if kind == "TracedLoss":
        loss = TracedLoss(lambda y: (weight * read() * y).sum(), [weight], audit=audit)
        return lambda: loss(Y).item(), lambda: (weight * read() * Y).sum().item()

    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc, read()).expand([2]).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("loc", dist.Delta(pyro.param("at", torch.tensor(0.5))))

    def wanted() -> float:
        at = pyro.param("at").detach()
        return -(dist.Normal(0.0, 1.0).log_prob(at) + dist.Normal(at, read()).log_prob(Y).sum()).item()

    elbo = CompiledTrace_ELBO(compile=False, audit=audit)
    svi = {"SVI": SVI, "CompiledSVI": CompiledSVI}[kind](model, guide, Adam({"lr": 0.01}), elbo)
    return lambda: svi.step(Y), wanted


@pytest.mark.parametrize("kind", ["SVI", "CompiledSVI", "TracedLoss"])
@pytest.mark.parametrize(("read", "change"), KINDS.values(), ids=KINDS)
def test_no_step_is_wrong_without_a_word(kind: str, read: Callable, change: Callable) -> None:
    step, wanted = step_of(kind, read)
    for _ in range(5):
        step()
    change()
    wrong = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(12):
            expected = None if kind != "TracedLoss" and "at" not in pyro.get_param_store() else wanted()
            wrong.append(step() != pytest.approx(expected, rel=1e-4))
    assert not any(wrong[3:])  # use 8 is audited
    assert said or not any(wrong)
    assert not said or "found that the graph of a step may have been wrong since use 5" in str(said[0].message)


@pytest.mark.parametrize("kind", ["SVI", "CompiledSVI", "TracedLoss"])
def test_without_audits_nothing_is_found(kind: str) -> None:
    step, wanted = step_of(kind, CONTEXT.get, audit=0)
    step()
    CONTEXT.set(2.0)
    for _ in range(10):
        expected = wanted()
        found = step()
    assert found != pytest.approx(expected, rel=1e-2)


def test_the_third_failure_is_the_last() -> None:
    step, wanted = step_of("SVI", CONTEXT.get)
    step()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for scale in (2.0, 3.0, 4.0, 5.0, 6.0):
            CONTEXT.set(scale)
            expected = wanted()
            assert step() == pytest.approx(expected, rel=1e-5)
    texts = [str(warning.message) for warning in said]
    assert ["It is traced anew" in text for text in texts] == [True, True, False, False]
    assert "No other is made" in texts[2]
    assert "runs as plain Trace_ELBO, since it cannot be traced: 3 of its graphs have failed" in texts[3]


def test_a_run_is_audited_as_well() -> None:
    CONTEXT.set(1.0)
    runs = []

    def model(y: Tensor) -> None:
        runs.append(1)
        pyro.sample("y", dist.Normal(pyro.param("at", torch.tensor(0.5)), 1.0).expand([2]).to_event(1), obs=y)

    svi = CompiledSVI(model, lambda y: None, Adam({"lr": 0.01}), CompiledTrace_ELBO(compile=False, audit=16))
    svi.run(1, Y)
    runs.clear()
    svi.run(40, Y)
    assert len(runs) == 5  # at uses 2, 4, 8, 16 and 32


def test_an_iterator_is_refused_at_once() -> None:
    schedule = chain(repeat(1.0, 100), count(1))
    step, _ = step_of("SVI", lambda: float(next(schedule)))
    with pytest.warns(UserWarning, match=r"a chain \(schedule of <lambda>\) may be advanced: pass what it gives as"):
        step()


def test_noise_that_a_model_seeds_itself_is_refused() -> None:
    def loss() -> Tensor:
        torch.manual_seed(1)
        return torch.randn(())

    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="a replay of the function differs"):
        capture(loss)


def test_an_audit_leaves_the_noise_as_it_was() -> None:
    losses = []
    for audit in (0, 1):
        pyro.set_rng_seed(0)
        noisy = TracedLoss(lambda y: (y * torch.randn(2)).sum(), [torch.ones((), requires_grad=True)], audit=audit)
        losses.append([noisy(Y).item() for _ in range(5)])
    assert losses[0] == losses[1]


def test_uses_until_the_next_audit() -> None:
    audit = Audit(every=10)
    assert [audit.skip(100) + audit.due() for _ in range(5)] == [1, 2, 4, 2, 10]
    assert Audit(every=0).skip(7) == 7


# What a function may begin to do, and what an audit says of it.
DEEDS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "a change in place": (lambda weight, other: weight.detach().mul_(2.0) * 0 + weight, "is changed in place"),
    "a change of data": (lambda weight, other: weight.data.mul_(2.0) * 0 + weight, "is changed in place"),
    "another parameter": (lambda weight, other: weight + other - other.detach(), "depends on other parameters"),
    "a parameter less": (lambda weight, other: weight.detach(), "depends on other parameters"),
    "an error": (lambda weight, other: weight.reshape(7), "raises RuntimeError: shape"),
}


@pytest.mark.parametrize(("deed", "said"), DEEDS.values(), ids=DEEDS)
def test_what_a_function_begins_to_do(deed: Callable, said: str) -> None:
    weight, other = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    deeds: list[Callable] = []
    graph = capture(lambda y: ((deeds[0](weight, other) if deeds else weight) * y).sum(), [Y])
    assert graph.audit([Y]) is None
    deeds.append(deed)
    assert said in graph.audit([Y])


def test_an_audit_looks_at_what_is_compiled() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    graph = capture(lambda y: (weight * y).sum(), [Y]).compile([Y])
    assert graph.audit([Y]) is None
    right = graph._run
    graph._run = lambda *tensors: [right(*tensors)[0], right(*tensors)[1] + 1]
    assert graph.audit([Y]) == "the gradient is 4, by the graph 5"


def test_an_audit_runs_the_function_once() -> None:
    runs = []
    graph = capture(lambda y: (runs.append(1), y.sum())[1], [Y])
    runs.clear()
    assert graph.audit([Y]) is None
    assert len(runs) == 1


def counting(place: str) -> Callable[[], float]:
    """What counts its own runs, where comparing values at each step does not look."""
    long, array, held = [0.0] * 200, np.zeros(2), SimpleNamespace(config=Frozen(0.0), spare=0.0)

    @cache
    def kept() -> list[float]:
        return [0.0]

    kept()

    def replaced() -> None:
        held.config = Frozen(held.config.rate + 1)

    def by_name() -> None:
        setattr(held, "spa" + "re", getattr(held, "spa" + "re") + 1)

    counts: dict[str, Callable[[], object]] = {
        "list": lambda: long.__setitem__(150, long[150] + 1),
        "array": lambda: array.__iadd__(1.0),
        "large array": lambda: LARGE.__iadd__(1.0),
        "cache": lambda: kept().__setitem__(0, kept()[0] + 1),
        "replaced": replaced,
        "by name": by_name,
        "context": lambda: CONTEXT.set(CONTEXT.get() + 1),
        "environment": lambda: os.environ.update(SCALE=str(float(os.environ["SCALE"]) + 1)),
        "error": lambda: setattr(FAILED, "count", FAILED.count + 1),
    }
    return lambda: (counts[place](), 1.0)[1]


FAILED = ValueError()
FAILED.count = 0
PLACES = ["list", "array", "large array", "cache", "replaced", "by name", "context", "environment", "error"]


@pytest.mark.parametrize("place", PLACES)
def test_a_function_that_counts_its_runs_is_refused(place: str) -> None:
    read = counting(place)
    with pytest.raises(RuntimeError, match="changes whenever the function runs"):
        capture(lambda y: (read() * y).sum(), [Y])
