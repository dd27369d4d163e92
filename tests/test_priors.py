"""FlowPrior where a normal prior stood: plates, contexts, guides, samplers, and as a likelihood."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, ReweightedWakeSleep, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor
from torch.testing import assert_close

from cases import SMALL, moved
from pyroflows import AutoFlow, CompiledTrace_ELBO, FlowPrior, flows

RECIPES = ["nice", "realnvp", "maf", "iaf", "nsf", "full_rank"]
REALNVP = partial(flows.realnvp, layers=2, **SMALL)


class Factors(PyroModule):
    """Rows that are sums of two latents with noise; the prior is any module that gives a distribution."""

    def __init__(self, prior: PyroModule) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, y: Tensor, context: Tensor | None = None) -> None:
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", self.prior(context))
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


@pytest.mark.parametrize(("name", "components"), [*((name, 1) for name in RECIPES), (RECIPES[0], 3)])
def test_trained_by_svi_together_with_the_guide(name: str, components: int) -> None:
    model, y = Factors(FlowPrior(2, getattr(flows, name), components=components)), 3 + torch.randn(20)
    before = copy.deepcopy(model.state_dict())
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    losses = [svi.step(y) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    learnt = [key for key, _ in model.named_parameters()]
    assert all(not torch.equal(before[key], model.state_dict()[key]) for key in learnt)
    assert {f"prior.{key}" for key, _ in model.prior.named_parameters()} == set(learnt)


def test_starts_as_the_normal_prior() -> None:
    assert_close(FlowPrior(3)().log_prob(torch.ones(3)), dist.Normal(0.0, 1.0).log_prob(torch.ones(3)).sum())


def test_shapes_and_support() -> None:
    for components in (1, 4):
        prior = FlowPrior(3, REALNVP, components=components)()
        assert prior.expand([5]).sample((2,)).shape == (2, 5, 3)
        assert prior.mask(False).log_prob(torch.ones(3)) == 0
        assert prior.support is dist.constraints.real_vector


def test_mixture_integrates_to_one_and_samples_what_it_scores() -> None:
    prior = moved(FlowPrior(1, flows.nsf, components=3)).double()
    y = torch.linspace(-60, 60, 40001, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        mass = prior().log_prob(y).exp() * 120 / 40000
        assert_close(mass.sum().item(), 1.0, rtol=0, atol=1e-3)
        mean, draws = (mass * y[:, 0]).sum(), prior().sample((20000,))
        sd = ((mass * y[:, 0] ** 2).sum() - mean**2).sqrt()
    assert abs(draws.mean() - mean) < 5 * sd / 20000**0.5


def test_classes_as_context() -> None:
    prior = FlowPrior(2, REALNVP, context_dim=2)
    labels = torch.eye(2)[torch.arange(200) % 2]
    values = 3 * (2 * labels[:, :1] - 1) + 0.3 * torch.randn(200, 2)

    def model() -> None:
        pyro.module("prior", prior)
        with pyro.plate("rows", 200):
            pyro.sample("z", prior(labels), obs=values)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(150):  # a fixed tensor, many steps
        svi.step()
    means = [prior(torch.eye(2)[k]).sample((500,)).mean().item() for k in (0, 1)]
    assert_close(means, [3.0, -3.0], rtol=0, atol=0.5)


def test_names_keep_two_priors_apart() -> None:
    priors = [FlowPrior(2, REALNVP, name=name) for name in ("first", "second")]

    def model() -> None:
        for index, prior in enumerate(priors):
            pyro.sample(f"z{index}", prior(), obs=torch.tensor([3.0, -3.0]) * (1 - 2 * index))

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(50):
        svi.step()
    assert {name.split(".")[0] for name in pyro.get_param_store()} == {"first", "second"}
    assert priors[0]().sample((100,))[:, 0].mean() > 0 > priors[1]().sample((100,))[:, 0].mean()


@pytest.mark.parametrize("components", [1, 2])
def test_under_nuts(components: int) -> None:
    model = Factors(moved(FlowPrior(2, REALNVP, components=components), by=0.2)).requires_grad_(False).eval()
    mcmc = MCMC(NUTS(model, max_tree_depth=4), num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run(torch.ones(3))
    z = mcmc.get_samples()["z"]
    assert z.shape == (10, 3, 2)
    assert z.isfinite().all()
    assert len(z[:, 0].unique(dim=0)) > 5


@pytest.mark.parametrize("components", [1, 2])
def test_under_a_flow_guide_and_the_compiled_elbo(components: int) -> None:
    model, y = Factors(FlowPrior(2, REALNVP, components=components)), torch.full((4,), 2.0)
    elbo = CompiledTrace_ELBO(num_particles=4, compile=False, strict=True)
    svi = SVI(model, AutoFlow(model, REALNVP), pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step(y) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_reweighted_wake_sleep() -> None:
    model, y = Factors(FlowPrior(2, REALNVP)), torch.full((4,), 2.0)
    guide = AutoFlow(model, REALNVP).setup(y)
    elbo = ReweightedWakeSleep(num_particles=4, vectorize_particles=False, model_has_params=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.04}), elbo)
    losses = torch.tensor([svi.step(y) for _ in range(30)])
    assert losses.isfinite().all()
    assert losses[-10:, 0].mean() < losses[:10, 0].mean()


def test_predictive_copy_and_pickle() -> None:
    model = Factors(moved(FlowPrior(2, REALNVP, components=2)))
    assert Predictive(model, num_samples=6)(torch.zeros(3))["z"].shape == (6, 3, 2)
    z = torch.randn(5, 2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(twin.prior().log_prob(z), model.prior().log_prob(z))


@pytest.mark.parametrize("components", [1, 3])
def test_a_lower_temperature_draws_nearer_to_the_centre(components: int) -> None:
    prior = FlowPrior(2, REALNVP, components=components)
    cold, warm = (prior(temperature=t).sample((4000,)) for t in (1e-3, 1.0))
    if components == 1:
        assert_close(prior(temperature=0.5).sample((4000,)).std(0), torch.full((2,), 0.5), rtol=0.1, atol=0)
        assert cold.abs().max() < 0.01
    else:
        gaps = (cold.unsqueeze(1) - prior.loc).norm(dim=-1).min(1).values
        assert gaps.max() < 0.01
    assert cold.var(0).sum() < warm.var(0).sum()


def test_in_double_precision() -> None:
    prior = FlowPrior(2, REALNVP, components=2).double()
    assert prior().log_prob(prior().sample((3,))).dtype == torch.float64


WRONG = {
    "components": (lambda: FlowPrior(2, components=0), "FlowPrior expected components >= 1, got 0"),
    "temperature": (lambda: FlowPrior(2)(temperature=0.0), "expected a temperature above 0, got 0.0"),
    "size": (lambda: FlowPrior(3, lambda d: REALNVP(2)), "a flow with input_dim=3 .* got input_dim=2"),
    "context": (lambda: FlowPrior(3, lambda d, c: REALNVP(d), 2), "context_dim=2, got input_dim=3 and context_dim=0"),
    "no_context": (lambda: FlowPrior(3, REALNVP, 2)(), r"expected a context of shape \(..., 2\), got none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_makes_no_transform() -> None:
    with pytest.raises(TypeError, match=r"a flow that is a recipe, such as pyroflows\.flows\.nsf, got 'nsf'"):
        FlowPrior(2, "nsf")
    with pytest.raises(TypeError, match="a flow that makes a FlowTransform of input_dim, got Linear from"):
        FlowPrior(2, lambda d: torch.nn.Linear(d, d))
