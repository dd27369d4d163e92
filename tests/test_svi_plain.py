"""Where CompiledSVI steps as SVI does, and what it refuses or announces."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam
from torch import Tensor, nn

from elbo_cases import Y, by_hand, replayed, schools
from pyroflows import CompiledSVI, CompiledTrace_ELBO


def test_what_cannot_be_traced_steps_as_in_svi() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0), obs=torch.tensor(1.0))

    svi = CompiledSVI(model, AutoDelta(model), Adam({"lr": 0.1}), CompiledTrace_ELBO(compile=False))
    with pytest.warns(UserWarning, match="runs as plain Trace_ELBO") as caught:
        losses = svi.run(20)
    assert len(caught) == 1
    assert losses[-1] < losses[0]


def test_two_dtypes_step_as_in_svi() -> None:
    net = nn.Linear(1, 1)

    def model(y: Tensor) -> None:
        schools(y)
        pyro.factor("squared", -(pyro.param("double", torch.tensor(1.0).double()) ** 2).float())
        pyro.factor("net", -(pyro.module("net", net)(torch.ones(1)).sum() ** 2))

    svi = CompiledSVI(model, by_hand, Adam({"lr": 0.1}), CompiledTrace_ELBO(compile=False))
    with pytest.warns(UserWarning, match="differ in dtype or device"):
        svi.run(3, Y)
    assert pyro.param("double") < 0.8


def test_only_its_own_loss() -> None:
    with pytest.raises(TypeError, match="a CompiledTrace_ELBO as loss, got Trace_ELBO: use SVI"):
        CompiledSVI(schools, by_hand, Adam({}), Trace_ELBO())


def test_a_loss_that_is_nan_is_announced() -> None:
    def model() -> None:
        pyro.factor("nan", pyro.param("at", torch.tensor(-1.0)).sqrt())

    svi = CompiledSVI(model, lambda: None, Adam({"lr": 0.1}), replayed())
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="loss"):
        svi.step()
