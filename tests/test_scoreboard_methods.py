"""The methods of the scoreboard, on tiny models: fit in stages, Pyro's guides, zuko, NUTS."""

import itertools
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyroflows
from pyroflows import log_joint

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from scoreboard import metrics, nuts, own, peers
from scoreboard.clock import Clock


class Ticks:
    """A clock that moves by one at each look."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self.lap = lambda name: None

    @property
    def seconds(self) -> int:
        return next(self._count)


def plain() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(2 * x, 0.5), obs=torch.tensor(1.0))


def summing() -> None:
    pyro.factor("y", -pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1)).square().sum())


def indexing() -> None:
    a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(a + b, 1.0).to_event(1), obs=torch.zeros(3))


@pytest.mark.parametrize(("model", "right"), [(plain, True), (summing, False), (indexing, False)])
def test_vectorises(model: Callable, right: bool) -> None:
    assert peers.vectorises(log_joint(model)) is right


@pytest.mark.parametrize("name", [*peers.GUIDES, "AutoDiagonalNormal+batched"])
def test_guides_train(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RATE", 0.05)
    density, steps = log_joint(plain), 300
    if name in ("AutoMultivariateNormal", "AutoNormalizingFlow", "AutoIAFNormal"):
        density, steps = log_joint(summing), 20
    draws, facts = peers.guide(name, density, Ticks(), steps + 1)
    assert draws.z.shape == (metrics.DRAWS, density.size)
    assert facts["steps"] == pytest.approx(steps, abs=2)
    assert facts["bad_steps"] == 0
    assert facts["particles"] == ("4 looped" if density.size == 3 else "64 batched")
    if density.size == 1:  # the posterior is N(8, 1) / 17
        assert draws.z.mean() == pytest.approx(8 / 17, abs=0.05)


def test_zuko_trains() -> None:
    pytest.importorskip("zuko")
    draws, facts = peers.zuko(log_joint(summing), Ticks(), 10)
    assert draws.log_q.shape == (metrics.DRAWS,)
    assert facts["bad_steps"] == 0


def logarithm() -> None:
    x = pyro.sample("x", dist.Normal(0.3, 0.05).expand([2]).to_event(1))
    pyro.factor("y", x.log().sum())


def test_steps_that_are_not_finite_are_dropped() -> None:
    with pytest.warns(UserWarning, match="Encountered NaN"):
        _, facts = peers.guide("AutoIAFNormal+batched", log_joint(logarithm), Ticks(), 10)
    assert facts["bad_steps"] == facts["steps"] == pytest.approx(10, abs=2)


def test_nuts_says_how_far_it_came() -> None:
    with pytest.raises(nuts.NotFinished, match="1 of 2000 draws"):
        nuts.run(log_joint(plain), Ticks(), -1)


def test_nuts_finds_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuts, "WARMUP", 100)
    monkeypatch.setattr(nuts, "KEPT", 200)
    draws, facts = nuts.run(log_joint(plain), Ticks(), math.inf)
    assert draws.z.shape == (200, 1)
    assert draws.z.mean() == pytest.approx(8 / 17, abs=0.15)
    assert facts["divergences"] == 0


def test_fit_is_timed_by_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyroflows, "fit", partial(pyroflows.fit, steps=20, compile=False))
    clock = Clock(0.0)
    ((name, timed, draws, facts),) = own.run(plain, (), clock, ["fit"])
    assert name == "fit"
    assert timed is clock
    assert list(clock.laps) == ["setup", "start", "full rank", "flow"]
    assert draws.z.shape == (metrics.DRAWS, 1)
    assert facts["steps"] == 20
    assert facts["verdict"]


def test_refined_draws_go_on_from_the_fit() -> None:
    refined = SimpleNamespace(weighted=True, weights=torch.ones(6).numpy() / 6, vectors=torch.zeros(2, 3, 1))
    refined.diagnostics = SimpleNamespace(verdict="good")
    asked = []
    posterior = SimpleNamespace(refine=lambda method: asked.append(method) or refined)
    name, clock, draws, facts = own._refined(posterior, "fit+importance", Clock(0.0), {"steps": 5})
    assert (name, asked, list(clock.laps)) == ("fit+importance", ["importance"], ["refine"])
    assert draws.z.shape == (6, 1)
    assert draws.weights.sum() == pytest.approx(1)
    assert facts == {"steps": 5, "verdict": "good"}
