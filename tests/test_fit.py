"""``fit`` end to end: exact answers, models that learn, minibatches, branches, global state, refusals."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor, nn

from pyroflows import AutoFlow, Posterior, fit, flows
from pyroflows.guides import auto_flow

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(8,))
quick = partial(fit, flow=flows.full_rank, steps=300, progress=False)
brief = partial(quick, full_rank=None, steps=150)  # without the stage that takes most of a short fit
unsearched = pytest.mark.usefixtures("no_search")
Y = torch.tensor([1.0, 2.5, 3.0, 0.2])


def normal(y: Tensor, *, prior_sd: float = 2.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, prior_sd))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact(y: Tensor, prior_sd: float = 2.0) -> tuple[float, float, float]:
    """Mean and sd of the posterior of ``normal``, and its log evidence."""
    precision = prior_sd**-2 + len(y)
    covariance = torch.eye(len(y)) + prior_sd**2
    evidence = dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)
    return y.sum().item() / precision, precision**-0.5, evidence.item()


def check(posterior: Posterior, name: str, mean: float, sd: float, within: float = 0.03) -> None:
    draws = posterior.sample(40_000, seed=0)[name].double()
    assert abs(draws.mean().item() - mean) < within * sd
    assert draws.std().item() == pytest.approx(sd, rel=within)


@pytest.mark.usefixtures("whole_affine_stage")
@pytest.mark.parametrize("flow", [SMALL, flows.full_rank])
def test_a_normal_mean(flow: Callable) -> None:
    posterior = quick(normal, Y, flow=flow)
    mean, sd, evidence = exact(Y)
    check(posterior, "mu", mean, sd)
    assert posterior.diagnostics.elbo == pytest.approx(evidence, abs=0.01)
    assert posterior.diagnostics.log_evidence == pytest.approx(evidence, abs=0.005)


@unsearched
def test_keywords_go_to_the_model() -> None:
    mean, sd, evidence = exact(Y, prior_sd=0.3)
    posterior = brief(normal, Y, prior_sd=0.3)
    check(posterior, "mu", mean, sd)
    assert posterior.diagnostics.elbo == pytest.approx(evidence, abs=0.01)


@unsearched
def test_a_linear_regression() -> None:
    design, sd = torch.stack([torch.ones(20), torch.linspace(3.0, 5.0, 20), torch.randn(20)], dim=-1), 0.5
    y = design @ torch.tensor([1.0, -2.0, 0.5]) + sd * torch.randn(20)

    def regression() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        pyro.sample("y", dist.Normal(design @ beta, sd).to_event(1), obs=y)

    covariance = torch.linalg.inv(torch.eye(3) / 9 + design.T @ design / sd**2)
    mean, sds = covariance @ design.T @ y / sd**2, covariance.diagonal().sqrt()
    evidence = dist.MultivariateNormal(torch.zeros(20), 9 * design @ design.T + sd**2 * torch.eye(20)).log_prob(y)
    posterior = quick(regression)
    draws = posterior.sample(40_000, seed=0)["beta"]
    assert ((draws.mean(0) - mean).abs() < 0.03 * sds).all()
    assert ((draws.std(0) / sds - 1).abs() < 0.03).all()
    correlation = covariance / sds.outer(sds)
    assert correlation[0, 1] < -0.95
    assert ((draws.T.corrcoef() - correlation).abs() < 0.02).all()
    assert posterior.diagnostics.elbo == pytest.approx(evidence.item(), abs=0.02)


def test_a_coin() -> None:
    flips = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])

    def coin() -> None:
        heads = pyro.sample("heads", dist.Beta(1.0, 2.0))
        with pyro.plate("flips", 5):
            pyro.sample("flip", dist.Bernoulli(heads), obs=flips)

    posterior, truth = fit(coin, steps=300, full_rank=None, progress=False), dist.Beta(5.0, 3.0)
    check(posterior, "heads", truth.mean.item(), truth.stddev.item())
    x = torch.linspace(0.2, 0.9, 8)
    assert (posterior.log_prob({"heads": x}) - truth.log_prob(x)).abs().max() < 0.05
    evidence = sum(sign * math.lgamma(a) for a, sign in ((5, 1), (3, 1), (8, -1), (1, -1), (2, -1), (3, 1)))
    assert posterior.diagnostics.elbo == pytest.approx(evidence, abs=0.01)
    assert posterior.diagnostics.log_evidence == pytest.approx(evidence, abs=0.005)


def best_noise() -> float:
    """The noise of ``learns`` with the largest evidence."""
    noise = torch.linspace(0.1, 5.0, 2000).reshape(-1, 1, 1)
    covariance = noise**2 * torch.eye(4) + 4.0
    return noise[dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(Y).argmax()].item()


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Parameter(torch.tensor(7.0), requires_grad=False)


@unsearched
@pytest.mark.filterwarnings("ignore:frozen was not registered")  # Pyro's own note on such a parameter
@pytest.mark.parametrize("kind", ["param", "module"])
def test_a_model_learns_too(kind: str) -> None:
    net = Noise()

    def learns() -> None:
        if kind == "module":
            noise = pyro.module("net", net).log.exp()
        else:
            noise = pyro.param("noise", torch.tensor(4.5), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(mu, noise), obs=Y)

    history = brief(learns, steps=250, lr=0.03).history  # a good posterior for the first noise is not the end
    assert history.stopped == "all steps were used"
    found = net.log.exp() if kind == "module" else pyro.param("noise")
    assert found.item() == pytest.approx(best_noise(), rel=0.03)
    assert net.frozen.item() == 7.0


@unsearched
def test_a_minibatch_of_observations() -> None:
    y = torch.linspace(-1.0, 3.0, 40)

    def model(size: int) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 40, subsample_size=size) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    mean, sd, _ = exact(y)
    check(quick(model, 30, steps=100), "mu", mean, sd, within=0.1)


@unsearched
def test_a_model_that_branches() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(mu if mu > -100.0 else -mu, 1.0), obs=torch.tensor(1.5))

    with pytest.warns(UserWarning, match="runs one by one"):
        posterior = brief(model, start=None, num_particles=4, steps=80, lr=0.05)
    check(posterior, "mu", 1.2, 0.8**0.5, within=0.1)


@unsearched
def test_the_seed_reproduces_a_fit() -> None:
    def run(seed: int) -> Posterior:
        pyro.set_rng_seed(seed)
        return brief(normal, Y, steps=30)

    one, same, other = run(1), run(1), run(2)
    assert one.history.elbo == same.history.elbo
    assert all(map(torch.equal, one.guide.parameters(), same.guide.parameters()))
    assert one.history.elbo != other.history.elbo


@pytest.mark.usefixtures("no_search")
def test_a_guide_is_trained_further() -> None:
    guide = AutoFlow(normal, flows.full_rank)
    first = fit(normal, Y, guide=guide, steps=20, progress=False)
    assert first.guide is guide
    parameters = list(guide.parameters())
    second = fit(normal, 1 + Y, guide=guide, steps=30, progress=False)
    assert second.guide is guide
    assert all(p is q for p, q in zip(guide.parameters(), parameters, strict=True))
    check(second, "mu", *exact(1 + Y)[:2])


@unsearched
def test_the_guide_works_wherever_pyro_takes_one() -> None:
    guide = brief(normal, Y, steps=20).guide
    draws = Predictive(normal, guide=guide, num_samples=10, parallel=True)(Y)
    assert draws["mu"].squeeze().shape == (10,)
    neutra = NeuTraReparam(guide)
    pyro.poutine.trace(neutra.reparam(normal)).get_trace(Y)
    assert neutra.transform_sample(torch.zeros(5, 1))["mu"].numel() == 5


@unsearched
def test_one_particle_is_enough() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = brief(normal, Y, num_particles=1, steps=10)
    assert len(posterior.history.elbo) == 10
    check(posterior, "mu", *exact(Y)[:2], within=0.1)


@unsearched
def test_many_latents_are_fitted_without_the_affine_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(auto_flow, "FULL_RANK_LIMIT", 0)
    posterior = quick(normal, Y, steps=150, lr=0.03, progress=True)
    assert "full rank" not in capsys.readouterr().err
    check(posterior, "mu", *exact(Y)[:2], within=0.1)


@pytest.mark.usefixtures("_float64", "no_search")
def test_float64_by_default() -> None:
    posterior = brief(normal, Y.double(), steps=50)
    assert posterior.draws["mu"].dtype == torch.float64
    assert posterior.diagnostics.elbo == pytest.approx(exact(Y)[2], abs=0.05)


@unsearched
def test_a_base_of_ones_own() -> None:
    posterior = brief(normal, Y, steps=20, base=lambda d: dist.StudentT(5.0, torch.zeros(d), 1.0))
    assert isinstance(posterior.guide.get_base_dist().base_dist, dist.StudentT)


@unsearched
def test_global_state_is_left_alone() -> None:
    with pyro.validation_enabled(True):
        brief(normal, Y, steps=10)
        assert torch.distributions.Distribution._validate_args
    assert list(pyro.get_param_store()) == []


def test_an_unsound_model_is_refused() -> None:
    with pytest.raises(ValueError, match="expected continuous latents, got the discrete site 'k'"):
        fit(lambda: pyro.sample("k", dist.Poisson(1.0)), progress=False)
    with pytest.raises(RuntimeError, match="expected a model with latent sites"):
        fit(lambda: None, progress=False)


@unsearched
def test_a_model_with_numbers_of_its_own_runs_in_double_precision() -> None:
    def regression(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = pyro.deterministic("mean", x @ torch.eye(2) @ slopes)
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    posterior = brief(regression, x, x[:, 1], steps=20, num_particles=8)
    assert posterior.log_joint.dtype == torch.float64
    data = posterior.to_arviz(predictive=True, prior=10, log_likelihood=True)
    assert data.posterior["mean"].shape == data.log_likelihood["y"].shape == data.posterior_predictive["y"].shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "expected precision to be one of 'mixed', 'single', 'double', got 'half'"),
        ({"compile": "yes"}, "expected compile to be one of None, True, False, got 'yes'"),
        ({"steps": 0}, "expected steps to be a whole number from 1 on, got 0"),
        ({"lr": 0}, "expected a learning rate lr > 0, got 0"),
        ({"lr": float("nan")}, "expected a learning rate lr > 0, got nan"),
        ({"tolerance": -1}, "expected tolerance >= 0, got -1"),
        (
            {"guide": AutoNormal(normal)},
            "expected guide to be an AutoFlow or AutoPlateFlow, got AutoNormal: train others with SVI",
        ),
        ({"objective": 3}, "expected objective to be None or one of pyroflows.infer.objectives, got 3"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        fit(normal, Y, **options)


@unsearched
@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_a_fit_has_gradients_of_its_own(without_gradients: Callable) -> None:
    with without_gradients():
        posterior = brief(normal, Y.clone())
    check(posterior, "mu", *exact(Y)[:2])
