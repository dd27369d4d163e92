"""CompiledTrace_ELBO takes what Trace_ELBO takes."""

import inspect
import math
from contextvars import ContextVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Normal

from pyroflows import CompiledTrace_ELBO

RUNS = []


def branching(y: torch.Tensor) -> None:
    RUNS.append(1)
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    if bool((loc > 1e9).any()):  # a branch on a value cannot be traced
        raise ValueError
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def test_f6_the_same_arguments_in_the_same_order() -> None:
    theirs, ours = (
        list(inspect.signature(kind.__init__).parameters.values()) for kind in (Trace_ELBO, CompiledTrace_ELBO)
    )
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    given = (4, 1, None, True, False, True, {"check_trace": True}, True, -0.5)
    plain, made = Trace_ELBO(*given), CompiledTrace_ELBO(*given)
    assert {name: vars(made)[name] for name in vars(plain)} == vars(plain)


@pytest.mark.parametrize(("vectorised", "runs"), [(True, 1), (False, 5)])
@pytest.mark.parametrize("nesting", [1, math.inf])
def test_f6_particles_of_plain_steps_are_one_batch(vectorised: bool, runs: int, nesting: float) -> None:
    guide = AutoNormal(branching)
    elbo = CompiledTrace_ELBO(5, nesting, vectorize_particles=vectorised, compile=False)
    svi, y = SVI(branching, guide, pyro.optim.Adam({"lr": 0.1}), elbo), torch.ones(3)
    with pytest.warns(UserWarning, match="runs as plain Trace_ELBO"):
        svi.step(y)
    RUNS.clear()
    svi.step(y)
    assert len(RUNS) == runs


def test_f6_retain_graph_keeps_the_graph_of_the_arguments() -> None:
    def model(y: torch.Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("loc", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def guide(y: torch.Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("at", torch.tensor(0.0)), 1.0))

    found = []
    for elbo in (Trace_ELBO(retain_graph=True), CompiledTrace_ELBO(retain_graph=True, compile=False)):
        weight = torch.tensor(2.0, requires_grad=True)
        y = weight.exp()  # whose graph holds what it saved
        pyro.set_rng_seed(0)
        elbo.loss_and_grads(model, guide, y)
        elbo.loss_and_grads(model, guide, y)
        found.append(weight.grad)
    torch.testing.assert_close(*found)


SPREAD = ContextVar("spread", default=1.0)


def test_retrace_forgets_the_graphs() -> None:
    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Delta(torch.tensor(0.0)))
        pyro.sample("y", dist.Normal(loc, SPREAD.get()), obs=y)

    elbo, y = CompiledTrace_ELBO(compile=False, strict=True), torch.tensor(3.0)

    def guide(y: torch.Tensor) -> None:
        pyro.sample("loc", dist.Delta(torch.tensor(0.0)))

    def loss() -> float:
        return elbo.loss(model, guide, y)

    first, token = loss(), SPREAD.set(3.0)
    elbo.retrace()
    changed = loss()
    SPREAD.reset(token)
    assert changed == pytest.approx(Normal(0.0, 3.0).log_prob(y).neg().item())
    assert first == pytest.approx(Normal(0.0, 1.0).log_prob(y).neg().item())
    assert elbo.traces == 2
