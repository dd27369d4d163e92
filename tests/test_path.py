"""The path gradient of an ELBO: through the draws alone."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.testing import assert_close

from cases import moved
from pyroflows import AutoFlow, CompiledTrace_ELBO, FlowDistribution, flows

Y = torch.tensor([0.5, 1.5, 1.0])
ELBOS: dict[str, ELBO] = {
    "Trace": Trace_ELBO(),
    "Trace, 3 at once": Trace_ELBO(3, vectorize_particles=True),
    "TraceMeanField": TraceMeanField_ELBO(),
    "TraceGraph": TraceGraph_ELBO(),
    "compiled": CompiledTrace_ELBO(compile=False),
    "compiled, 3": CompiledTrace_ELBO(3, compile=False),
}


def model() -> None:
    with pyro.plate("row", 3):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=Y)


def exact(path: bool | None = None) -> AutoFlow:
    """A guide at the exact posterior, of means y / 2 and variances 1 / 2."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    return AutoFlow(model, path=path).setup().start_at(Y / 2, torch.eye(3) / math.sqrt(2))


def gradient(elbo: ELBO, guide: AutoFlow) -> Tensor:
    pyro.set_rng_seed(1)
    guide.zero_grad()
    elbo.loss_and_grads(model, guide)
    return torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])


@pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)
def test_no_noise_is_left_where_the_guide_is_exact(elbo: ELBO) -> None:
    assert gradient(elbo, exact()).abs().max() < 1e-5
    assert gradient(elbo, exact(path=False)).abs().max() > 1e-2


def test_the_loss_is_that_without_it() -> None:
    losses = []
    for path in (True, False):
        guide = exact(path).start_at(Y, torch.eye(3))
        pyro.set_rng_seed(1)
        losses += [elbo.loss_and_grads(model, guide) for elbo in (ELBOS["Trace"], ELBOS["compiled"])]
    assert_close(torch.tensor(losses[:2]), torch.tensor(losses[2:]))


def test_bounds_of_weighted_draws_keep_their_gradient() -> None:
    elbo = RenyiELBO(num_particles=4)
    guides = [exact(path).start_at(Y, torch.eye(3)) for path in (True, False)]
    assert_close(*(gradient(elbo, guide) for guide in guides))


@pytest.mark.parametrize("context_dim", [0, 2])
def test_the_mean_of_the_gradient_stays(context_dim: int) -> None:
    flow, context = moved(flows.realnvp(3, context_dim, layers=2, hidden_dims=(8,))), torch.randn(2, requires_grad=True)
    found = []
    for path in (True, False):
        q = FlowDistribution(transform=flow, path=path)
        q = (q.condition(context) if context_dim else q).expand((20_000,))
        torch.manual_seed(0)
        z, parts = q.rsample_and_score_parts()
        assert_close(parts.entropy_term, parts.log_prob)
        objective = (parts.entropy_term + 0.5 * z.square().sum(-1)).mean()
        given = [*flow.parameters(), *([context] if context_dim else [])]
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(objective, given)]))
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()
    assert not torch.equal(*found)


def test_parameters_stand_still_in_the_entropy_of_a_given_value() -> None:
    flow, context = moved(flows.realnvp(3, 2, layers=2, hidden_dims=(8,))), torch.randn(2, requires_grad=True)
    value = torch.randn(3, requires_grad=True)
    entropy = FlowDistribution(transform=flow, path=True).condition(context).score_parts(value).entropy_term
    entropy.backward()
    assert value.grad.abs().min() > 0
    assert context.grad is None
    assert all(p.grad is None for p in flow.parameters())


def test_a_base_that_cannot_be_differentiated_is_scored() -> None:
    base = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(3, 2), 1.0).to_event(0)
    ).to_event(1)
    parts = FlowDistribution(base, flows.realnvp(3, layers=2), path=True).score_parts(torch.zeros(3))
    assert (parts.score_function, parts.entropy_term) == (parts.log_prob, 0)
