"""The log joint of subsampled plates: the sum over all rows, whatever the plates, and what rows a model sees."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, tensor

from pyroflows import log_joint
from pyroflows.infer import Anchored, Gaussian
from pyroflows.model import AllRows, LogJoint

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(23, 3, generator=GENERATOR, dtype=torch.float64)
Y = (X.sum(-1) > 0).double()


def coefficients() -> Tensor:
    return pyro.sample("b", dist.Normal(torch.zeros(3).double(), 2.0).to_event(1))


def indexed(size: int | None) -> None:
    b = coefficients()
    with pyro.plate("row", len(X), subsample_size=size) as rows:
        pyro.sample("y", dist.Bernoulli(logits=X[rows] @ b), obs=Y[rows])


def by_pyro(size: int | None) -> None:
    b = coefficients()
    with pyro.plate("row", len(X), subsample_size=size):
        x, y = pyro.subsample(X, event_dim=1), pyro.subsample(Y, event_dim=0)
        pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def one_by_one(size: int | None) -> None:
    b = coefficients()
    for row in pyro.plate("row", len(X), subsample_size=size):
        pyro.sample(f"y_{row}", dist.Bernoulli(logits=X[row] @ b), obs=Y[row])


def given(size: int | None) -> None:
    b, rows = coefficients(), None if size is None else torch.arange(size) * 2
    with pyro.plate("row", len(X), subsample=rows) as rows:
        pyro.sample("y", dist.Bernoulli(logits=X[rows] @ b), obs=Y[rows])


def several(size: int | None) -> None:
    """Crossed plates, one of them alone too; another plate; scaled, masked, a factor, and data of no plate."""
    b, part = coefficients(), None if size is None else 3
    row = pyro.plate("row", len(X), subsample_size=size, dim=-2)
    column = pyro.plate("column", 7, subsample_size=part, dim=-1)
    with poutine.scale(scale=2.0), row as i, column as j:
        y = dist.Normal((X[i] @ b)[:, None] + 0.1 * j, b[0].exp())
        pyro.sample("y", y.mask(j > 1), obs=Y[i][:, None] + j)
    with column as j:
        pyro.sample("w", dist.Normal(b[1], 1.0), obs=j.double())
    with pyro.plate("other", 11, subsample_size=part) as k:
        pyro.sample("v", dist.MultivariateNormal(b, torch.eye(3).double()), obs=X[k])
        pyro.factor("f", -k * b[2])
    pyro.sample("e", dist.Normal(b.sum(), 1.0), obs=tensor(0.3).double())


def nested(size: int | None) -> None:
    b = coefficients()
    with pyro.plate("row", len(X), subsample_size=size, dim=-2) as rows, pyro.plate("column", 3, dim=-1):
        pyro.sample("y", dist.Normal(X[rows] * b, 1.0), obs=X[rows].flip(-1))


MODELS = (indexed, by_pyro, one_by_one, given, several, nested)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("size", [1, 5, 12])
def test_all_rows_count_once(model: Callable, size: int) -> None:
    whole, part, found = log_joint(model, None), log_joint(model, size), []
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for density in (whole, part):
        z = z.clone().requires_grad_()
        value = density(z)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), z)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
    assert whole.plates is None
    assert part.plates is not None
    assert not part.minibatch
    data, expected = part.observed(), whole.observed()
    assert data.keys() == expected.keys()
    assert all((data[name][0] == value).all() and data[name][1] == dims for name, (value, dims) in expected.items())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_batch_is_right_on_average(model: Callable) -> None:
    pyro.set_rng_seed(0)
    z, part = torch.tensor([[0.3, -1.0, 0.2]]).double(), log_joint(model, 6)
    found = torch.stack([part.batch(z) for _ in range(200)])
    assert ((found.mean(0) - log_joint(model, None)(z)).abs() < 4 * found.std(0) / 200**0.5).all()


def test_a_long_sum_is_traced_and_the_same() -> None:
    part, whole = log_joint(indexed, 2), log_joint(indexed, None)
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for rows in (3, 7, 10):
        traced = AllRows(part.batch, part.plates, rows, traced=True)
        values, scores = traced.value_and_score(z)
        torch.testing.assert_close(traced.values(z), values)
        torch.testing.assert_close(values, whole(z))
        torch.testing.assert_close(scores, AllRows(whole.batch, part.plates, traced=False)._plain(z, None, True)[1])


@pytest.mark.parametrize("orders", [(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)])
def test_control_variates_leave_the_mean_and_take_the_noise(orders: tuple[float, ...]) -> None:
    pyro.set_rng_seed(0)
    part, whole = log_joint(indexed, 6), log_joint(indexed, None)
    around = Gaussian(torch.full((3,), 0.2).double(), 0.5 * torch.eye(3).double())
    density = Anchored(AllRows(part.batch, part.plates), around)
    assert density._orders.tolist() == [1.0, 1.0, 1.0]
    density._orders.copy_(tensor(orders))
    z = around.sample(5)
    found = torch.stack([density(z) for _ in range(200)])
    assert ((found.mean(0) - whole(z)).abs() < 4 * found.std(0) / 200**0.5).all()
    noise = (found - found.mean(1, keepdim=True)).std(0).mean()
    assert noise < {1.0: 3.0, 2.0: 1.0, 3.0: 0.2}[sum(orders)]


def handed_in(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 20, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def half_handed_in(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 20, subsample_size=len(y)) as rows:
        pyro.sample("y", dist.Normal(mean * rows, 1.0), obs=y)


def normalised_by_batch(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 20, subsample_size=4) as rows:
        x = rows - rows.double().mean()
        pyro.sample("y", dist.Normal(mean * x, 1.0), obs=y[0])


def chosen_outside(y: Tensor, plate: pyro.plate) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with plate as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows % 4])


@pytest.mark.parametrize("model", [handed_in, half_handed_in, normalised_by_batch, chosen_outside])
def test_rows_that_cannot_be_chosen_are_not_taken_for_all(model: Callable) -> None:
    more = [pyro.plate("row", 20, subsample_size=4)] if model is chosen_outside else []
    density = LogJoint(model, (tensor([1.0, 2.0, 3.0, 5.0]), *more), {})
    assert density.minibatch
    assert density.plates is None
    assert density.observed() == {}
    assert density(torch.zeros(2, 1)).shape == (2,)
