"""AutoFlow wherever Pyro takes a guide: every ELBO, plates, enumeration, Predictive, NeuTra, lists of guides."""

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor
from torch.testing import assert_close

from cases import moved
from pyroflows import AutoFlow, flows, log_joint

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(8,))
RECIPES = {
    "realnvp": SMALL,
    "iaf": partial(flows.iaf, layers=2, hidden_dims=(8,)),
    "nsf": partial(flows.nsf, layers=2, hidden_dims=(8,)),
    "full_rank": flows.full_rank,
}
Y = torch.tensor([[1.0, -0.5], [0.3, 2.0], [0.0, 0.7]])
jit = pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # what Pyro's Jit ELBOs call


def schools(y: Tensor) -> None:
    """Latents outside, inside one and inside two plates, one of them a vector."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("columns", 2, dim=-1):
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 3, dim=-2):
            w = pyro.sample("w", dist.Dirichlet(torch.ones(4)))
            pyro.sample("y", dist.Normal(mu + w[..., 0], tau), obs=y)


def ready(model: Callable = schools, recipe: Callable = SMALL, by: float = 0.1) -> AutoFlow:
    """A guide that is set up on ``Y`` and moved away from where it starts."""
    guide = AutoFlow(model, recipe).setup(Y)
    moved(guide.transform, by=by)
    return guide


def losses(elbo: ELBO, guide: AutoFlow, model: Callable = schools, steps: int = 3) -> list[float]:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    return [svi.step(Y) for _ in range(steps)]


VECTORIZED = {"num_particles": 4, "vectorize_particles": True}
ELBOS = {
    "trace": Trace_ELBO,
    "trace_vectorized": partial(Trace_ELBO, **VECTORIZED),
    "graph": TraceGraph_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "mean_field_vectorized": partial(TraceMeanField_ELBO, **VECTORIZED),
    "renyi": partial(RenyiELBO, alpha=0.5, num_particles=3),
    "renyi_vectorized": partial(RenyiELBO, alpha=0.5, **VECTORIZED),
    "jit": partial(JitTrace_ELBO, ignore_jit_warnings=True),
    "jit_vectorized": partial(JitTrace_ELBO, ignore_jit_warnings=True, **VECTORIZED),
    "jit_mean_field": partial(JitTraceMeanField_ELBO, ignore_jit_warnings=True),
}


def rare(elbo: str, recipe: str) -> bool:
    """Two losses with each recipe, the others with one; that the jit computes the same is tested with each."""
    return not elbo.startswith("trace") and recipe != "realnvp"


EACH = [(elbo, recipe) for recipe in RECIPES for elbo in ELBOS]


@jit
@pytest.mark.parametrize(
    ("elbo", "recipe"),
    [pytest.param(ELBOS[e], RECIPES[r], id=f"{e}-{r}", marks=[pytest.mark.slow] * rare(e, r)) for e, r in EACH],
)
def test_svi_takes_every_elbo(elbo: Callable[[], ELBO], recipe: Callable) -> None:
    guide = AutoFlow(schools, recipe)
    assert all(math.isfinite(loss) for loss in losses(elbo(), guide))
    fresh = AutoFlow(schools, recipe).setup(Y)
    changed = [not torch.equal(p, q) for p, q in zip(guide.parameters(), fresh.parameters(), strict=True)]
    assert any(changed)
    assert all(p.isfinite().all() for p in guide.parameters())


@jit
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_jit_computes_what_the_plain_elbo_does(recipe: Callable) -> None:
    guide, found = ready(recipe=recipe), []
    for elbo in (Trace_ELBO(**VECTORIZED), JitTrace_ELBO(ignore_jit_warnings=True, **VECTORIZED)):
        elbo.loss_and_grads(schools, guide, Y)  # compiles
        guide.zero_grad()
        pyro.set_rng_seed(3)
        loss = elbo.loss_and_grads(schools, guide, Y)
        found.append([torch.tensor(loss), *(p.grad.clone() for p in guide.parameters())])
    for plain, compiled in zip(*found, strict=True):
        assert_close(compiled, plain, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_elbo_counts_every_site_once(recipe: Callable) -> None:
    guide = ready(recipe=recipe)
    pyro.set_rng_seed(3)
    loss = Trace_ELBO().loss(schools, guide, Y)
    pyro.set_rng_seed(3)
    values = {name: v.detach() for name, v in guide(Y).items()}
    model = poutine.trace(poutine.condition(schools, values)).get_trace(Y)
    assert loss == pytest.approx((guide.log_prob(values) - model.log_prob_sum()).item(), rel=1e-4)


def test_reweighted_wake_sleep() -> None:
    elbo = ReweightedWakeSleep(num_particles=3, insomnia=1.0, model_has_params=False)
    guide = ready()
    before = [p.detach().clone() for p in guide.parameters()]
    wake, sleep = losses(elbo, guide)[-1]
    assert math.isfinite(wake)
    assert math.isfinite(sleep)
    assert not any(map(torch.equal, before, guide.parameters()))


def test_vectorized_particles_are_independent() -> None:
    guide = ready()
    elbo = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=2)
    vectorized = [elbo.loss(schools, guide, Y) for _ in range(4)]
    rows = torch.tensor([Trace_ELBO().loss(schools, guide, Y) for _ in range(100)])
    error = rows.std().item() / math.sqrt(100)
    assert sum(vectorized) / 4 == pytest.approx(rows.mean().item(), abs=4 * error)


@pytest.mark.parametrize(
    "elbo", [TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(max_plate_nesting=1, **VECTORIZED)]
)
def test_discrete_sites_are_summed_out(elbo: ELBO) -> None:
    def mixture(y: Tensor) -> None:
        heavy = pyro.sample("heavy", dist.Beta(2.0, 1.0))
        low, high = pyro.sample("low", dist.Normal(-1.0, 1.0)), pyro.sample("high", dist.Normal(1.0, 1.0))
        with pyro.plate("data", y.numel()):
            kind = pyro.sample("kind", dist.Bernoulli(heavy), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(torch.where(kind > 0, high, low), 0.5), obs=y.flatten())

    guide = AutoFlow(poutine.block(mixture, hide=["kind"]), SMALL)
    assert all(math.isfinite(loss) for loss in losses(elbo, guide, mixture))
    assert list(guide.median()) == ["heavy", "low", "high"]
    pyro.set_rng_seed(3)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(mixture, guide, Y)
    pyro.set_rng_seed(3)
    v = {name: value.detach() for name, value in guide(Y).items()}
    logits = torch.stack([(1 - v["heavy"]).log(), v["heavy"].log()])
    locs = torch.stack([v["low"], v["high"]])
    terms = logits + dist.Normal(locs, 0.5).log_prob(Y.reshape(-1, 1))
    prior = dist.Beta(2.0, 1.0).log_prob(v["heavy"]) + dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(locs).sum()
    expected = guide.log_prob(v) - terms.logsumexp(-1).sum() - prior
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_a_minibatch_of_observations_is_scaled() -> None:
    def model(y: Tensor, size: int) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=size) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    y, guide, found = torch.full((30,), 0.7), AutoFlow(model, SMALL).setup(torch.ones(30), 3), []
    for size in (3, 30):
        pyro.set_rng_seed(3)
        found.append(Trace_ELBO().loss(model, guide, y, size))
    pyro.set_rng_seed(3)
    mu = guide(y, 3)["mu"].detach()
    log_p = dist.Normal(0.0, 1.0).log_prob(mu) + 30 * dist.Normal(mu, 1.0).log_prob(y[0])
    assert found == pytest.approx(2 * [(guide.log_prob({"mu": mu}) - log_p).item()], rel=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_the_posterior_and_new_data(parallel: bool) -> None:
    guide = ready()
    draws = Predictive(schools, guide=guide, num_samples=300, parallel=parallel)(None)
    assert {name: tuple(v.squeeze().shape) for name, v in draws.items()} == {
        "mu": (300,),
        "tau": (300, 2),
        "w": (300, 3, 2, 4),
        "y": (300, 3, 2),
    }
    assert draws["mu"].unique().numel() == 300
    expected = guide.mean()["w"]
    assert_close(draws["w"].squeeze().mean(0), expected, atol=0.03, rtol=0.0)


def test_neutra_is_the_same_model_in_other_coordinates() -> None:
    guide = ready()
    z = torch.randn(guide.latent_dim)
    model = NeuTraReparam(guide).reparam(schools)
    trace = poutine.trace(poutine.condition(model, {"mu_shared_latent": z})).get_trace(Y)
    x, ladj = guide.transform.call_and_ladj(z)
    assert_close(trace.log_prob_sum(), log_joint(schools, Y)(x) + ladj, rtol=1e-4, atol=1e-3)
    assert_close(trace.nodes["tau"]["value"], guide.space.constrain(x)[0]["tau"])


def test_nuts_in_neutra_coordinates_samples_the_posterior() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", y.numel()):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y.flatten())

    neutra = NeuTraReparam(ready(model))
    mcmc = MCMC(NUTS(neutra.reparam(model)), num_samples=120, warmup_steps=30, disable_progbar=True)
    mcmc.run(Y)
    mu = neutra.transform_sample(mcmc.get_samples()["mu_shared_latent"])["mu"]
    precision = 0.25 + Y.numel()
    assert mu.mean().item() == pytest.approx(Y.sum().item() / precision, abs=0.12)
    assert mu.std().item() == pytest.approx(precision**-0.5, rel=0.3)


def test_a_list_of_guides() -> None:
    guide = AutoGuideList(schools)
    guide.append(AutoFlow(poutine.block(schools, hide=["tau"]), SMALL))
    guide.append(AutoNormal(poutine.block(schools, expose=["tau"])))
    assert all(math.isfinite(loss) for loss in losses(Trace_ELBO(**VECTORIZED), guide))
    assert {name: tuple(v.shape) for name, v in guide.median(Y).items()} == {"mu": (), "w": (3, 2, 4), "tau": (2,)}
    low, high = guide.quantiles([0.1, 0.9], Y)["w"]
    assert (low < high).all()


def test_two_flows_share_a_model() -> None:
    guide = AutoGuideList(schools)
    guide.append(AutoFlow(poutine.block(schools, expose=["mu", "tau"]), SMALL))
    guide.append(AutoFlow(poutine.block(schools, expose=["w"]), RECIPES["iaf"]))
    assert all(math.isfinite(loss) for loss in losses(Trace_ELBO(), guide))
    assert [part.latent_dim for part in guide] == [3, 18]


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=[pytest.mark.slow] * (name in ("realnvp", "nsf"))) for name, recipe in RECIPES.items()],
    ids=RECIPES,
)
def test_plain_svi_recovers_a_conjugate_posterior(recipe: Callable) -> None:
    x = torch.linspace(-1.0, 2.0, 8)
    design, sd = torch.stack([torch.ones(8), x], dim=-1), 0.5
    y = 1.0 + 2.0 * x + 0.3 * torch.sin(5 * x)

    def regression() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 8):
            pyro.sample("y", dist.Normal(beta[..., 0] + beta[..., 1] * x, sd), obs=y)

    guide = AutoFlow(regression, recipe, init_scale=0.3)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.06, "lrd": 0.01 ** (1 / 450)})
    svi = SVI(regression, guide, optimizer, Trace_ELBO(num_particles=64, vectorize_particles=True))
    for _ in range(450):
        svi.step()
    covariance = torch.linalg.inv(torch.eye(2) + design.T @ design / sd**2)
    mean = covariance @ design.T @ y / sd**2
    draws = guide.sample(20_000, seed=0)["beta"]
    sds = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 0.15 * sds).all()
    assert_close(draws.std(0), sds, rtol=0.1, atol=0.0)
    assert_close(draws.T.corrcoef()[0, 1], covariance[0, 1] / sds.prod(), atol=0.08, rtol=0.0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_default_flow_stays_finite_in_a_plain_loop(seed: int) -> None:
    sd = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def eight_schools(y: Tensor) -> None:
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sd), obs=y)

    pyro.set_rng_seed(seed)
    elbo = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(eight_schools, AutoFlow(eight_schools), pyro.optim.ClippedAdam({"lr": 5e-3}), elbo)
    losses = [svi.step(torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])) for _ in range(100)]
    assert max(losses) < 1e4
    assert sum(losses[-20:]) / 20 < 45
