"""Threads of torch: short work runs on one, long work on as many as help, and then there are as many as before."""

from collections.abc import Iterator
from contextlib import suppress

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyroflows import fit
from pyroflows.training import Batches, Epochs, Threads, threads


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


class Clock:
    """In the place of ``time``: steps take given seconds, by the number of threads; and notes that number."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.used = seconds, 0.0, []

    def perf_counter(self) -> float:
        return self.now

    def step(self) -> int:
        self.used.append(torch.get_num_threads())
        self.now += self.seconds[self.used[-1]]
        return len(self.used)


CASES = [
    ({1: 1.0, 2: 0.6}, [1] * 4 + [2] * 4, 2),
    ({1: 1.0, 2: 0.9}, [1] * 4 + [2] * 4, 1),
    ({1: 0.01, 2: 0.001}, [1] * 4, 1),
]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("seconds", "tried", "found"), CASES)
def test_more_than_one_must_gain(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], tried: list[int], found: int, at_once: bool
) -> None:
    clock = Clock(seconds)
    monkeypatch.setattr(threads, "time", clock)
    with Threads(clock.step if at_once else None) as choice:
        assert clock.used == (tried if at_once else [])
        values = [choice.run(clock.step) for _ in range(10)]
        assert torch.get_num_threads() == found
    assert values == [*range(values[0], values[0] + 10)]
    assert clock.used == tried + [found] * (len(clock.used) - len(tried))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("step", [None, lambda: 1 / 0])
def test_errors_leave_as_many_as_before(step: object) -> None:
    with suppress(ZeroDivisionError), Threads(step):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_one_thread_stays_one() -> None:
    torch.set_num_threads(1)
    with Threads(lambda: pytest.fail("there is nothing to choose")) as choice:
        assert choice.chosen
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("no_search")
def test_fit_runs_on_one_and_draws_the_same_numbers() -> None:
    seen: list[int] = []

    def model() -> None:
        seen.append(torch.get_num_threads())
        pyro.sample("x", dist.Normal(0.0, 1.0))

    found = []
    for count in (2, 1):
        torch.set_num_threads(count)
        pyro.set_rng_seed(0)
        found.append(fit(model, full_rank=None, steps=20, num_particles=8, progress=False).history.elbo)
        assert torch.get_num_threads() == count
    assert 1 in seen[: len(seen) // 2]
    assert found[0] == found[1]


def test_epochs_run_on_one() -> None:
    net, seen = nn.Linear(2, 1), []

    def loss(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return net(x).square().mean()

    Epochs(net, lr=0.01).run(loss, Batches([torch.randn(20, 2)], 5), 2, progress=False)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
