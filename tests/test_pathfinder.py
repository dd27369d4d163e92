"""Paths uphill and the Gaussians on them: exact where they can be, and wherever densities end or have no mode."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from densities import eight_schools, far_and_sharp, funnel, gammas, gaussian
from pyroflows.infer import elbo, pathfinder
from pyroflows.infer.starts.lbfgs import climb

pytestmark = pytest.mark.usefixtures("_float64")


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_a_gaussian_is_found_exactly(dim: int) -> None:
    target = gaussian(dim)
    found = pathfinder(target.log_prob, dim)
    assert_close(found.loc, target.loc, rtol=1e-4, atol=1e-4)
    assert_close(found.scale_tril, target.scale_tril, rtol=1e-4, atol=1e-5)


def test_far_and_sharp() -> None:
    found = pathfinder(far_and_sharp, 3)
    assert_close(found.loc, torch.full((3,), 300.0), rtol=0.0, atol=1e-3)
    assert_close(found.scale_tril, 0.4 * torch.eye(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("density", "least"), [(funnel, -8.0), (eight_schools, -42.0)])
def test_where_there_is_no_mode(density: object, least: float) -> None:
    (path,) = climb(density, torch.randn(1, 10), work=5.0)
    assert path.values[-1] > 30.0
    assert elbo(density, pathfinder(density, 10), 4096) > least


def test_many_dimensions() -> None:
    scales = torch.logspace(-1.0, 1.0, 300)
    found = pathfinder(lambda z: -0.5 * (z / scales - 2.0).square().sum(-1), 300)
    assert_close(found.loc, 2.0 * scales, rtol=1e-2, atol=1e-2)
    assert_close(found.scale_tril, scales.diag(), rtol=1e-4, atol=1e-4)


def test_where_the_density_ends() -> None:
    assert elbo(gammas, pathfinder(gammas, 3), 64) > -3.0


def test_a_given_point_starts_a_path() -> None:
    def islands(z: Tensor) -> Tensor:
        return torch.where((z - 50.0).abs() < 5.0, -0.5 * (z - 51.0).square(), math.nan).sum(-1)

    with pytest.raises(FloatingPointError, match="no Gaussian with a finite ELBO: pass a start at which"):
        pathfinder(islands, 2)
    assert_close(pathfinder(islands, torch.full((2,), 49.0)).loc, torch.full((2,), 51.0), rtol=0.0, atol=1e-3)


def test_work_is_kept() -> None:
    def slow(z: Tensor) -> Tensor:
        calls.append(len(z))
        return funnel(z) + sum(torch.zeros(()) for _ in range(5000))

    calls: list[int] = []
    pathfinder(slow, 10, work=0.5)  # each call is priced at about 50 ms
    assert 5 < len(calls) < 60


def test_results_are_reproducible() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(pathfinder(eight_schools, 10, work=60.0))
    assert_close(found[0].scale_tril, found[1].scale_tril, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("start", [0, 2.0, torch.zeros(1, 2)], ids=str)
def test_what_is_no_start_is_refused(start: object) -> None:
    with pytest.raises(ValueError, match=r"expected the number of dimensions or a point of shape \(D,\), got"):
        pathfinder(funnel, start)


def test_paths_climb_by_themselves() -> None:
    starts = torch.tensor([[-1.5, 1.0], [1.5, -1.0], [math.nan, 0.0]])

    def banana(z: Tensor) -> Tensor:
        return -(1.0 - z[:, 0]).square() - 100.0 * (z[:, 1] - z[:, 0].square()).square()

    paths = climb(banana, starts, work=5.0)
    alone = climb(banana, starts[:1], work=5.0)
    assert_close(alone[0].points, paths[0].points)
    for path in paths[:2]:
        assert (path.values.diff() >= 0.0).all()
        assert_close(path.values, banana(path.points))
        assert_close(path.points[-1], torch.ones(2), rtol=0.0, atol=1e-2)
    assert len(paths[2].points) == 1
