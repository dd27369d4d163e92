"""Threads of torch: short work runs on one, long work on as many as help, and then there are as many as before."""

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroflows import fit
from pyroflows.infer import enough_threads, threads

Z = torch.zeros(4, 3)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def density(z: Tensor) -> Tensor:
    return -(z.square() + 0 * torch.randn(())).sum(-1)


def test_short_work_runs_on_one() -> None:
    state = torch.get_rng_state()
    with enough_threads(density, Z):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("seconds", "found"), [((1.0, 0.6), 2), ((1.0, 0.9), 1), ((0.01,), 1)])
def test_more_than_one_must_gain(monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], found: int) -> None:
    given, used = iter(seconds), []

    def measured(call: object) -> float:
        used.append(torch.get_num_threads())
        return next(given)

    monkeypatch.setattr(threads, "_seconds", measured)
    with enough_threads(density, Z):
        assert torch.get_num_threads() == found
    assert used == [1, 2][: len(seconds)]


def test_errors_leave_as_many_as_before() -> None:
    with pytest.raises(ZeroDivisionError), enough_threads(density, Z):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_fit_runs_on_one() -> None:
    seen = []

    def model() -> None:
        seen.append(torch.get_num_threads())
        pyro.sample("x", dist.Normal(0.0, 1.0))

    fit(model, steps=20, num_particles=8, progress=False)
    assert seen[0] == 2
    assert 1 in seen
    assert torch.get_num_threads() == 2
