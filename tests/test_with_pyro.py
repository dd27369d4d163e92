"""Flows where Pyro takes a distribution: priors, likelihoods, plates, modules, samplers and guides."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor
from torch.testing import assert_close

from cases import SMALL, moved
from pyroflows import flows
from pyroflows.distributions import FlowDistribution
from pyroflows.transforms import FlowTransform

RECIPES = ["realnvp", "maf", "iaf", "nsf", "full_rank"]


def build(name: str, input_dim: int = 2, context_dim: int = 0) -> FlowTransform:
    return moved(getattr(flows, name)(input_dim, context_dim, **SMALL), by=0.2)


def steps(svi: SVI, count: int, *args: object) -> list[float]:
    return [svi.step(*args) for _ in range(count)]


@pytest.mark.parametrize("name", ["maf", "iaf", "nsf"])
def test_prior_under_nuts(name: str) -> None:
    density = FlowDistribution(transform=build(name).requires_grad_(False))

    def model() -> None:
        z = pyro.sample("z", density)
        pyro.sample("y", dist.Normal(z.sum(), 0.5), obs=torch.tensor(1.0))

    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=8, warmup_steps=6, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["z"]
    assert z.shape == (8, 2)
    assert z.isfinite().all()
    assert len(z.unique(dim=0)) > 4


@pytest.mark.parametrize("name", RECIPES)
def test_prior_under_a_mean_field_guide(name: str) -> None:
    flow = build(name)

    def model(y: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", FlowDistribution(transform=flow))
            pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=y)

    y, before = 3 + torch.randn(10), [p.detach().clone() for p in flow.parameters()]
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = steps(svi, 25, y)
    assert sum(losses[-8:]) < sum(losses[:8])
    assert all(not torch.equal(a, p) for a, p in zip(before, flow.parameters(), strict=True))


@pytest.mark.parametrize(("name", "conditional"), [*((name, True) for name in RECIPES), ("nsf", False)])
def test_likelihood_of_a_fixed_tensor(name: str, conditional: bool) -> None:
    flow, data, context = build(name, 2, int(conditional)), 2 + 0.3 * torch.randn(50, 2), torch.randn(50, 1)

    def model() -> None:
        pyro.module("flow", flow)
        with pyro.plate("rows", 50):
            transform = flow.condition(context) if conditional else flow
            pyro.sample("x", FlowDistribution(transform=transform), obs=data)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = steps(svi, 16)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("vectorize", [False, True])
def test_guide_in_a_plate(elbo: Callable, vectorize: bool) -> None:
    flow, data = build("iaf", 2, 1), torch.tensor([-3.0, 0.0, 3.0])

    def model() -> None:
        with pyro.plate("rows", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.sum(-1), 0.1), obs=data)

    def guide() -> None:
        pyro.module("flow", flow)
        with pyro.plate("rows", 3):
            pyro.sample("z", FlowDistribution(transform=flow.condition(data.unsqueeze(-1))))

    loss = elbo(num_particles=4, vectorize_particles=vectorize, max_plate_nesting=1)
    losses = steps(SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), loss), 25)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_step_of_svi_runs_the_guide_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, calls = build("iaf"), []
    run = flow._map
    monkeypatch.setattr(flow, "_map", lambda *args: calls.append(args) or run(*args))

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide() -> None:
        pyro.module("flow", flow)
        pyro.sample("z", FlowDistribution(transform=flow))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    steps(svi, 3)
    assert len(calls) == 3


def test_reweighted_wake_sleep() -> None:
    flow = build("nsf")
    target = dist.Normal(torch.full((2,), 2.0), 0.5).to_event(1)

    def model() -> None:
        pyro.sample("z", target)

    def guide() -> None:
        pyro.module("flow", flow)
        pyro.sample("z", FlowDistribution(transform=flow))

    loss = ReweightedWakeSleep(num_particles=4, vectorize_particles=False, insomnia=1.0)
    pyro.set_rng_seed(1)
    loss.loss_and_grads(model, guide)
    found = [p.grad for p in flow.parameters()]
    flow.zero_grad()
    pyro.set_rng_seed(1)
    density = FlowDistribution(transform=flow)
    z = torch.stack([density.sample() for _ in range(4)])
    log_q = density.log_prob(z)
    weights = (target.log_prob(z) - log_q).softmax(0).detach()
    (-weights * log_q).sum().backward()
    assert_close(found, [p.grad for p in flow.parameters()], rtol=1e-3, atol=1e-5)
    assert sum(gradient.abs().sum() for gradient in found) > 0.1


@pytest.mark.parametrize("put", [lambda flow: flow, lambda flow: flow.inv, lambda flow: flow.condition(torch.ones(1))])
def test_a_module_registers_what_it_holds(put: Callable[[FlowTransform], FlowTransform]) -> None:
    flow = build("realnvp", 2, 1)

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = put(flow)

    assert {id(p) for p in Model().parameters()} == {id(p) for p in flow.parameters()}
    pyro.module("model", Model())
    assert len(pyro.get_param_store()) == len(list(flow.parameters()))


def test_predictive_draws_from_a_flow() -> None:
    density = FlowDistribution(transform=build("nsf"))

    def model() -> None:
        with pyro.plate("rows", 3):
            pyro.sample("z", density)

    for parallel in (False, True):
        z = Predictive(model, num_samples=5, parallel=parallel)()["z"]
        assert z.shape == (5, 3, 2)
        assert len(z.reshape(-1, 2).unique(dim=0)) == 15


def test_a_seed_fixes_a_run() -> None:
    def run() -> Tensor:
        pyro.set_rng_seed(7)
        return pyro.sample("z", FlowDistribution(transform=build("nsf")).expand((4,)))

    assert_close(run(), run(), rtol=0, atol=0)
