"""The ways to run a fit's steps: the same numbers plain and traced, and what is chosen when."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import pyroflows
from pyroflows import flows
from pyroflows.compile import Untraceable
from pyroflows.training import SpeedUp, Trainer, speed

few_steps = pytest.mark.filterwarnings("ignore:fit. .*do not trust:UserWarning")
pytestmark = [few_steps, pytest.mark.usefixtures("no_search")]
# The stage of the flow alone, whose steps are what is run in several ways.
FLOW = partial(flows.realnvp, layers=2, hidden_dims=(8,))
brief = partial(pyroflows.fit, flow=FLOW, start=None, full_rank=None, progress=False)


def regression(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(x), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(slope * x[rows], noise), obs=y[rows])


def branching(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = 1.0 if mean > 0 else 2.0
    pyro.sample("y", dist.Normal(mean, scale), obs=y)


def fitted(steps: int = 40, **options: object) -> pyroflows.Posterior:
    pyro.set_rng_seed(0)
    x = torch.linspace(-1, 1, 10)
    return brief(regression, x, 2 * x, steps=steps, num_particles=4, **options)


def noisy(given: nn.Parameter) -> Tensor:
    return -((given + 0.1 * torch.randn(6, 3)) ** 2).sum(-1)


def test_a_traced_fit_is_the_plain_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fitted(compile=False)
    monkeypatch.setattr(speed, "TRACE_FROM", 0.0)
    traced = fitted()
    assert (plain.history.speed, traced.history.speed) == ("plain", "traced")
    assert_close(torch.tensor(traced.history.elbo), torch.tensor(plain.history.elbo), rtol=1e-4, atol=1e-4)


def test_short_fits_stay_plain() -> None:
    assert fitted(steps=30).history.speed == "plain"


@pytest.mark.filterwarnings("ignore:fit. .*a step, which training cannot see")  # where it branches
@pytest.mark.slow
def test_what_cannot_be_traced_stays_plain_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "TRACE_FROM", 0.0)
    with pytest.warns(UserWarning, match="one by one"):
        posterior = brief(branching, torch.tensor(1.0), steps=30, num_particles=4)
    assert posterior.history.speed.startswith("plain, as it cannot be traced: ")


def test_a_compiler_that_fails_leaves_the_traced_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(pyroflows.compile.Graph, "compile", no_compiler)
    history = fitted(compile=True).history
    assert history.speed == "traced, as it cannot be compiled: OSError"
    assert len(history.elbo) == 40


@pytest.mark.parametrize(
    ("to_come", "operations", "asked", "chosen"),
    [
        (1e9, 1000, None, [False, True]),
        (1000.0, 1000, None, [False, True]),
        (1000.0, 6000, None, [False]),  # the compiler would take longer
        (20.0, 1000, None, [False]),
        (0.1, 1000, None, []),
        (1e9, 1000, False, []),
        (0.1, 1000, True, [True]),
    ],
)
def test_the_choice_follows_the_seconds_to_come(
    monkeypatch: pytest.MonkeyPatch, to_come: float, operations: int, asked: bool | None, chosen: list[bool]
) -> None:
    given, told = nn.Parameter(torch.ones(3)), []
    trainer = Trainer([given], lr=0.1)
    monkeypatch.setattr(trainer, "trace", lambda objective, compile: told.append(compile))
    monkeypatch.setattr(Trainer, "operations", operations)
    monkeypatch.setattr(speed, "work_of", lambda step: step() or to_come / 85)
    monkeypatch.setattr(speed, "SETTLED", 20)
    speed_up = SpeedUp(trainer, lambda: noisy(given), 100, asked, lambda text: None)
    for _ in range(30):
        speed_up.step()
    assert told == chosen


def test_a_graph_goes_on_after_a_restart() -> None:
    given = nn.Parameter(torch.ones(3))
    trainer = Trainer([given], lr=0.1, warmup=1, average=0.0)
    trainer.trace(lambda: noisy(given))
    for _ in range(2):
        for _ in range(60):
            trainer.step(lambda: pytest.fail("the graph is replayed"))
        assert given.abs().max() < 0.5
        with torch.no_grad():
            given.fill_(1.0)
        trainer.restart(lr=0.1)
    trainer.finish()


def test_parameters_of_two_dtypes_are_not_traced() -> None:
    trainer = Trainer([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())], lr=0.1)
    with pytest.raises(Untraceable, match="differ in dtype or device"):
        trainer.trace(lambda: torch.zeros(2))


@pytest.mark.slow
def test_a_compiled_fit_finds_the_same() -> None:
    posterior = fitted(steps=600, compile=True)
    assert posterior.history.speed == "compiled"
    plain = fitted(steps=600, compile=False)
    for name, mean in posterior.guide.mean().items():
        assert_close(mean, plain.guide.mean()[name], rtol=0.0, atol=0.1)
