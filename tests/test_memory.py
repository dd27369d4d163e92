"""Models that fill memory in place with their latents: together for many rows, and traced where shapes allow it."""

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows import log_joint
from pyroflows.compile import TracedDensity
from pyroflows.model import LogJoint

X = torch.linspace(-1.0, 2.0, 12).view(6, 2)
SEEN = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1], [0, 0], [1, 1]]).bool()
ROWS = torch.tensor([1, 0, 0, 1, 0, 0]).bool()


def by_mask(u: Tensor) -> Tensor:
    x = X.clone()
    x[~SEEN] = u
    return x


def by_mask_of_rows(u: Tensor) -> Tensor:
    x = X * 1.0
    x[ROWS] = u.view(2, 2)
    return x


def broadcast(u: Tensor) -> Tensor:
    x = torch.zeros(6, 2)
    x[ROWS] = u[:2]
    x[~SEEN] = u[3]
    x[0] = u[2]
    return x


def by_index(u: Tensor) -> Tensor:
    x, rows = X.clone(), torch.tensor([0, 2, 3])
    x[rows, 1] = u[:3]
    x[torch.tensor([1, 4])] += u[3]
    return x


def by_slices_and_views(u: Tensor) -> Tensor:
    x = torch.empty(6, 2)
    column, whole = x[:, 0], x.view(-1)
    x.fill_(0.5)
    column[1:5] = u
    whole[11].add_(u[0])
    x.t()[1].mul_(u[1])
    return x + column[:, None]


def by_loop(u: Tensor) -> Tensor:
    x = torch.zeros(6, 2)
    for i in range(1, 6):
        x[i] = 0.5 * x[i - 1] + u[i % 4]
    return x


def by_methods(u: Tensor) -> Tensor:
    x = torch.ones(6, 2)
    x.masked_fill_(SEEN, 2.0).index_add_(0, torch.tensor([0, 1]), u.view(2, 2))
    x[2:4].copy_(u.view(2, 2))
    return x


def density_of(fill: Callable[[Tensor], Tensor]) -> LogJoint:
    def model() -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(fill(u), 1.0).to_event(2), obs=torch.ones(6, 2))

    return log_joint(model)


FILLS = [by_mask, by_mask_of_rows, broadcast, by_index, by_slices_and_views, by_loop, by_methods]


@pytest.mark.parametrize("fill", FILLS)
def test_a9_rows_are_run_together(fill: Callable) -> None:
    density, z = density_of(fill), torch.randn(5, 4, requires_grad=True)
    before = X.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = density(z)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    expected = torch.stack([dist.Normal(fill(row), 1.0).log_prob(torch.tensor(1.0)).sum() for row in z]) + prior
    assert_close(found, expected)
    slopes = (torch.autograd.grad(value.sum(), z)[0] for value in (found, expected))
    assert_close(*slopes)
    assert_close(TracedDensity(density, density.space.start, 5)(z), expected)
    assert_close(sum(density.terms(z).values()), expected)
    assert torch.equal(X, before)


def test_a9_a_branch_still_runs_row_by_row() -> None:
    density = density_of(lambda u: by_mask(u) if u[0] > 0 else by_index(u))
    with pytest.warns(UserWarning, match="runs one by one"):
        assert density(torch.randn(3, 4)).shape == (3,)


def test_a14_ordered_outcomes_run_together() -> None:
    def model() -> None:
        cuts = pyro.sample("cuts", dist.Normal(torch.zeros(3), 1.0).to_event(1)).exp().cumsum(-1)
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.OrderedLogistic(u, cuts), obs=torch.tensor(2))

    density, z = log_joint(model), torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = density(z)
    assert_close(found, torch.stack([density(row) for row in z]))
