"""What fit, AutoFlow and Posterior refuse or say instead of being silently wrong."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyroflows
from pyroflows import AutoFlow, flows, log_joint
from pyroflows.posterior import Diagnostics
from pyroflows.transforms import Elementwise

pytestmark = pytest.mark.usefixtures("no_search")
Y = torch.tensor([0.5, -0.2, 1.0, 0.3])


def mean(y: Tensor, rows: int | None = None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y), subsample_size=rows) as chosen:
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y[chosen])


def mean_and_scale(y: Tensor) -> None:
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    mean(y)


def fitted(**options: object) -> pyroflows.Posterior:
    options = {"flow": flows.full_rank, "full_rank": None, "steps": 10, "num_particles": 4, "progress": False} | options
    return pyroflows.fit(mean, Y, **options)


def handed_in(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 2 * len(y), subsample_size=len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def test_a_minibatch_is_not_taken_for_the_data() -> None:
    with pytest.warns(UserWarning, match="fit: do not trust: judged on one random minibatch.* Give the model all rows"):
        posterior = pyroflows.fit(handed_in, Y[:2], flow=flows.full_rank, steps=50, num_particles=8, progress=False)
    assert posterior.diagnostics.verdict.startswith("do not trust: judged on one random minibatch")
    with pytest.raises(ValueError, match="expected a log joint of all the data, got one of a minibatch"):
        _ = posterior.weights
    assert "psis_weight" not in getattr(posterior.to_arviz(), "sample_stats", {})
    whole = pyroflows.Posterior(posterior.guide, log_joint(mean, Y), posterior.history)
    evidence = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1.0).log_prob(Y)
    assert whole.diagnostics.log_evidence == pytest.approx(float(evidence), abs=0.05)


def test_latents_are_on_one_device() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(2, device="meta"), 1.0).to_event(1))

    message = "got 'a' on cpu and 'b' on meta: make the numbers in priors from the data"
    # Validation looks at values, and there are none here.
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=message):
        AutoFlow(model).setup()


def test_a_guide_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a guide of the model's latents \{'scale'.*got one of \{'loc'"):
        pyroflows.fit(mean_and_scale, Y, guide=fitted().guide, steps=10, progress=False)


@pytest.mark.parametrize("option", ["steps", "num_particles"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_counts_are_whole_and_positive(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"expected {option} to be a whole number from 1 on, got {value}"):
        pyroflows.fit(mean, Y, progress=False, **{option: value})


def test_fit_needs_no_grad_mode() -> None:
    with torch.no_grad():
        assert len(fitted().history.elbo) > 0


@pytest.mark.parametrize("flow", [flows.realnvp(1), "realnvp", 3])
def test_a_flow_is_a_function_of_the_size(flow: object) -> None:
    with pytest.raises(TypeError, match="expected flow to be a function of the number of latents"):
        pyroflows.AutoFlow(mean, flow)


def test_the_mass_of_an_interval_is_a_probability() -> None:
    with pytest.raises(ValueError, match="expected a mass between 0 and 1, got 90"):
        fitted().summary(mass=90)


def test_an_exact_fit_is_good_whatever_the_khat() -> None:
    equal = np.random.default_rng(0).standard_cauchy(2000) * 1e-7
    assert "good, the weights are equal up to rounding" in Diagnostics.of(equal)[0].verdict


def test_a_context_holds_numbers() -> None:
    flow = Elementwise(2, pyroflows.bijectors.Affine(), 3)
    with pytest.raises(ValueError, match="expected numbers as context, got NaN in 3 of 3 places"):
        flow.condition(torch.full((3,), torch.nan))


def test_scoring_names_the_shape_and_not_the_network() -> None:
    density = pyroflows.FlowDistribution(transform=flows.realnvp(2))
    with pytest.raises(ValueError, match=r"expected an input of shape \(\.\.\., 2\), got \(5, 3\)") as caught:
        density.log_prob(torch.zeros(5, 3))
    assert len(str(caught.value)) < 300
    assert repr(density) == "FlowDistribution(batch_shape=(), event_shape=(2,))"
