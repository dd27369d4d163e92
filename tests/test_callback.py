"""Callbacks of fit, densities and VAEs: what they are told, how they stop training, what becomes of their errors."""

import copy
import importlib
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pyroflows import VAE, AutoFlow, FlowDensity, FlowEncoder, FlowPrior, fit, flows
from pyroflows.training import Listener

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(4,), bends=0)
X = np.random.default_rng(0).normal(size=(60, 2))
BITS = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
pytestmark = pytest.mark.usefixtures("no_search")
Run = Callable[..., object]


def normal(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def fitted(callback: object, steps: int = 20, guide: AutoFlow | None = None) -> list:
    history = fit(
        normal,
        torch.ones(2),
        flow=SMALL,
        guide=guide,
        start=None,
        full_rank=None,
        steps=steps,
        callback=callback,
        progress=False,
    ).history
    return [history.elbo, history.stopped]


def density(callback: object, epochs: int = 6) -> list:
    log = FlowDensity(SMALL, epochs=epochs, random_state=0).fit(X, callback=callback).log_
    return [log.train, log.stopped]


def build() -> VAE:
    torch.manual_seed(0)
    return VAE(FlowEncoder(nn.Linear(6, 4), 4, 2, SMALL), nn.Linear(2, 6), FlowPrior(2, SMALL))


def vae(callback: object, epochs: int = 6) -> list:
    log = build().fit([BITS[:20], BITS[20:]], epochs, callback=callback, progress=False)
    return [log.train, log.stopped]


RUNS = pytest.mark.parametrize("run", [fitted, density, vae])


@RUNS
def test_a_callback_is_told_step_value_and_rate(run: Run) -> None:
    seen: list[tuple[int, float, float]] = []
    values, _ = run(lambda *told: seen.append(told))
    steps, told, rates = zip(*seen, strict=True)
    assert steps == tuple(range(1, len(values) + 1))
    assert list(told) == values
    assert all(0 < rate < 0.1 for rate in rates)
    assert len(set(rates)) > 1


@RUNS
def test_a_callback_changes_nothing(run: Run) -> None:
    found = []
    for callback in (None, lambda *_: None):
        torch.manual_seed(1)
        found.append(run(callback))
    assert found[0] == found[1]


@RUNS
def test_a_callback_stops_training(run: Run) -> None:
    values, stopped = run(lambda step, value, rate: np.bool_(step == 3))
    assert (len(values), stopped) == (3, "the callback stopped it")


@RUNS
@pytest.mark.parametrize("error", [ValueError("mine"), FloatingPointError("mine"), SystemExit("mine")])
def test_an_error_of_a_callback_is_passed_on_as_it_is(run: Run, error: BaseException) -> None:
    steps: list[int] = []

    def callback(step: int, value: float, rate: float) -> None:
        steps.append(step)
        if step == 3:
            raise error

    with pytest.raises(type(error)) as found:
        run(callback)
    assert found.value is error
    assert steps == [1, 2, 3]


@RUNS
def test_what_cannot_be_called_is_no_callback(run: Run) -> None:
    with pytest.raises(TypeError, match="expected callback to be None or a function of step, value and rate, got 3"):
        run(3)


def at_three(outcome: Callable[[], object]) -> Callable:
    return lambda step, *_: outcome() if step == 3 else None


def fails() -> None:
    raise ValueError("mine")


@pytest.mark.filterwarnings("ignore:fit. .*do not trust:UserWarning")  # three steps are few
def test_an_error_leaves_the_guide_as_a_stop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = importlib.import_module("pyroflows.fitting.problem")
    monkeypatch.setattr(problem, "ascend", lambda affine, weights, **options: 0)  # the stage before the flow's
    guides = [AutoFlow(normal, SMALL).setup(torch.ones(2)) for _ in range(2)]
    guides[1].load_state_dict(copy.deepcopy(guides[0].state_dict()))
    torch.manual_seed(1)
    fitted(at_three(lambda: True), guide=guides[0])
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="mine"):
        fitted(at_three(fails), guide=guides[1])
    assert_close(guides[1].state_dict(), guides[0].state_dict(), rtol=0, atol=0)
    assert guides[1]().keys() == {"x"}


def test_an_error_leaves_a_density_as_a_stop_does() -> None:
    stopped = FlowDensity(SMALL, epochs=6, random_state=0).fit(X, callback=at_three(lambda: True))
    failed = FlowDensity(SMALL, epochs=6, random_state=0)
    with pytest.raises(ValueError, match="mine"):
        failed.fit(X, callback=at_three(fails))
    assert np.array_equal(failed.score_samples(X), stopped.score_samples(X))
    assert failed.log_.stopped == "the callback raised ValueError"


def test_an_error_leaves_a_vae_as_a_stop_does() -> None:
    stopped, failed = build(), build()
    for one, outcome in ((stopped, lambda: True), (failed, fails)):
        torch.manual_seed(1)
        try:
            one.fit([BITS], 6, callback=at_three(outcome), progress=False)
        except ValueError:
            assert one is failed
    assert_close(failed.state_dict(), stopped.state_dict(), rtol=0, atol=0)
    assert not failed.training


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_in_a_callback_is_ctrl_c() -> None:
    with pytest.warns(UserWarning, match="broken off after 3 steps"):
        _, stopped = fitted(at_three(interrupt))
    assert stopped == "interrupted"
    with pytest.raises(KeyboardInterrupt):
        vae(at_three(interrupt))
    listener = Listener("fit", at_three(interrupt))
    with pytest.raises(KeyboardInterrupt):
        listener(3, math.nan, 0.1)
    assert not listener.failed
