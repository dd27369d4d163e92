"""Rows left out, new rows, some rows at a time: what a posterior by plate says of rows, beside exact answers."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyroflows as pf
from pyroflows import PlatePosterior
from pyroflows.posterior.plates.loo import Loo

ROWS, EACH = 60, 4
GENERATOR = torch.Generator().manual_seed(3)
Y = 1.0 + 0.7 * torch.randn(ROWS, 1, generator=GENERATOR) + torch.randn(ROWS, EACH, generator=GENERATOR)
NEW = torch.tensor([[1.0, 2.0, 0.5, 1.5], [4.0, 5.0, 4.5, 6.0], [-2.0, -1.0, 0.0, -1.5]])


def groups(y: Tensor | None, rows: int = ROWS, size: int | None = None) -> None:
    """Groups with unknown mean and scale, with data or without."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("group", rows, subsample_size=size) as index:
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.deterministic("double", 2 * effect)
        obs = None if y is None else y[index]
        pyro.sample("y", dist.Normal(effect[..., None], torch.ones(EACH)).to_event(1), obs=obs)


class Grid:
    """The exact posterior of the globals of :func:`groups`, on a grid of the mean and the log of the scale."""

    def __init__(self) -> None:
        grid = torch.meshgrid(torch.linspace(0, 2, 151).double(), torch.linspace(-2, 1, 151).double(), indexing="ij")
        self.mean, log_scale = (part.flatten() for part in grid)
        self.scale = log_scale.exp()
        prior = dist.Normal(0.0, 5.0).log_prob(self.mean) + dist.HalfNormal(2.0).log_prob(self.scale) + log_scale
        self.log = (prior + self.rows(Y).sum(-1)).log_softmax(0)

    def rows(self, y: Tensor) -> Tensor:
        """Log densities ``(grid, rows)`` of the data of rows, with their effects integrated out."""
        y = y.double()
        middle, spread = y.mean(-1), (self.scale[:, None] ** 2 + 1 / EACH).sqrt()
        within = dist.Normal(0.0, 1.0).log_prob(y - middle[:, None]).sum(-1) + 0.5 * np.log(2 * np.pi / EACH)
        return dist.Normal(self.mean[:, None], spread).log_prob(middle) + within


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid()


@pytest.fixture(scope="module")
def fitted() -> PlatePosterior:
    torch.manual_seed(0)
    return pf.fit(groups, Y, progress=False)


def test_rows_left_out_are_those_of_a_grid(fitted: PlatePosterior, grid: Grid) -> None:
    rows, found = grid.rows(Y), fitted.loo()
    left_out = -(grid.log[:, None] - rows).logsumexp(0)
    inside = (grid.log[:, None] + rows).logsumexp(0)
    assert torch.allclose(torch.as_tensor(found.pointwise), left_out, atol=0.02)
    assert found.elpd == pytest.approx(left_out.sum().item(), abs=0.1)
    assert found.se == pytest.approx(left_out.std(correction=0).item() * ROWS**0.5, abs=0.05)
    assert found.p_loo == pytest.approx((inside - left_out).sum().item(), abs=0.1)
    assert "60 rows of 'group' left out one by one" in str(found)
    assert found.khat.max() < 0.75


def test_averages_of_rows_that_are_off_cancel_in_their_own_weights(grid: Grid) -> None:
    torch.manual_seed(0)
    guide = pf.AutoPlateFlow(groups).setup(Y)
    with torch.no_grad():
        guide.form.row[:, 1] -= 0.1
    spoilt = PlatePosterior(guide, guide.joint, pf.infer.History(), num_draws=500)
    left_out = -(grid.log[:, None] - grid.rows(Y)).logsumexp(0)
    assert spoilt.diagnostics.each > 1
    assert (torch.as_tensor(spoilt.loo().pointwise) - left_out).abs().mean() < 0.02


def test_rows_that_weights_cannot_leave_out_are_named() -> None:
    found = Loo(np.zeros(8), np.array([0.1, 0.9, -np.inf, 0.7, 0.2, 0.3, 0.4, 0.5]), 2.0, "group")
    assert list(found.worst) == [1, 3, 7, 6, 5]
    assert "k-hat >= 0.7 for 2 of 8 rows of 'group'" in found.verdict
    assert "rows 1 (0.90), 3 (0.70). Fit without each" in found.verdict
    assert Loo(np.zeros(2), np.zeros(2), 2.0, "group").verdict == "all k-hats < 0.7: good."
