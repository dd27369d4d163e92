"""CompiledTrace_ELBO is never wrong: what changes is traced anew, what cannot be traced runs as plain Pyro."""

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoNormal,
)
from torch import _inductor, nn

from elbo_cases import SD, Y, assert_equal_to_plain, grads, replayed, schools
from pyroflows import CompiledTrace_ELBO
from pyroflows.compile import Untraceable
from pyroflows.compile.inductor import COMPARABLE, FOR_CPU
from pyroflows.svi import compiled_elbo


class Tempered:
    def __init__(self) -> None:
        self.power, self.data, self.dropout = 1.0, Y, nn.Dropout(0.5)

    def model(self) -> None:
        with poutine.scale(scale=self.power):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            pyro.sample("y", dist.Normal(mu, self.dropout(SD) + 1).to_event(1), obs=self.data)


def test_what_the_model_reaches_may_change() -> None:
    tempered, elbo = Tempered(), replayed()
    guide = AutoDelta(tempered.model)
    for change in ({"power": 0.5}, {"data": Y + 1}, {"dropout": tempered.dropout.eval()}):
        vars(tempered).update(change)
        assert_equal_to_plain(tempered.model, guide, elbo=elbo)
    tempered.data.add_(1)
    traces = elbo.traces
    assert_equal_to_plain(tempered.model, guide, elbo=elbo)
    assert elbo.traces == traces


def test_what_changes_at_every_step_falls_back() -> None:
    tempered, elbo = Tempered(), CompiledTrace_ELBO(compile=False)
    tempered.dropout.eval()
    guide = AutoDelta(tempered.model)

    def train() -> None:
        for power in range(1, 12):
            tempered.power = 1.0 / power
            assert_equal_to_plain(tempered.model, guide, elbo=elbo)

    with pytest.warns(UserWarning, match="power of Tempered changes again and again.*pass what changes as tensors"):
        train()


def branches() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0), obs=torch.tensor(1.0))


def poisson() -> None:
    pyro.sample("y", dist.Normal(pyro.sample("z", dist.Poisson(3.0)), 1.0), obs=torch.tensor(1.0))


def poisson_guide() -> None:
    pyro.sample("z", dist.Poisson(pyro.param("rate", torch.tensor(2.0))))


NORM = nn.BatchNorm1d(1)


def normalised() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(NORM(z), 1.0).to_event(2), obs=torch.ones(4, 1))


REFUSED = {
    "branch": (branches, AutoNormal(branches), "replace branches|data-dependent"),
    "discrete": (poisson, poisson_guide, "site 'z' of the guide is not reparameterised .Poisson."),
    "batch norm": (normalised, AutoNormal(normalised), "in place"),
}


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(("model", "guide", "why"), REFUSED.values(), ids=REFUSED)
def test_falls_back_with_one_warning(model: Callable, guide: Callable, why: str, num_particles: int) -> None:
    elbo = CompiledTrace_ELBO(num_particles, compile=False)
    plain = Trace_ELBO(num_particles)
    plain.loss(model, guide)
    with pytest.warns(UserWarning, match=f"runs as plain Trace_ELBO.*({why})") as caught:
        ours = [grads(elbo, model, guide) for _ in range(3)][-1]
    theirs = grads(plain, model, guide)
    assert len(caught) == 1
    assert ours[0] == theirs[0]
    torch.testing.assert_close(ours[1], theirs[1])
    with pytest.raises(Untraceable, match=why):
        replayed(num_particles).loss(model, guide)


def test_a_mode_is_one_that_the_compiler_knows() -> None:
    assert set(_inductor.list_mode_options()) <= set(compiled_elbo.MODES)
    with pytest.raises(ValueError, match=r"expected mode to be None or one of default, .*, got 'reduce'"):
        CompiledTrace_ELBO(mode="reduce")


def test_array_arguments_fall_back() -> None:
    def model(y: object) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=torch.as_tensor(y))

    with pytest.raises(Untraceable, match="argument of type ndarray may change unnoticed"):
        replayed().loss(model, AutoNormal(model), Y[0].numpy())


def test_step_within_a_handler_falls_back() -> None:
    with poutine.scale(scale=0.5), pytest.raises(Untraceable, match="inside ScaleMessenger"):
        replayed().loss(schools, AutoNormal(schools), Y)


def test_enumerated_site() -> None:
    def model() -> None:
        pyro.sample("z", dist.Categorical(torch.ones(3)))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match="expected no enumerated sites, got 'z'"), pyro.validation_enabled(False):
        CompiledTrace_ELBO(compile=False).loss(model, guide)


def test_expected_positive_numbers() -> None:
    with pytest.raises(ValueError, match="expected num_particles to be a whole number from 1 on, got 0"):
        CompiledTrace_ELBO(0)


def test_validation_stays_on_for_the_user() -> None:
    with pytest.raises(ValueError, match="invalid values"):
        replayed().loss(lambda: pyro.sample("x", dist.Normal(0.0, -1.0)), lambda: None)
    replayed().loss(schools, AutoNormal(schools), Y)
    with pytest.raises(ValueError, match="scale"):
        dist.Normal(0.0, -1.0)


def test_failing_compiler_leaves_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("torch._inductor.compile", fail)
    elbo, guide = CompiledTrace_ELBO(), AutoDelta(schools)
    with pytest.warns(UserWarning, match="replays its graph uncompiled.*no compiler here"):
        loss = elbo.loss(schools, guide, Y)
    with warnings.catch_warnings():
        assert elbo.loss(schools, guide, Y) == loss


def test_a_compiler_that_knows_less_is_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def older(module: torch.fx.GraphModule, examples: list, options: dict) -> Callable:
        asked.append(options)
        if options != COMPARABLE:
            raise RuntimeError("no such option")
        return module.forward

    monkeypatch.setattr("torch._inductor.compile", older)
    CompiledTrace_ELBO(strict=True).loss(schools, AutoDelta(schools), Y)
    assert asked == [FOR_CPU | COMPARABLE, COMPARABLE]
