"""Linear maps and norms beyond the laws: what they can reach, exactness, statistics, and what is refused."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import moved
from pyroflows import FlowDistribution, flows
from pyroflows.density import FlowDensity
from pyroflows.transforms import (
    LU,
    QR,
    SVD,
    ActNorm,
    BatchNorm,
    Compose,
    FlowTransform,
    Householder,
    MatrixExponential,
    Orthogonal,
    Rotation,
)

EYE = torch.eye(5, dtype=torch.float64)
LINEAR = (LU, QR, SVD, Householder, Rotation, MatrixExponential)


def matrix_of(transform: FlowTransform) -> Tensor:
    return transform.double()(EYE).detach().mT


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_maps_start_at_the_identity_and_move(kind: type) -> None:
    transform = kind(5)
    assert_close(matrix_of(transform), EYE, rtol=0, atol=1e-6)
    matrix, log_det = matrix_of(moved(transform)), transform.call_and_ladj(EYE)[1][0]
    assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet)
    if kind in (Householder, Rotation):
        assert_close(matrix @ matrix.mT, EYE)
        assert torch.linalg.det(matrix) > 0


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1000.0])
def test_linear_maps_undo_themselves_in_single_precision(kind: type, size: float) -> None:
    transform, x = moved(kind(6)), size * torch.randn(50, 6)
    assert_close(transform.inv(transform(x).clone()), x, rtol=0, atol=2e-5 * size)


def test_reflections_are_those_of_a_loop() -> None:
    transform = moved(Householder(5, reflections=4)).double()
    expected = EYE
    for v in transform.params.value.view(4, 5):
        expected = expected @ (EYE - 2 * torch.outer(v, v) / (v @ v))
    assert_close(matrix_of(transform), expected.detach())


@pytest.mark.parametrize("norm", [1.0, 3.0, 8.0])
def test_a_matrix_exponential_is_exact_far_out(norm: float) -> None:
    """Where a series of eight terms is off by thousands."""
    transform = MatrixExponential(4).double()
    raw = torch.randn(4, 4, dtype=torch.float64)
    transform.params.value.data = (raw * norm / torch.linalg.matrix_norm(raw, 2)).flatten()
    x = torch.randn(7, 4, dtype=torch.float64)
    y, ladj = transform.call_and_ladj(x)
    assert_close(transform.inv(y.clone()), x, rtol=0, atol=1e-8)
    assert_close(ladj, raw.trace().mul(norm / torch.linalg.matrix_norm(raw, 2)).expand(7))


def test_known_orthogonal_matrices() -> None:
    constant, slope = torch.ones(8), torch.arange(8.0)
    cosines, haar = Orthogonal(8, "dct"), Orthogonal(8, "haar")
    for transform in (cosines, haar):
        assert_close(transform(constant), math.sqrt(8) * torch.eye(8)[0])
    expected = [math.sqrt(2 / 8) * sum(x * math.cos(math.pi / 8 * (x + 0.5) * k) for x in range(8)) for k in (1, 2)]
    assert_close(cosines(slope)[1:3], torch.tensor(expected))
    assert_close(haar(slope)[-4:], torch.full((4,), -1 / math.sqrt(2)))
    given = torch.linalg.qr(torch.randn(3, 3)).Q
    assert torch.equal(Orthogonal(3, given)(torch.eye(3)).mT, given)


def test_act_norm_is_set_by_the_first_batch_in_training_and_by_no_other() -> None:
    x = 5 + 3 * torch.randn(1000, 2)
    norm = ActNorm(2)
    norm.eval().inv(x)
    norm.train().inv(x[:1])
    assert not norm.is_set
    z = norm.inv(x)
    assert_close(torch.stack([z.mean(0), z.std(0, correction=0)]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    again, loaded = copy.deepcopy(norm), ActNorm(2)
    loaded.load_state_dict(norm.state_dict())
    for copied in (norm, again, loaded):
        copied.inv(torch.randn(1000, 2))
        assert_close(copied.inv(x.clone()), z)
    guide = ActNorm(2)
    assert_close(guide(x).std(0, correction=0), torch.ones(2))


def jacobian(transform: FlowTransform, z: Tensor) -> Tensor:
    """The log determinant of what the batch is mapped by, row by row."""
    whole = torch.autograd.functional.jacobian(lambda z: copy.deepcopy(transform)(z), z)
    return torch.stack([whole[i, :, i].slogdet().logabsdet for i in range(len(z))])


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_has_a_right_log_det_both_ways_in_both_modes(training: bool) -> None:
    norm = moved(BatchNorm(3)).double()
    norm.inv(2 + 3 * torch.randn(100, 3).double())
    norm.train(training)
    y = 1 + torch.randn(6, 3).double()
    for way in (norm, norm.inv):
        expected = jacobian(way, y)
        before = norm.mean.clone()
        assert_close(way.call_and_ladj(y)[1], expected)
        assert torch.equal(before, norm.mean) == (way is norm or not training)


def test_batch_norm_follows_its_data_also_one_by_one() -> None:
    norm, rows = BatchNorm(2, momentum=0.05), 4 + 2 * torch.randn(400, 2)
    norm.inv(rows[:50])
    assert_close(norm.mean, rows[:50].mean(0))
    for batch in rows[50:].split(10):
        norm.inv(batch)
    assert_close(norm.mean, torch.full((2,), 4.0), rtol=0, atol=0.6)
    norm.inv(rows[:1])  # and one row is a batch
    density = FlowDistribution(transform=norm.eval())
    assert density.log_prob(rows).isfinite().all()


def act_normed(input_dim: int, context_dim: int = 0) -> Compose:
    return Compose([flows.realnvp(input_dim, context_dim, layers=2, hidden_dims=(8,)), ActNorm(input_dim)])


def test_a_density_with_a_norm_is_fitted() -> None:
    rows = np.random.default_rng(0).normal(5.0, 0.1, size=(200, 2))
    density = FlowDensity(act_normed, epochs=3, random_state=0).fit(rows)
    assert density.prior_.transform[-1].is_set
    assert density.score(rows) > 1.0


MESSAGES: dict[str, tuple[Callable, str]] = {
    "odd": (lambda: QR(3, reflections=3), "QR expected an even number of reflections, got 3"),
    "few": (lambda: SVD(3, reflections=0), "SVD expected reflections to be a whole number from 2 on, got 0"),
    "rotation": (lambda: Rotation(1), "Rotation expected input_dim >= 2, got 1"),
    "name": (
        lambda: Orthogonal(3, "fourier"),
        r"one of \['random', 'dct', 'haar'\] or a matrix \(3, 3\), got 'fourier'",
    ),
    "shape": (lambda: Orthogonal(3, torch.eye(2)), r"or a matrix \(3, 3\), got \(2, 2\)"),
    "orthogonal": (lambda: Orthogonal(2, torch.ones(2, 2)), "expected Q with Q Q' = I, got one that is off by 2"),
    "momentum": (lambda: BatchNorm(2, momentum=0.0), "BatchNorm expected 0 < momentum <= 1, got 0.0"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    wrong, message = MESSAGES[name]
    with pytest.raises(ValueError, match=message):
        wrong()
