"""AutoFlow by itself: where it starts, known answers, seeds, state, and what it refuses."""

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_mean, init_to_value
from torch import Tensor
from torch.testing import assert_close

from cases import moved
from pyroflows import AutoFlow, flows
from pyroflows.guides import auto_flow
from pyroflows.transforms import Affine, LowerTriangular

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(8,))
RECIPES = {name: partial(getattr(flows, name), hidden_dims=(8,)) for name in ("realnvp", "iaf", "maf", "nsf")}


def scale() -> None:
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))


def vector(size: int = 3) -> None:
    pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))


def hierarchy(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("columns", 2, dim=-1):
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 3, dim=-2):
            pyro.sample("w", dist.Dirichlet(torch.ones(3)))
            pyro.sample("y", dist.Normal(mu, tau), obs=y)


Y = torch.ones(3, 2)


def started_at(model: Callable, values: dict[str, Tensor], **options: object) -> AutoFlow:
    return AutoFlow(model, SMALL, init_loc_fn=init_to_value(values=values), **options).setup()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_starts_as_an_independent_normal(recipe: Callable) -> None:
    start, sds = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, 3.0, 1.0])
    guide = AutoFlow(vector, recipe, init_loc_fn=init_to_value(values={"x": start}), init_scale=sds).setup()
    x = start + torch.randn(7, 3)
    assert_close(guide.log_prob({"x": x}), dist.Normal(start, sds).to_event(1).log_prob(x))
    assert_close(guide.sd()["x"], sds, rtol=0.05, atol=0.0)


def test_starts_at_the_median_of_the_prior() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.full((200,), 50.0), 0.1))

    found = AutoFlow(model, SMALL, init_scale=1e-3).setup().median()["x"]
    assert_close(found, torch.full((200,), 50.0), atol=0.12, rtol=0.0)
    assert found.std() < 0.05


def test_starts_where_it_is_told() -> None:
    guide = AutoFlow(scale, SMALL, init_loc_fn=init_to_mean, init_scale=1e-4).setup()
    assert_close(guide.median()["scale"], torch.tensor(math.exp(0.5)), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("support", [constraints.real_vector, constraints.simplex, constraints.ordered_vector])
def test_a_prior_that_cannot_be_sampled_starts_at_the_origin(support: constraints.Constraint) -> None:
    def model() -> None:
        pyro.sample("x", dist.ImproperUniform(support, (), (3,)))

    guide = AutoFlow(model, SMALL).setup()
    origin = torch.distributions.biject_to(support)(torch.zeros(guide.latent_dim))
    assert_close(guide.median(num_samples=20_000)["x"], origin, atol=0.02, rtol=0.0)


def test_answers_about_a_scale_are_known() -> None:
    guide = started_at(scale, {"scale": torch.tensor(2.0)}, init_scale=0.5)
    exact = dist.LogNormal(math.log(2.0), 0.5)
    x = torch.linspace(0.3, 6.0, 9)
    assert_close(guide.log_prob({"scale": x}), exact.log_prob(x))
    wanted = exact.base_dist.icdf(torch.tensor([0.1, 0.5, 0.9])).exp()
    assert_close(guide.quantiles([0.1, 0.5, 0.9], num_samples=40_000)["scale"], wanted, rtol=0.02, atol=0.0)
    assert_close(guide.median(num_samples=40_000)["scale"], wanted[1], rtol=0.02, atol=0.0)
    assert_close(guide.mean(num_samples=40_000)["scale"], exact.mean, rtol=0.02, atol=0.0)
    assert_close(guide.sd(num_samples=40_000)["scale"], exact.stddev, rtol=0.05, atol=0.0)
    entropy = math.log(2.0) + 0.5 * math.log(2 * math.pi * math.e * 0.25)
    assert guide.entropy(num_samples=40_000).item() == pytest.approx(entropy, abs=0.01)


def test_answers_have_the_shapes_of_the_sites() -> None:
    guide = AutoFlow(hierarchy, SMALL).setup(Y)
    shapes = {"mu": (), "tau": (2,), "w": (3, 2, 3)}
    for answer in (guide.median(), guide.mean(), guide.sd()):
        assert {name: tuple(v.shape) for name, v in answer.items()} == shapes
        assert not any(v.requires_grad for v in answer.values())
    for name, value in guide.quantiles(torch.tensor([0.05, 0.95])).items():
        assert value.shape == (2, *shapes[name])
        assert (value[0] < value[1]).all()
    for name, value in guide.sample(5).items():
        assert value.shape == (5, *shapes[name])
    assert guide.log_prob(guide.sample(5)).shape == (5,)
    assert guide.entropy().shape == ()


def test_median_takes_the_arguments_of_the_model() -> None:
    guide = AutoFlow(hierarchy, SMALL).setup(Y)
    assert_close(guide.median(Y), guide.median())
    assert_close(guide.quantiles([0.5], Y, seed=3), guide.quantiles([0.5], seed=3))


def test_log_prob_is_that_of_the_trace() -> None:
    guide = AutoFlow(hierarchy, SMALL).setup(Y)
    moved(guide.transform, by=0.1)
    trace = poutine.trace(guide).get_trace(Y)
    values = {name: trace.nodes[name]["value"] for name in ("mu", "tau", "w")}
    assert_close(guide.log_prob(values), trace.log_prob_sum(), atol=1e-3, rtol=1e-4)


def test_log_prob_has_gradients() -> None:
    guide = AutoFlow(hierarchy, SMALL).setup(Y)
    moved(guide.transform, by=0.1)
    guide.log_prob(guide.sample(5)).sum().backward()
    assert all(p.grad.any() for p in guide.parameters())


def test_a_seed_reproduces_and_leaves_the_generator_alone() -> None:
    guide = AutoFlow(vector, SMALL).setup()
    before = torch.get_rng_state()
    first, again, other = (guide.sample(5, seed=s)["x"] for s in (1, 1, 2))
    assert_close(guide.median(), guide.median())
    assert_close(guide.entropy(), guide.entropy())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(guide.sample(5)["x"], guide.sample(5)["x"])
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_guide_is_reproduced_by_the_global_seed() -> None:
    def run() -> list[Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        guide = AutoFlow(hierarchy, SMALL)
        svi = SVI(hierarchy, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        return [torch.tensor(svi.step(Y)) for _ in range(3)] + list(guide.parameters())

    assert all(map(torch.equal, run(), run()))


@pytest.mark.parametrize("size", [1, 2, 300])
def test_any_number_of_latents(size: int) -> None:
    guide = AutoFlow(vector)
    svi = SVI(vector, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert all(math.isfinite(svi.step(size)) for _ in range(3))
    assert guide.latent_dim == size
    assert guide.median()["x"].shape == (size,)


def test_many_latents_start_from_a_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_flow, "FULL_RANK_LIMIT", 3)
    assert type(AutoFlow(vector, SMALL).setup(3).transform[-1]) is LowerTriangular
    guide = AutoFlow(vector, SMALL).setup(4)
    assert type(guide.transform[-1]) is Affine
    assert_close(guide.sd()["x"], torch.full((4,), 0.1), rtol=0.1, atol=0.0)


@pytest.mark.parametrize(
    "base",
    [
        lambda d: dist.StudentT(5.0, torch.zeros(d), 1.0).to_event(1),
        lambda d: dist.StudentT(5.0, torch.zeros(d), 1.0),
        dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1),
    ],
    ids=["callable", "scalars", "instance"],
)
def test_a_base_of_ones_own(base: object) -> None:
    guide = started_at(vector, {"x": torch.zeros(3)}, init_scale=2.0, base=base)
    x = torch.randn(5, 3)
    assert_close(guide.log_prob({"x": x}), dist.StudentT(5.0, torch.zeros(3), 2.0).to_event(1).log_prob(x))
    assert guide.get_base_dist().event_shape == (3,)
    svi = SVI(vector, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert math.isfinite(svi.step())


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_float64_by_default(recipe: Callable) -> None:
    guide = AutoFlow(hierarchy, recipe)
    SVI(hierarchy, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(Y.double())
    assert {p.dtype for p in guide.parameters()} == {torch.float64}
    assert guide.median()["tau"].dtype == guide.entropy().dtype == torch.float64


def test_float64_of_one_model() -> None:
    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        mean = torch.ones(3, 2, dtype=torch.float64) @ beta
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(3, dtype=torch.float64))

    guide = AutoFlow(model, SMALL)
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step())
    assert {p.dtype for p in guide.parameters()} == {torch.float64}


def test_moves_to_another_dtype_and_device() -> None:
    guide = AutoFlow(hierarchy, SMALL).setup(Y).to(torch.float64)
    assert guide.sample(3)["tau"].dtype == guide.log_prob(guide.sample(3)).dtype == torch.float64
    guide.to("meta")
    assert {t.device.type for t in (*guide.parameters(), *guide.buffers())} == {"meta"}
    assert guide.sample(3)["w"].device.type == "meta"
    assert guide.sample(3)["w"].shape == (3, 3, 2, 3)


def discrete() -> None:
    pyro.sample("k", dist.Poisson(3.0))


def subsampled() -> None:
    with pyro.plate("data", 100, subsample_size=10):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def infinite() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("impossible", torch.tensor(-math.inf))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AutoFlow(lambda: None), RuntimeError, "expected a model with latent sites, got none"),
        (lambda: AutoFlow(discrete), ValueError, "expected continuous latents, got the discrete site 'k'"),
        (lambda: AutoFlow(subsampled), ValueError, "expected all rows of plate 'data', got 10 of 100"),
        (lambda: AutoFlow(infinite), ValueError, "got -inf at the site 'impossible'"),
        (lambda: AutoFlow(scale, lambda d: torch.nn.Linear(d, d)), TypeError, "FlowTransform, got Linear"),
        (lambda: AutoFlow(scale, init_scale=-1.0), ValueError, "expected .* scale .*, got .*-1.0"),
    ],
    ids=["no latents", "discrete", "subsampled", "infinite", "flow", "scale"],
)
def test_what_it_refuses(make: Callable[[], AutoFlow], error: type[Exception], message: str) -> None:
    guide = make()
    for use in (guide.setup, guide, guide.setup):  # a guide that failed is not half set up
        with pytest.raises(error, match=message):
            use()


@pytest.mark.parametrize(
    "use",
    [
        AutoFlow.sample,
        AutoFlow.median,
        AutoFlow.mean,
        AutoFlow.sd,
        AutoFlow.entropy,
        AutoFlow.get_posterior,
        AutoFlow.get_transform,
        AutoFlow.get_base_dist,
        lambda guide: guide.quantiles([0.5]),
        lambda guide: guide.log_prob({"scale": torch.ones(())}),
    ],
)
def test_nothing_is_answered_before_setup(use: Callable[[AutoFlow], object]) -> None:
    with pytest.raises(RuntimeError, match=r"expected a guide that is set up, .*: call guide.setup"):
        use(AutoFlow(scale))


def test_wrong_values_are_refused() -> None:
    guide = AutoFlow(scale).setup()
    with pytest.raises(ValueError, match=r"expected a value for the site 'scale', got \['skale'\]"):
        guide.log_prob({"skale": torch.ones(())})
