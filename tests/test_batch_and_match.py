"""Batch and match: exact on Gaussians, near others, and not thrown by scores that fail; and the Gaussian itself."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from densities import eight_schools, far_and_sharp, gammas, gaussian
from pyroflows.infer import Gaussian, batch_and_match, elbo, score

pytestmark = pytest.mark.usefixtures("_float64")


def standard(dim: int) -> Gaussian:
    return Gaussian(torch.zeros(dim), torch.eye(dim))


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_a_gaussian_is_found_exactly(dim: int) -> None:
    target = gaussian(dim)
    found = batch_and_match(target.log_prob, standard(dim))
    assert_close(found.loc, target.loc, rtol=1e-7, atol=1e-7)
    assert_close(found.scale_tril, target.scale_tril, rtol=1e-6, atol=1e-7)


def test_fewer_draws_than_dimensions_suffice() -> None:
    dim, calls = 300, []
    steps = torch.eye(dim) - 0.9 * torch.ones(dim - 1).diag(-1)
    precision = steps.T @ steps / 0.09 + torch.eye(dim)
    target = Gaussian.from_root(torch.full((dim,), 2.0), torch.linalg.cholesky(precision).inverse().T)
    found = batch_and_match(lambda z: calls.append(len(z)) or target.log_prob(z), standard(dim))
    assert max(calls) < dim
    assert_close(found.scale_tril @ found.scale_tril.T, precision.inverse(), rtol=1e-4, atol=1e-4)


def test_a_posterior_that_is_no_gaussian() -> None:
    before = standard(10)
    found = batch_and_match(eight_schools, before)
    assert elbo(eight_schools, before, 4096) < -50.0
    assert -34.5 < elbo(eight_schools, found, 4096) < -31.3


def test_an_optimum_stays() -> None:
    target, calls = gaussian(5), []
    found = batch_and_match(lambda z: calls.append(0) or target.log_prob(z), target)
    assert_close(found.scale_tril, target.scale_tril)
    assert len(calls) < 5


def test_draws_without_a_density_are_left_out() -> None:
    narrow = Gaussian(torch.full((3,), 4.0), 0.5 * torch.eye(3))
    found = batch_and_match(gammas, narrow)
    assert found.scale_tril.isfinite().all()
    assert_close(found.loc, torch.full((3,), 5.0), rtol=0.0, atol=1.0)


def test_a_start_without_a_density_comes_back_soon() -> None:
    calls = []

    def nowhere(z: Tensor) -> Tensor:
        calls.append(0)
        return z.sum(-1) * math.nan

    found = batch_and_match(nowhere, standard(3))
    assert_close(found.loc, torch.zeros(3))
    assert len(calls) < 30


def test_single_precision_stays() -> None:
    start = Gaussian(torch.zeros(2, dtype=torch.float32), torch.eye(2, dtype=torch.float32))
    found = batch_and_match(lambda z: -(z - 3.0).square().sum(-1), start)
    assert found.loc.dtype == found.scale_tril.dtype == torch.float32
    assert_close(found.loc, torch.full((2,), 3.0, dtype=torch.float32))


def test_time_is_kept() -> None:
    start = standard(2)
    assert_close(batch_and_match(far_and_sharp, start, work=0.0).loc, start.loc)


def test_the_gaussian_is_that_of_torch() -> None:
    q = gaussian(4)
    expected = torch.distributions.MultivariateNormal(q.loc, scale_tril=q.scale_tril)
    z = q.sample(20000)
    assert_close(q.log_prob(z), expected.log_prob(z))
    assert_close(z.mean(0), q.loc, rtol=0.0, atol=5 * float(expected.stddev.max()) / math.sqrt(20000))
    assert_close(z.T.cov(), expected.covariance_matrix, rtol=0.1, atol=0.1)


def test_from_root_keeps_the_covariance() -> None:
    root = torch.randn(3, 3)
    q = Gaussian.from_root(torch.zeros(3), root)
    assert (q.scale_tril.diagonal() > 0).all()
    assert_close(q.scale_tril.triu(1), torch.zeros(3, 3))
    assert_close(q.scale_tril @ q.scale_tril.T, root @ root.T)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 2, 2)], ids=str)
def test_a_gaussian_of_wrong_shapes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected loc of shape \(D,\) and scale_tril of shape \(D, D\), got \(2,\)"):
        Gaussian(torch.zeros(2), torch.ones(shape))


def test_the_elbo_is_the_evidence_less_the_divergence() -> None:
    q, target = Gaussian(torch.tensor([1.0]), torch.tensor([[2.0]])), standard(1)
    assert elbo(lambda z: target.log_prob(z) + 7.0, q, 100_000) == pytest.approx(7.0 - (2.0 - math.log(2.0)), abs=0.05)
    assert elbo(gammas, q) == -math.inf


def test_bad_rows_do_not_spoil_the_others() -> None:
    z = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [0.0, 1.0], [3.0, 4.0]])
    values, grads = score(gammas, z)
    assert values.isfinite().tolist() == [True, False, False, True]
    assert (values[1:3] == -math.inf).all()
    assert_close(grads[[0, 3]], 4.0 / z[[0, 3]] - 1.0)
    assert (grads[1:3] == 0.0).all()


def test_a_matrix_that_cannot_be_factorised_spoils_its_row_only() -> None:
    def log_density(z: Tensor) -> Tensor:
        matrices = torch.eye(2) * z[:, :1, None]
        return torch.linalg.cholesky(matrices).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    values, grads = score(log_density, torch.tensor([[2.0], [-1.0], [4.0], [-3.0], [5.0]]))
    assert_close(values, torch.tensor([2.0, 0.0, 4.0, 0.0, 5.0]).log())
    assert_close(grads[:, 0], torch.tensor([0.5, 0.0, 0.25, 0.0, 0.2]))


def test_a_log_density_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to map \(5, 2\) to \(5,\), got \(5, 2\): sum over the last dimension"):
        score(lambda z: -z.square(), torch.zeros(5, 2))
