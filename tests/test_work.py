"""Work is counted, not timed: prices, and fits that go the same way whatever the clock says."""

import sys
import time
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import pyroflows
from pyroflows import Posterior, flows
from pyroflows.infer import Counted, Gaussian, find_modes
from pyroflows.training import Trainer, speed
from pyroflows.training.work import work_of

FLOW = partial(flows.realnvp, layers=2, hidden_dims=(8,))


def groups(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(3.0))
    with pyro.plate("group", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How fast the clocks run."""
    rate, own = [1.0], {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter", "process_time")}
    for name, read in own.items():
        monkeypatch.setattr(time, name, lambda read=read: rate[0] * read())
    return rate


def fitted() -> Posterior:
    pyro.set_rng_seed(3)
    return pyroflows.fit(
        groups, torch.tensor([1.0, 3.0, -2.0, 4.0]), flow=FLOW, steps=60, progress=False, noncentered=False
    )


def test_a4_a16_searches_do_not_look_at_the_clock(clock: list[float]) -> None:
    start, found = Gaussian(torch.zeros(2).double(), torch.eye(2).double()), []
    for rate in (0.01, 1000.0):
        clock[0] = rate
        pyro.set_rng_seed(3)
        modes = find_modes(lambda z: -(z.square() - 4.0).square().sum(-1), start)
        found.append(torch.stack([gaussian.loc for _, gaussian in modes]))
    assert len(found[0]) == 4
    assert_close(found[1], found[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. .*do not trust:UserWarning")  # 60 steps are few
def test_a16_the_clock_decides_nothing(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["pyroflows.infer.starts.polish"], "BLOCK", 20)
    posteriors = []
    for rate in (0.01, 1000.0):
        clock[0] = rate
        posteriors.append(fitted())
    slow, fast = posteriors
    assert_close(fast.sample(50, seed=1), slow.sample(50, seed=1))
    assert fast.diagnostics.verdict == slow.diagnostics.verdict
    assert fast.history == slow.history


def test_work_is_that_of_the_operations() -> None:
    x = torch.ones(1000, 1000)
    one, two = work_of(lambda: x + 1), work_of(lambda: x + 1 + 1)
    assert two == pytest.approx(2 * one)
    assert work_of(lambda: x[0]) < work_of(lambda: x[0] + 1) < one < work_of(lambda: x @ x)
    assert work_of(lambda: x.expand(1000, 1000, 1000)) < one


def test_a_counted_density_is_paid_by_64_rows() -> None:
    target = Gaussian(torch.zeros(2), torch.eye(2))
    density = Counted(target.log_prob, target.loc)
    for rows, paid in ((1, 1), (64, 2), (65, 4)):
        assert_close(density(torch.ones(rows, 2)), target.log_prob(torch.ones(rows, 2)))
        assert density.done == pytest.approx(paid * density.price)
    assert Counted.of(density, target.loc) is density


@pytest.mark.parametrize(("left", "compiled"), [(10_000, True), (30, False)])
def test_a18_nothing_is_compiled_for_steps_that_never_come(
    monkeypatch: pytest.MonkeyPatch, left: int, compiled: bool
) -> None:
    given, told = torch.nn.Parameter(torch.ones(3)), []
    trainer = Trainer([given], lr=0.1)
    monkeypatch.setattr(trainer, "trace", lambda objective, compile: told.append(compile))
    monkeypatch.setattr(Trainer, "operations", 100)
    monkeypatch.setattr(speed, "work_of", lambda step: step() or 0.1)  # a step takes a second for 1000 operations
    monkeypatch.setattr(speed, "SETTLED", 60)
    speed_up = speed.SpeedUp(trainer, lambda: -((given + 0.1 * torch.randn(4, 3)) ** 2).sum(-1), 10_000, None, print)
    for _ in range(50):
        speed_up.step()
    trainer.safe.decay_over(left)
    for _ in range(60):
        speed_up.step()
    assert told == [False, *([True] if compiled else [])]
