"""AutoFlow in a plain loop of SVI with one particle, where nothing catches a bad step."""

import math
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyroflows import AutoFlow, CompiledSVI, CompiledTrace_ELBO, flows
from pyroflows.guides.init import prior_spread
from pyroflows.model import LatentSpace


def rows(size: int = 3) -> None:
    with pyro.plate("row", size):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 0.1), obs=torch.full((size,), 4.0))


def rates_of_successes() -> None:
    with pyro.plate("row", 5):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        pyro.sample("k", dist.Binomial(100, share), obs=torch.tensor([3.0, 20.0, 50.0, 70.0, 98.0]))


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


PLAIN, COMPILED = Trace_ELBO(), CompiledTrace_ELBO(compile=False)
# Either loss and each seed by default, all pairs in the slow tests.
FEW = [(PLAIN, 0), (COMPILED, 1), (COMPILED, 2)]
MORE = [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((PLAIN, 1), (PLAIN, 2), (COMPILED, 0))]


@pytest.mark.parametrize(("elbo", "seed"), [*FEW, *MORE])
def test_f1_three_means_with_one_particle(elbo: Trace_ELBO, seed: int) -> None:
    pyro.set_rng_seed(seed)
    guide = AutoFlow(rows)
    svi = SVI(rows, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    for _ in range(100):
        svi.step()
    x = guide.sample(4000, seed=1)["x"]
    assert (x.mean(0) - 3.96).abs().max() < 0.3
    assert x.abs().max() < 6.0


@pytest.mark.parametrize("rate", [0.1, pytest.param(0.01, marks=pytest.mark.slow)])
def test_f1_rates_of_successes_keep_their_sds(rate: float) -> None:
    pyro.set_rng_seed(0)
    guide = AutoFlow(rates_of_successes)
    svi = SVI(rates_of_successes, guide, pyro.optim.Adam({"lr": rate}), CompiledTrace_ELBO(compile=False))
    for _ in range(math.ceil(20 / rate)):
        svi.step()
    k = torch.tensor([3.0, 20.0, 50.0, 70.0, 98.0])
    exact = dist.Beta(2 + k, 102 - k)
    share = guide.sample(4000, seed=1)["share"]
    assert ((share.mean(0) - exact.mean) / exact.variance.sqrt()).abs().max() < 2.0
    assert (share.std(0) / exact.variance.sqrt()).log().abs().max() < 1.2


def sometimes_nan() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("cut", torch.where(x[0] > 0.1, x[0].detach() * math.nan * x.sum(), -((x - 0.3) ** 2).sum()))


def test_f1_a_draw_without_gradient_is_left_out_with_a_warning() -> None:
    guide = AutoFlow(sometimes_nan, init_loc_fn=lambda site: torch.zeros(2))
    svi = SVI(sometimes_nan, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    said = pytest.warns(UserWarning, match="AutoFlow leaves 1 of 1 draws out of this step")
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="Encountered NaN: loss"), said:
        losses = [svi.step() for _ in range(40)]
    assert any(map(math.isnan, losses))
    assert all(p.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize("make", [SVI, CompiledSVI])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_f1_a_loss_that_is_not_finite_is_said(make: type, bad: float) -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("bad", x.sum() * 0 + bad)

    def guide() -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    svi = make(model, guide, pyro.optim.Adam({"lr": 0.01}), CompiledTrace_ELBO(2, compile=False))
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="Encountered .*: loss"):
        svi.step()


def test_f1_a_run_says_how_many_losses_were_not_finite() -> None:
    def model() -> None:
        pyro.factor("bad", -math.inf + pyro.param("loc", torch.zeros(2)).sum())

    svi = CompiledSVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), CompiledTrace_ELBO(compile=False))
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="not finite in 3 of 3 steps"):
        svi.run(3)


def test_the_default_guide_starts_at_a_share_of_each_prior() -> None:
    def model() -> None:
        pyro.sample("narrow", dist.Normal(0.0, 0.5))
        pyro.sample("wide", dist.Normal(0.0, 1e6).expand([2]).to_event(1))
        pyro.sample("positive", dist.LogNormal(0.0, 2.0))
        pyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))

    sd = AutoFlow(model).setup().sd()
    assert sd["narrow"].item() == pytest.approx(0.075, rel=0.2)
    assert sd["wide"].tolist() == pytest.approx([1.5, 1.5], rel=0.2)
    z = AutoFlow(model).setup().get_posterior().sample((4000,)).std(0)
    assert z.tolist() == pytest.approx([0.075, 1.5, 1.5, 0.3, 0.15], rel=0.2)
    given = AutoFlow(model, flows.full_rank).setup().get_posterior().sample((4000,)).std(0)
    assert given.tolist() == pytest.approx([0.1] * 5, rel=0.1)


def test_steps_of_the_default_guide_do_not_depend_on_units() -> None:
    def ends(unit: float) -> tuple[float, float]:
        def model() -> None:
            x = pyro.sample("x", dist.Normal(0.0, unit))
            pyro.sample("y", dist.Normal(x, 0.1 * unit), obs=torch.tensor(3.0 * unit))

        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        svi = SVI(model, guide := AutoFlow(model), pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
        for _ in range(25):
            svi.step()
        return guide.median()["x"].item() / unit, guide.sd()["x"].item() / unit

    usual = ends(1.0)
    assert usual == pytest.approx(ends(8.0), rel=1e-3)
    assert usual == pytest.approx(ends(0.125), rel=1e-3)


def test_the_start_of_very_many_latents_is_found() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(100_000), 2.0).to_event(1))

    trace = poutine.trace(model).get_trace()
    assert prior_spread(LatentSpace.of(trace), trace).mean().item() == pytest.approx(2.0, rel=0.02)
