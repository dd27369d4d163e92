"""The recipes of examples/likelihood_free.py, against simulators whose posterior is known."""

import runpy
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows import FlowDensity, fit, flows

RECIPE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "likelihood_free.py"))
MATRIX, X = torch.tensor([[2.0, 1.0], [-1.0, 2.0], [2.0, 2.0]]), torch.tensor([1.6, -0.4, 2.2])
NORMAL = dist.Normal(torch.zeros(2), 1.0).to_event(1)
WAYS = ("npe", "snl")


def linear(theta: Tensor) -> Tensor:
    return theta @ MATRIX.T + torch.randn(len(theta), 3)


def exact() -> dist.MultivariateNormal:
    precision = torch.eye(2) + MATRIX.T @ MATRIX
    return dist.MultivariateNormal(torch.linalg.solve(precision, MATRIX.T @ X), precision_matrix=precision)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_linear_gaussian(way: str) -> None:
    pyro.set_rng_seed(0)
    theta = RECIPE[way](NORMAL, linear, X, 9000, 40, 4000)
    posterior = exact()
    shift, ratio = (theta.mean(0) - posterior.mean) / posterior.stddev, theta.std(0) / posterior.stddev
    print(f"{way}: means off by {shift.tolist()} sd, sds off by {(ratio - 1).tolist()}")
    assert (shift.abs() < 0.1).all()
    assert ((ratio - 1).abs() < 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_moons(way: str) -> None:
    pyro.set_rng_seed(0)
    square = dist.Uniform(-torch.ones(2), 1.0).to_event(1)
    theta = RECIPE[way](square, RECIPE["moons"], torch.zeros(2), 9000, 40, 2000)
    found = RECIPE["c2st"](theta, RECIPE["moons_posterior"](2000))
    print(f"{way}: C2ST {found:.3f}")
    assert found <= 0.6


@pytest.mark.slow
def test_exact_draws_of_the_moons() -> None:
    # Rejection: parameters whose simulations come near the data.
    theta = 2 * torch.rand(2_000_000, 2) - 1
    near = theta[RECIPE["moons"](theta).norm(dim=-1) < 0.02]
    assert len(near) > 300
    assert RECIPE["c2st"](near, RECIPE["moons_posterior"](len(near))) < 0.58
    assert RECIPE["c2st"](near * 1.2, RECIPE["moons_posterior"](len(near))) > 0.6


@pytest.mark.usefixtures("no_search")
def test_a_learnt_likelihood_in_a_model_that_is_fitted() -> None:
    pyro.set_rng_seed(0)
    theta = NORMAL.sample((3000,))
    likelihood = FlowDensity(partial(flows.full_rank, hidden_dims=()), epochs=12, lr=0.03).fit(
        linear(theta), context=theta
    )

    def model() -> None:
        pyro.sample("x", likelihood.distribution(pyro.sample("theta", NORMAL)), obs=X)

    posterior = fit(model, flow=flows.full_rank, steps=100, num_particles=16, progress=False)
    found, truth = posterior.sample(4000)["theta"], exact()
    assert_close(found.mean(0), truth.mean, atol=0.1, rtol=0, check_dtype=False)
    assert_close(found.std(0), truth.stddev, atol=0.05, rtol=0, check_dtype=False)
