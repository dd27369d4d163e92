"""Where globals and rows start: modes of rows, the Laplace marginal with its gradient, and its mode."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroflows.infer.nested.marginal import laplace_marginal
from pyroflows.infer.nested.rows import newton
from pyroflows.infer.nested.sites import expanded
from pyroflows.infer.nested.start import nested_laplace
from pyroflows.model.rows import RowJoint

GENERATOR = torch.Generator().manual_seed(4)
EFFECTS = 1.0 + 0.7 * torch.randn(40, generator=GENERATOR)
Y = EFFECTS[:, None] + torch.randn(40, 5, generator=GENERATOR)
COUNTS = torch.poisson(EFFECTS.exp(), generator=GENERATOR)


def normal(y: Tensor, size: int | None = None) -> None:
    """Groups with normal effects and data, whose marginal is known."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("group", len(y), subsample_size=size) as index:
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(effect[..., None], torch.ones(5)).to_event(1), obs=y[index])


def counts(y: Tensor) -> None:
    """Groups with counts, two latents in each of which one has a prior that is not normal."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("group", len(y)):
        level = pyro.sample("level", dist.Normal(mean, 0.7))
        factor = pyro.sample("factor", dist.Gamma(5.0, 5.0))
        pyro.sample("y", dist.Poisson(factor * level.exp()), obs=y)


def known(g: Tensor) -> Tensor:
    """The log marginal of :func:`normal` at a mean and a log scale, by hand."""
    mean, log_scale = g
    prior = dist.Normal(0.0, 5.0).log_prob(mean) + dist.HalfNormal(2.0).log_prob(log_scale.exp()) + log_scale
    variance = (2 * log_scale).exp() * torch.ones(5, 5).double() + torch.eye(5).double()
    return prior + dist.MultivariateNormal(mean.expand(5), variance).log_prob(Y.double()).sum()


def test_the_marginal_of_normal_rows_and_its_gradient_are_exact() -> None:
    joint = RowJoint(normal, (Y,), {}, dtype=torch.float64)
    g = torch.tensor([0.4, -0.3]).double().requires_grad_()
    level = laplace_marginal(joint, g, torch.zeros(40, 1).double())
    exact = known(g)
    assert level.value == pytest.approx(exact.item(), abs=1e-6)
    assert torch.allclose(level.grad, torch.autograd.grad(exact, g)[0], atol=1e-6)


def test_the_gradient_follows_the_modes_of_rows_that_are_not_normal() -> None:
    joint = RowJoint(counts, (COUNTS,), {}, dtype=torch.float64)
    g, z = torch.tensor([0.7]).double(), torch.zeros(40, 2).double()
    ahead, back = (laplace_marginal(joint, g + step, z).value for step in (1e-4, -1e-4))
    assert laplace_marginal(joint, g, z).grad.item() == pytest.approx((ahead - back).item() / 2e-4, rel=1e-4)


def test_newton_climbs_from_far_away_and_stops_at_modes() -> None:
    y = torch.tensor([0.0, 3.0, 50.0]).double()

    def rows(z: Tensor) -> Tensor:
        return (y[:, None] * z - z.exp() - 0.5 * (z / 3) ** 2).sum(-1)

    found = newton(rows, torch.tensor([[30.0], [-40.0], [0.0]]).double()).requires_grad_()
    assert torch.autograd.grad(rows(found).sum(), found)[0].abs().max() < 1e-4


@pytest.mark.parametrize("size", [None, 16])
def test_the_start_is_the_mode_of_the_marginal_and_its_curvature(size: int | None) -> None:
    joint = RowJoint(normal, (Y, size), {}, dtype=torch.float64)
    start = nested_laplace(joint, torch.ones(2).double())
    g = start.outer.loc.requires_grad_()
    (slope,) = torch.autograd.grad(known(g), g)
    covariance = start.outer.scale_tril @ start.outer.scale_tril.mT
    bend = -torch.autograd.functional.hessian(known, g.detach())
    assert (start.outer.scale_tril.mT @ slope).abs().max() < 0.02
    assert torch.allclose(bend @ covariance, torch.eye(2).double(), atol=0.03)
    assert start.value == pytest.approx(known(g).item(), abs=1e-6)
    precision = (-2 * g[1]).exp().item() + 5
    modes = ((-2 * g[1]).exp() * g[0] + 5 * Y.double().mean(-1)) / precision
    assert torch.allclose(start.z[:, 0], modes, atol=1e-6)


def test_the_start_of_a_scale_that_may_be_zero_is_not_the_joint_mode() -> None:
    y = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))  # groups that hardly differ
    start = nested_laplace(RowJoint(normal, (y,), {}, dtype=torch.float64), torch.ones(2).double())
    assert -4 < start.outer.loc[1] < 0
    assert start.outer.scale_tril.isfinite().all()


def test_sites_are_those_of_the_data_whatever_the_globals() -> None:
    joint = RowJoint(normal, (Y,), {}, dtype=torch.float64)
    found = expanded(joint, nested_laplace(joint, torch.ones(2).double()))
    assert torch.allclose(found.root[:, 0, 0], torch.tensor(math.sqrt(5.0)).double(), atol=1e-6)
    assert torch.allclose(found.centre[:, 0] * math.sqrt(5.0), 5 * Y.double().mean(-1), atol=1e-5)
    assert found.slopes.abs().max() < 1e-5
