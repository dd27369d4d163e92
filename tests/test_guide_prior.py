"""A posterior as the prior of a model of further data."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.testing import assert_close

from pyroflows import AutoFlow, GuidePrior, fit, flows, log_joint

FIRST, SECOND = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0, 1.5])


def first(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("pair", 2):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, scale.sum()), obs=y)


def following(prior: Callable) -> Callable:
    def second(y: Tensor) -> None:
        values = prior()
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(values["mean"], values["scale"].sum(-1)), obs=y)

    return second


def test_b7_a_guide_inside_a_model_is_refused_with_the_remedy() -> None:
    for kind in (AutoFlow, AutoMultivariateNormal, AutoNormal):
        inner = kind(first)
        inner(FIRST)
        model = following(lambda inner=inner: inner(FIRST))
        with pytest.raises(
            ValueError, match=r"without a guide in it, got a guide's site 'mean'.*posterior.as_prior\(\)"
        ):
            log_joint(model, SECOND)


def test_b7_the_log_joint_has_the_guides_density() -> None:
    guide = AutoFlow(first, flows.nsf, init_scale=0.3).setup(FIRST)
    density = log_joint(following(GuidePrior(guide)), SECOND)
    z = torch.randn(5, 3)
    values = guide.space.constrain(z)[0]
    scores = dist.Normal(values["mean"][:, None], values["scale"].sum(-1, keepdim=True)).log_prob(SECOND).sum(-1)
    assert_close(density(z), guide.get_posterior().log_prob(z) + scores, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("no_search")
def test_b7_two_halves_of_the_data_are_all_of_them() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(mean, 1.0).expand(y.shape).to_event(1), obs=y)

    options = {"flow": flows.full_rank, "steps": 200, "num_particles": 16, "progress": False}
    prior = fit(model, FIRST, **options).as_prior("before")

    def second(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(prior()["mean"], 1.0).expand(y.shape).to_event(1), obs=y)

    posterior = fit(second, SECOND, **options)
    precision = 0.25 + 5
    found = posterior.summary()["mean"]
    assert found["mean"] == pytest.approx(float(torch.cat([FIRST, SECOND]).sum()) / precision, abs=0.03)
    assert found["sd"] == pytest.approx(precision**-0.5, rel=0.05)
    evidence = dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 4).log_prob(torch.cat([FIRST, SECOND]))
    before = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 4).log_prob(FIRST)
    assert posterior.diagnostics.log_evidence == pytest.approx(float(evidence - before), abs=0.03)
    assert set(posterior.draws) == {"before", "mean"}


def test_the_prior_neither_learns_nor_moves() -> None:
    guide = AutoFlow(first, flows.nsf, init_scale=0.3).setup(FIRST)
    prior = GuidePrior(guide)
    z = torch.randn(4, 3)
    before = prior.distribution.log_prob(z)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3)
    assert_close(prior.distribution.log_prob(z), before)
    assert not before.requires_grad


@pytest.mark.parametrize("vectorized", [False, True])
def test_the_prior_works_in_plain_svi(vectorized: bool) -> None:
    model = following(GuidePrior(AutoFlow(first, init_scale=0.3).setup(FIRST)))
    elbo = Trace_ELBO(4, vectorize_particles=vectorized, max_plate_nesting=1)
    svi = SVI(model, AutoMultivariateNormal(model), pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = torch.tensor([svi.step(SECOND) for _ in range(60)])
    assert losses[-20:].mean() < losses[:20].mean()
    assert len(pyro.get_param_store()) == len(list(svi.guide.parameters()))  # the prior has none that learn
