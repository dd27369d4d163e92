"""Hierarchies among the globals of a guide by plate: items beside persons."""

import copy
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyroflows as pf
from pyroflows import AutoPlateFlow, CompiledTrace_ELBO, PlatePosterior, log_joint
from pyroflows.infer.nested.start import nested_laplace
from pyroflows.model.rows import RowJoint

PERSONS, ITEMS, SHIFT = 40, 6, 0.5


def answers() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    person, item = (torch.randn(n, generator=generator) for n in (PERSONS, ITEMS))
    return SHIFT * item + person[:, None] + 0.7 * torch.randn(PERSONS, ITEMS, generator=generator)


Y = answers()


def persons(y: Tensor) -> None:
    """Normal given the spread of the items."""
    spread = pyro.sample("spread", dist.LogNormal(-1.0, 1.0))
    with pyro.plate("item", ITEMS):
        item = pyro.sample("item_effect", dist.Normal(0.0, spread))
    with pyro.plate("person", PERSONS):
        person = pyro.sample("person_effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(item[..., None, :] + person[..., None], 0.7).to_event(1), obs=y)


def exact() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and sd of the log spread, and of the items' effects, on a grid of the log spread."""
    y, grid = Y.double(), torch.linspace(-6, 4, 4001).double()
    within = 0.49 * torch.eye(ITEMS).double() + 1.0
    precision = torch.linalg.inv(within)
    data = PERSONS * precision
    by_data = precision @ y.sum(0)
    covariance = torch.linalg.inv(data + torch.diag_embed((-2 * grid).exp()[:, None].expand(-1, ITEMS)))
    mean = covariance @ by_data
    log_p = dist.Normal(-1.0, 1.0).log_prob(grid) - ITEMS * grid
    log_p = log_p + 0.5 * torch.linalg.slogdet(covariance).logabsdet + 0.5 * (mean @ by_data)
    p = log_p.softmax(0)

    def moments(value: Tensor, variance: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        first = p @ value
        return first, (p @ (variance + (value - first).square())).sqrt()

    return *moments(grid), *moments(mean, covariance.diagonal(dim1=-2, dim2=-1))


def joint_of() -> RowJoint:
    return RowJoint(persons, (Y,), {}, plate="person", dtype=torch.float64)


@pytest.fixture(scope="module")
def posterior() -> PlatePosterior:
    pyro.set_rng_seed(0)
    return pf.fit(persons, Y, plates="person", progress=False)


def test_terms_add_up_to_the_log_joint_and_the_log_det() -> None:
    joint, density = joint_of(), log_joint(persons, Y.double())
    relative, space = joint.structure.outer.relative, density.space
    relative.centre(torch.full_like(joint.start[0], 0.3), torch.linspace(0.1, 1.0, ITEMS).double())
    g, z = (0.5 * torch.randn(4, *part.shape).double() for part in joint.start)
    terms, vectors = joint(g, z), joint.structure.joined(space, g, z)
    log_det = relative.call_and_ladj(g)[1]
    whole = density(vectors.to(space.start.dtype)).double()
    assert torch.allclose(terms.outer + (terms.prior + terms.rest).sum(-1), whole + log_det, atol=1e-3)
    again = joint.structure.parted(space, vectors)
    assert torch.allclose(again[0], g)
    assert torch.allclose(again[2], -log_det)


def test_coordinates_go_from_not_centred_to_centred() -> None:
    joint = joint_of()
    outer, relative = joint.structure.outer, joint.structure.outer.relative
    g = torch.tensor([[math.log(2.0), *range(ITEMS)]]).double()
    assert torch.allclose(outer.settled(g)[0][:, 1:], 2 * g[:, 1:])
    relative.as_they_are()
    assert torch.equal(outer.settled(g)[0], g)
    spread = torch.full((ITEMS,), 1.0).double()
    relative.centre(torch.tensor([math.log(2.0), *[0.0] * ITEMS]).double(), spread)
    assert torch.allclose(relative.share[1:], torch.tensor(0.75).double())  # of the precision 1, 1/4 is the prior's
    wider = torch.tensor([math.log(4.0), *range(ITEMS)]).double()
    assert torch.allclose(outer.settled(wider)[0][1:], 2 * 2**0.25 * wider[1:])


def test_the_start_is_at_the_scales_own_mode() -> None:
    joint = joint_of()
    start = nested_laplace(joint, torch.ones_like(joint.start[0]))
    mean, sd, item, item_sd = exact()
    covariance = start.outer.scale_tril @ start.outer.scale_tril.mT
    assert abs(start.outer.loc[0] - mean) < 0.25 * sd
    assert covariance[0, 0].sqrt() == pytest.approx(float(sd), rel=0.1)
    values = joint.structure.outer.constrain(start.outer.sample(20_000))[0]["item_effect"]
    assert ((values.mean(0) - item) / item_sd).abs().max() < 0.1
    assert (values.std(0) / item_sd - 1).abs().max() < 0.1


def test_a_fit_is_right(posterior: PlatePosterior) -> None:
    assert posterior.structure.plate == "person"
    assert posterior.diagnostics.grade != "do not trust"
    mean, sd, item, item_sd = exact()
    draws = posterior.refine("resample", num_draws=4000).sample(4000)
    spread = draws["spread"].log()
    assert abs(spread.mean() - mean) < 0.1 * sd
    assert spread.std() == pytest.approx(float(sd), rel=0.1)
    assert ((draws["item_effect"].mean(0) - item) / item_sd).abs().max() < 0.1


def test_the_guide_has_the_density_that_is_said(posterior: PlatePosterior) -> None:
    trace = poutine.trace(posterior.guide).get_trace(Y)
    trace.compute_log_prob()
    values = {name: trace.nodes[name]["value"] for name in ("spread", "item_effect", "person_effect")}
    said = posterior.log_prob({name: value[None].double() for name, value in values.items()})
    assert said.item() == pytest.approx(trace.log_prob_sum().item(), rel=1e-4)


def test_weights_are_those_of_all_latents(posterior: PlatePosterior) -> None:
    draws = posterior.sample(50, seed=1)
    density = log_joint(persons, Y.double())
    vectors, ladj = density.space.unconstrain(draws)
    log_p = density(vectors.to(density.space.start.dtype)) + ladj
    weights = log_p - posterior.log_prob(draws)
    assert weights.mean().item() == pytest.approx(posterior.diagnostics.elbo, abs=0.3)


def test_a_saved_posterior_has_its_coordinates(posterior: PlatePosterior, tmp_path: Path) -> None:
    posterior.save(tmp_path / "fit.pt")
    again = PlatePosterior.load(tmp_path / "fit.pt", persons, Y)
    assert again.structure.outer.relative.share[1:].min() > 0
    assert torch.equal(again.sample(3, seed=0)["item_effect"], posterior.sample(3, seed=0)["item_effect"])


def test_a_fit_that_goes_on_has_its_coordinates(posterior: PlatePosterior) -> None:
    more = pf.fit(persons, Y, guide=copy.deepcopy(posterior.guide), progress=False)
    assert torch.equal(more.structure.outer.relative.share, posterior.structure.outer.relative.share)
    assert more.diagnostics.elbo > posterior.diagnostics.elbo - 0.1


@pytest.mark.parametrize("elbo", [Trace_ELBO(4, vectorize_particles=True), CompiledTrace_ELBO(4, compile=False)])
def test_any_loop_of_svi(elbo: Trace_ELBO) -> None:
    pyro.set_rng_seed(0)
    guide = AutoPlateFlow(persons, "person")
    svi = SVI(persons, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    losses = [svi.step(Y) for _ in range(5)]
    assert losses[0] == pytest.approx(losses[-1], abs=2.0)
