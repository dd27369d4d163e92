"""Fits in single, double and mixed precision, by operations that do not promote dtypes, on every path of fit."""

import sys
import warnings
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import AutoFlow, fit, flows, log_joint
from pyroflows.compile import TracedDensity
from pyroflows.fitting.coordinates import Place
from pyroflows.fitting.precision import wide_log_joint
from pyroflows.fitting.start import gaussian_at

ROWS, PART = 24, 8
NET = nn.Linear(3, 1)
Op = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def shifted(a: Tensor, b: Tensor) -> Tensor:
    return a + b.square().sum() * torch.eye(3)


# From latents (3,), rows (N, 3), images (N, 1, 4, 4) and a positive definite matrix (3, 3) to (N,).
OPS: dict[str, Op] = {
    "matmul": lambda b, x, i, a: x @ b,
    "bmm": lambda b, x, i, a: torch.bmm(x[:, None], b.expand(len(x), 3)[..., None])[:, 0, 0],
    "solve": lambda b, x, i, a: x @ torch.linalg.solve(a, b),
    "cholesky": lambda b, x, i, a: x @ torch.linalg.cholesky(shifted(a, b)) @ b,
    "conv2d": lambda b, x, i, a: F.conv2d(i, b[:1].expand(1, 1, 2, 2)).mean((1, 2, 3)),
    "scatter": lambda b, x, i, a: x[:, 0].scatter(0, torch.arange(3), b),
    "cdist": lambda b, x, i, a: torch.cdist(x, b[None])[:, 0],
    "linear": lambda b, x, i, a: F.linear(x, b[None])[:, 0],
}
MORE: dict[str, Op] = {
    "einsum": lambda b, x, i, a: torch.einsum("nd,d->n", x, b),
    "triangular": lambda b, x, i, a: x @ torch.linalg.solve_triangular(a.tril(), b[:, None], upper=False)[:, 0],
    "cholesky_solve": lambda b, x, i, a: x @ torch.cholesky_solve(b[:, None], torch.linalg.cholesky(a))[:, 0],
    "conv1d": lambda b, x, i, a: F.conv1d(i.flatten(2), b.view(1, 1, 3)).mean((1, 2)),
    "index_add": lambda b, x, i, a: x[:, 0] + torch.zeros(3).index_add(0, torch.arange(3), b).sum(),
    "scatter_made": lambda b, x, i, a: x[:, 0] + torch.zeros(3).scatter(0, torch.arange(3), b).sum(),
    "fft": lambda b, x, i, a: x[:, 0] + torch.fft.rfft(b).abs().sum(),
    "cat": lambda b, x, i, a: torch.cat([x, b.expand(len(x), 3)], -1) @ torch.ones(6),
}


def data() -> list[Tensor]:
    x = torch.randn(ROWS, 3)
    return [x, torch.randn(ROWS, 1, 4, 4), x.mT @ x / ROWS + torch.eye(3), x.sum(-1)]


def regression(op: Op, size: int | None, x: Tensor, images: Tensor, a: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", ROWS, subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(op(b, x[rows], images[rows], a), 1.0), obs=y[rows])


def check_a_density(op: Op, size: int | None, closed: bool) -> None:
    """Values and slopes for draws of both dtypes, with and without a graph, as those of the model itself."""
    given = data()
    model, args = (partial(regression, op, size), given) if not closed else (partial(regression, op, size, *given), [])
    start = AutoFlow(model, flows.full_rank).setup(*args)
    density = wide_log_joint(model, tuple(args), {}, start.space, "mixed")
    for rows in (0, 4):
        place = Place.of(density, None, gaussian_at(density.space, 1.0), rows)
        assert size or isinstance(place.density, TracedDensity) == (rows > 0)
        for dtype in (torch.float32, torch.float64):
            z = torch.full((4, 3), 0.3, dtype=dtype, requires_grad=True)
            value = place.density(z)
            (slope,) = torch.autograd.grad(value.sum(), z)
            assert slope.dtype == dtype
            if size is None:
                own = z[0].detach().float().requires_grad_()
                expected = log_joint(model, *args)(own)
                assert_close(value, expected.expand(4), rtol=1e-4, atol=1e-3, check_dtype=False)
                (wanted,) = torch.autograd.grad(expected, own)
                assert_close(slope, wanted.expand(4, 3), rtol=1e-3, atol=1e-2, check_dtype=False)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [None, PART])
def test_a1_draws_are_converted_at_the_door(op: str, size: int | None) -> None:
    check_a_density(OPS[op], size, closed=False)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS | MORE)
@pytest.mark.parametrize("size", [None, PART])
@pytest.mark.parametrize("closed", [False, True])
def test_a1_every_operation(op: str, size: int | None, closed: bool) -> None:
    check_a_density((OPS | MORE)[op], size, closed)


def with_parameters(x: Tensor, y: Tensor) -> None:
    scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ (b * scale), 1.0), obs=y)


def with_a_module(x: Tensor, y: Tensor) -> None:
    net = pyro.module("net", NET)
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(net(x)[:, 0] + x @ b, 1.0), obs=y)


def minibatch(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", len(x), subsample_size=PART) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ b, 1.0), obs=y[rows])


def plain(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("precision", ["mixed", "double", "single"])
@pytest.mark.parametrize("model", [plain, minibatch, with_parameters, with_a_module])
def test_a1_fit_runs_on_every_path(model: Callable, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules["pyroflows.fitting.problem"], "ascend", lambda affine, weights, **options: weights() is None
    )
    x, _, _, y = data()
    quick = partial(fit, model, x, y, steps=2, num_particles=4, precision=precision, progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit: |several modes")  # two steps are no fit
        fresh = quick(flow=flows.full_rank, start=None, full_rank=None)
        given = quick(guide=fresh.guide)
    assert given.sample(3)["b"].dtype == torch.float32
    assert torch.isfinite(given.log_joint(torch.zeros(2, 3, dtype=torch.float64))).all()


def test_a1_latents_of_two_dtypes_keep_them() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(a + x @ b, 1.0).to_event(1), obs=y)

    x, _, _, y = data()
    density, z = log_joint(model, x, y), torch.tensor([0.5, 0.1, 0.2, 0.3], dtype=torch.float64)
    values = {"a": z[0], "b": z[1:].float()}
    expected = poutine.trace(poutine.condition(model, values)).get_trace(x, y).log_prob_sum()
    assert_close(density(z), expected, check_dtype=False)
