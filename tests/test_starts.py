"""The best start: better than each part alone, on hand-written densities and on Pyro models."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from densities import eight_schools, far_and_sharp, funnel, gammas, gaussian
from pyroflows import log_joint
from pyroflows.infer import Attempt, Gaussian, best_start, elbo

pytestmark = pytest.mark.usefixtures("_float64")


def best(density: Callable[[Tensor], Tensor], dim: int, **options: float) -> tuple[Gaussian, list[Attempt]]:
    """The best start from a standard normal, and what was tried."""
    tried: list[Attempt] = []
    return best_start(density, Gaussian(torch.zeros(dim), torch.eye(dim)), note=tried.append, **options), tried


@pytest.mark.parametrize(
    ("density", "dim", "least", "most"),
    [
        (eight_schools, 10, -33.5, -31.3),
        (funnel, 10, -2.6, 0.0),
        (far_and_sharp, 5, -39.36, -39.35),
        (gammas, 3, -3.0, 0.0),
    ],
)
def test_the_elbo_is_close(density: Callable[[Tensor], Tensor], dim: int, least: float, most: float) -> None:
    found, tried = best(density, dim)
    assert least < elbo(density, found, 512) < most + 0.2
    assert [attempt.name for attempt in tried] == ["start", "path", "start, matched", "path, matched"]
    assert max(tried, key=lambda attempt: attempt.elbo).gaussian is found
    assert all(attempt.work >= 0.0 for attempt in tried)


@pytest.mark.parametrize("dim", [1, 300])
def test_one_dimension_and_many(dim: int) -> None:
    target = gaussian(dim) if dim == 1 else Gaussian(torch.randn(dim), torch.logspace(-1.0, 0.0, dim).diag())
    found, tried = best(target.log_prob, dim)
    assert max(attempt.elbo for attempt in tried) > -1e-3
    assert_close(found.scale_tril, target.scale_tril, rtol=1e-3, atol=1e-4)


def test_a_given_start_is_used() -> None:
    def island(z: Tensor) -> Tensor:
        return torch.where((z - 50.0).abs() < 5.0, -0.5 * ((z - 50.0) / 0.3).square(), math.nan).sum(-1)

    with pytest.raises(FloatingPointError, match="no start has a finite ELBO: pass a narrow Gaussian as start"):
        best(island, 2)
    start = Gaussian(torch.full((2,), 51.0, dtype=torch.float32), 0.01 * torch.eye(2, dtype=torch.float32))
    found = best_start(island, start)
    assert found.loc.dtype == torch.float32
    assert_close(found.loc, torch.full((2,), 50.0, dtype=torch.float32), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_an_improper_posterior_comes_to_an_end(slope: float) -> None:
    calls = []

    def improper(z: Tensor) -> Tensor:
        calls.append(0)
        return slope * z.sum(-1)

    _, tried = best(improper, 2, work=1.0)
    assert max(attempt.elbo for attempt in tried) > 50.0
    assert len(calls) < 50_000


def test_a_pyro_model_with_a_matrix_that_can_fail() -> None:
    def model(y: Tensor) -> None:
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        covariance = torch.eye(2) + rho * (1.0 - torch.eye(2))  # positive definite for |rho| < 1 only
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)

    y = torch.randn(200, 2) @ torch.tensor([[1.0, 0.0], [0.6, 0.8]]).T
    density = log_joint(model, y)
    found, _ = best(density, 1)
    assert 0.4 < float(found.loc) < 0.8
    assert 0.0 < float(found.scale_tril) < 0.1
