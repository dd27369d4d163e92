"""Non-centred coordinates: the map a model implies, when fit takes it, and what comes after."""

import copy
import math
import pickle
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor
from torch.testing import assert_close

from pyroflows import AutoFlow, Posterior, fit, flows, log_joint
from pyroflows.laws import LAWS, check_law
from pyroflows.model.noncentered import DEEPEST, noncentered

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(8,))
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
pytestmark = pytest.mark.usefixtures("no_search")
untrusted = pytest.mark.filterwarnings("ignore:fit. .*do not trust:UserWarning")


@pytest.fixture
def double() -> None:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def schools(y: Tensor, sigma: float) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def levels() -> None:
    """Two sites one above the other, of other families and shapes, and one between them that is left alone."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(1.0, a.exp()))
    c = pyro.sample("c", dist.Normal(b, 1.0))
    with pyro.plate("three", 3):
        pyro.sample("d", dist.StudentT(4.0, c, b).expand([3, 2]).to_event(1).mask(torch.tensor(True)))


def test_the_laws_of_transforms_hold(double: None) -> None:
    for fixed in (noncentered(log_joint(schools, Y.double(), 10.0)), noncentered(log_joint(levels))):
        for law in LAWS.keys() - {"devices"}:  # loc and scale are computed where the model's data are
            check_law(law, fixed)


def test_levels_are_mapped_in_turn(double: None) -> None:
    fixed, u = noncentered(log_joint(levels)), torch.randn(5, 9)
    a, eps, c, noise = u[:, 0], u[:, 1], u[:, 2], u[:, 3:]
    log_b = 1.0 + a.exp() * eps
    d = c[:, None] + log_b.exp()[:, None] * noise
    z, ladj = fixed.call_and_ladj(u)
    assert fixed.depth == 2
    assert_close(z, torch.cat([a[:, None], log_b[:, None], c[:, None], d], dim=-1))
    assert_close(ladj, a + 6 * log_b)


def plain() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 2.0))  # a loc alone makes no funnel


def chain(length: int) -> None:
    scale = torch.ones(())
    for i in range(length):
        scale = pyro.sample(f"x{i}", dist.Normal(0.0, scale)).exp()


def test_models_without_such_sites_have_none() -> None:
    assert noncentered(log_joint(plain)) is None
    assert noncentered(log_joint(chain, DEEPEST + 1)).depth == DEEPEST
    assert noncentered(log_joint(chain, DEEPEST + 2)) is None


@untrusted
@pytest.mark.parametrize(("sigma", "taken"), [(10.0, True), (0.05, False)])
def test_fit_takes_the_coordinates_with_the_higher_elbo(sigma: float, taken: bool) -> None:
    """Little data for each group leave a funnel; where each group is known well there is none, but a ridge in ``u``."""
    posterior = fit(schools, Y, sigma, flow=flows.full_rank, steps=20, progress=False)
    assert (posterior.guide.fixed is not None) == taken


def test_a_funnel_is_fitted_exactly() -> None:
    """Neal's funnel without data: a Gaussian in the non-centred coordinates, and beyond affine maps in its own."""
    posterior = fit(funnel, flow=flows.full_rank, steps=300, progress=False)
    assert posterior.diagnostics.log_weight_sd < 0.01
    assert posterior.diagnostics.elbo == pytest.approx(0.0, abs=1e-3)
    assert posterior.sample(20_000, seed=0)["v"].std().item() == pytest.approx(3.0, rel=0.03)


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([9]).to_event(1))


@pytest.fixture(scope="module")
def fitted() -> Posterior:
    pyro.set_rng_seed(0)
    return fit(schools, Y, 10.0, flow=SMALL, steps=300, noncentered=True, progress=False)


def test_draws_and_densities_are_of_the_sites_themselves(fitted: Posterior) -> None:
    draws = fitted.sample(5, seed=0)
    z, ladj = fitted.guide.space.unconstrain(draws)
    assert_close(fitted.log_prob(draws), fitted.guide.get_posterior().log_prob(z) + ladj)
    assert draws["theta"].shape == (5, 8)
    assert set(Predictive(schools, guide=fitted.guide, num_samples=3)(Y, 10.0)) >= {"theta", "tau"}
    assert fitted.diagnostics.log_weight_sd < 0.8  # 300 steps of two layers; 1.1 where tau and theta are as they are


def test_the_guide_is_copied_and_pickled_with_its_coordinates(fitted: Posterior) -> None:
    z = torch.randn(3, 10)
    expected = fitted.guide.get_posterior().log_prob(z)
    for guide in (copy.deepcopy(fitted.guide), pickle.loads(pickle.dumps(fitted.guide))):
        assert_close(guide.get_posterior().log_prob(z), expected)


def test_a_file_brings_the_coordinates_back(fitted: Posterior, tmp_path: Path) -> None:
    fitted.save(tmp_path / "p.pt")
    back = Posterior.load(tmp_path / "p.pt", schools, Y, 10.0, guide=AutoFlow(schools, SMALL))
    assert_close(back.draws, fitted.draws, rtol=1e-5, atol=1e-5)
    assert back.diagnostics.elbo == pytest.approx(fitted.diagnostics.elbo, abs=1e-3)


def test_training_and_refinement_go_on_in_them(fitted: Posterior) -> None:
    guide = copy.deepcopy(fitted.guide)
    further = fit(schools, Y, 10.0, guide=guide, steps=50, progress=False)
    assert further.guide.fixed is guide.fixed
    assert further.diagnostics.elbo > fitted.diagnostics.elbo - 0.05
    pyro.set_rng_seed(1)
    chains = fitted.refine("neutra", num_draws=40, warmup=40, chains=1)
    assert chains.draws["theta"].shape == (40, 8)
    assert math.isfinite(chains.draws["tau"].mean())


@untrusted
def test_it_can_be_refused_and_demanded() -> None:
    quick = partial(fit, flow=flows.full_rank, steps=20, full_rank=None, progress=False)
    assert quick(schools, Y[:2], 10.0, noncentered=False).guide.fixed is None
    with pytest.raises(ValueError, match="noncentered=True, got none: leave noncentered out"):
        quick(plain, noncentered=True)


def ratings(y: Tensor, group: Tensor) -> None:
    """The cutpoints' prior fills memory in place, which vmap refuses."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    ordered = dist.transforms.OrderedTransform()
    cuts = pyro.sample("cuts", dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [ordered]))
    with pyro.plate("group", 5):
        effects = pyro.sample("effects", dist.Normal(0.0, scale))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.OrderedLogistic(effects[group], cuts), obs=y)


@pytest.mark.filterwarnings("ignore:the model cannot be evaluated for many particles at once:UserWarning")
def test_a14_a_prior_that_fills_memory_in_place(double: None) -> None:
    density = log_joint(ratings, torch.arange(20) % 4, torch.arange(20) % 5)
    fixed, u = noncentered(density), torch.randn(4, density.size)
    expected = torch.cat([u[:, :4], u[:, :1].exp() * u[:, 4:]], dim=-1)
    assert_close(fixed(u), expected)
    assert_close(fixed.inv(expected), u)
