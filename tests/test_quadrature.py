"""Rows that are not Gaussian, integrated out by quadrature: at the start, and in the weights of the globals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyroflows as pf
from pyroflows.guides import AutoPlateFlow
from pyroflows.infer.nested import sites, start
from pyroflows.infer.nested.climb import Level
from pyroflows.infer.nested.marginal import laplace_marginal
from pyroflows.infer.nested.quadrature import ORDERS, Rule, quadrature_marginal
from pyroflows.model.rows import RowJoint
from pyroflows.posterior.plates import plate_diagnostics
from pyroflows.posterior.plates.plate_posterior import PlatePosterior

ROWS, TRIALS = 400, 4


def model(y: Tensor, size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    log_spread = pyro.sample("log_spread", dist.Normal(0.0, 1.0))
    with pyro.plate("group", len(y), subsample_size=size) as rows:
        effect = pyro.sample("effect", dist.Normal(mean, log_spread.exp()))
        pyro.sample("y", dist.Binomial(TRIALS, logits=effect), obs=y[rows])


def plane(y: Tensor) -> None:
    """Two latents in a row."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("group", len(y)):
        pair = pyro.sample("pair", dist.Normal(mean, torch.tensor([1.0, 0.5])).to_event(1))
        pyro.sample("y", dist.Binomial(TRIALS, logits=pair[..., 0] + pair[..., 1] * pair[..., 0]), obs=y)


def data(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    effect = 0.5 + 1.2 * torch.randn(rows, generator=generator)
    return (torch.rand(rows, TRIALS, generator=generator) < effect.sigmoid()[:, None]).sum(-1).double()


def exact(y: Tensor, g: Tensor) -> Tensor:
    """Log density of data and globals ``(S, 2)``, by a fine grid of effects."""
    noise = torch.linspace(-9, 9, 601).double()
    effect = g[:, :1] + g[:, 1:].exp() * noise
    counts = torch.arange(TRIALS + 1).double()
    chances = dist.Binomial(TRIALS, logits=effect[..., None], validate_args=False).log_prob(counts)
    by_count = (chances + dist.Normal(0.0, 1.0).log_prob(noise)[:, None]).logsumexp(1) + math.log(0.03)
    prior = dist.Normal(0.0, torch.tensor([2.0, 1.0])).log_prob(g).sum(-1)
    return prior + by_count @ torch.bincount(y.long(), minlength=TRIALS + 1).double()


def fresh(y: Tensor) -> AutoPlateFlow:
    guide = AutoPlateFlow(model)
    return guide.setup_on(guide.read((y,), {}, torch.float64))


def test_a_rule_integrates_polynomials() -> None:
    for width, order in ORDERS.items():
        rule = Rule.of(width, torch.zeros(()).double())
        assert rule.nodes.shape == (order**width, width)
        weights = rule.log_weights.exp()
        assert weights.sum() == pytest.approx(1.0)
        assert (weights * rule.nodes[:, -1] ** 4).sum() == pytest.approx(3.0)
        assert (weights * rule.nodes.prod(-1) ** 2).sum() == pytest.approx(1.0)
    assert Rule.of(4, torch.zeros(())) is None


def test_the_marginal_of_the_globals_is_that_of_a_grid() -> None:
    y = data(ROWS)
    joint = RowJoint(model, (y,), {}, dtype=torch.float64)
    g = torch.tensor([0.3, 0.2]).double().requires_grad_()
    expected = exact(y, g[None])[0]
    (slope,) = torch.autograd.grad(expected, g)
    found = quadrature_marginal(Rule.of(1, g), joint, g, joint.start[1])
    assert found.value.item() == pytest.approx(expected.item(), abs=0.01)
    assert torch.allclose(found.grad, slope, atol=0.02)
    laplace = laplace_marginal(joint, g.detach(), joint.start[1])
    assert (laplace.grad - slope).abs().max() > 3.0


def test_a_plane_of_latents_and_rows_in_passes() -> None:
    y = data(12)
    joint = RowJoint(plane, (y,), {}, dtype=torch.float64)
    g, rule = torch.tensor([0.4]).double(), Rule.of(2, torch.zeros(()).double())
    at = quadrature_marginal(rule, joint, g, joint.start[1])
    ahead, back = (quadrature_marginal(rule, joint, g + by, joint.start[1]).value for by in (1e-4, -1e-4))
    assert at.grad.item() == pytest.approx((ahead - back).item() / 2e-4, rel=1e-3)
    whole, some = (RowJoint(model, (y, size), {}, dtype=torch.float64) for size in (None, 5))
    g, rule, z = torch.tensor([0.4, 0.1]).double(), Rule.of(1, g), torch.zeros(12, 1).double()
    assert len(some.passes) == 2
    for part, expected in zip(*(quadrature_marginal(rule, joint, g, z) for joint in (some, whole)), strict=True):
        assert torch.allclose(part, expected)


def test_the_start_of_many_rows_is_right() -> None:
    y = data(ROWS)
    guide = fresh(y)
    grid = torch.cartesian_prod(torch.linspace(0.0, 1.0, 41), torch.linspace(-0.5, 0.7, 41)).double()
    weights = torch.softmax(exact(y, grid), 0)
    mean = weights @ grid
    sd = (weights @ (grid - mean).square()).sqrt()
    assert ((guide.loc - mean).abs() / sd).max() < 0.12
    assert (guide.root @ guide.root.mT).diagonal().sqrt().div(sd).sub(1).abs().max() < 0.05


def test_where_nodes_have_no_values_the_mode_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(rule: Rule, joint: RowJoint, g: Tensor, z: Tensor) -> Level:
        return Level(g.new_tensor(torch.nan), torch.full_like(g, torch.nan), z)

    y = data(30)
    with monkeypatch.context() as patch:
        patch.setattr(start, "quadrature_marginal", lost)
        by_mode = fresh(y)
    monkeypatch.setattr(sites, "row_moments", lambda *given: (given[-1], torch.full((30, 1, 1), torch.nan)))
    found = start.nested_laplace(by_mode.joint, torch.ones(2).double())
    assert found.rule is not None
    at = sites.matched_at(found.rule, by_mode.joint, by_mode.loc, found.z)
    assert torch.equal(at.pull, sites.sites_at(by_mode.joint, by_mode.loc, found.z).pull)
    assert by_mode.form.centre.isfinite().all()


def test_weights_by_nodes_are_those_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    y = data(60)
    guide = fresh(y)
    monkeypatch.setattr(plate_diagnostics, "QUIET", 1e-9)
    posterior = PlatePosterior(guide, guide.joint, pf.infer.History(), num_draws=200)
    found, weighed = posterior.diagnostics, posterior._judged[1]
    assert found.by_nodes
    assert "each row integrated by 9 nodes" in str(found)
    assert found.noise == 0
    log_w = exact(y, weighed.g) - guide.outer_posterior().log_prob(weighed.g)
    off = torch.as_tensor(posterior.log_weights) - log_w
    assert off.std() < 1e-3
    assert off.mean().abs() < 1e-2
    levels = posterior.log_predictive(y[:7])
    apart = [exact(torch.cat([y, row[None]]), weighed.g) - exact(y, weighed.g) for row in y[:7]]
    smoothed = torch.as_tensor(posterior._judged[2]).log()
    assert torch.allclose(levels, (torch.stack(apart, 1) + smoothed[:, None]).logsumexp(0), atol=1e-3)
