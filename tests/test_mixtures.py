"""Mixtures of flows, and bases with parameters of their own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.testing import assert_close

from cases import SMALL, moved
from pyroflows import FlowDistribution, FlowPrior, flows
from pyroflows.distributions import ClassBase, FlowMixture, StudentTBase
from pyroflows.vae import MixturePrior

NSF, MAF = (lambda d, c=0: flows.nsf(d, c, layers=2, **SMALL)), (lambda d, c=0: flows.maf(d, c, layers=1, **SMALL))


def test_a_mixture_of_flows_is_the_weighted_sum_of_its_parts() -> None:
    parts = [FlowDistribution(transform=moved(make(2))) for make in (NSF, MAF)]
    mixture, x = FlowMixture(torch.tensor([0.0, math.log(3.0)]), parts), torch.randn(7, 2)
    first, second = (part.log_prob(x).exp() for part in parts)
    assert_close(mixture.log_prob(x).exp(), (first + 3 * second) / 4)
    assert_close(mixture.shares(x)[:, 0], first / (first + 3 * second))


def test_draws_come_from_the_parts_as_often_as_weights_say() -> None:
    parts = [dist.Normal(torch.tensor([at]), 0.1).to_event(1) for at in (-3.0, 3.0)]
    mixture = FlowMixture(torch.tensor([[0.0, 0.0], [5.0, -5.0]]), parts)
    left = (mixture.sample((2000,)) < 0).float().mean(0).squeeze(-1)
    assert_close(left, torch.tensor([0.5, 1.0]), rtol=0, atol=0.05)
    assert mixture.expand((3, 2)).sample((4,)).shape == (4, 3, 2, 1)
    assert not mixture.has_rsample
    assert mixture.support.check(torch.zeros(1))


def test_a_mixture_of_flows_finds_two_clusters_by_svi() -> None:
    pyro.set_rng_seed(0)
    x = torch.cat([torch.randn(200, 2) * 0.3 - 2, torch.randn(100, 2) * 0.3 + 2])
    prior = MixturePrior(2, [MAF, MAF], name="prior")
    prior.loc.data.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))

    def model() -> None:
        pyro.module("prior", prior)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", prior(), obs=x)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 3e-2}), Trace_ELBO())
    for _ in range(120):
        svi.step()
    shares = prior().shares(x)
    assert shares[:200, 0].min() > 0.99 > 0.01 > shares[200:, 0].max()
    assert_close(prior.logits(None).softmax(-1), torch.tensor([2 / 3, 1 / 3]), rtol=0, atol=0.05)


def test_a_context_gates_a_mixture_and_reaches_every_part() -> None:
    prior = moved(MixturePrior(2, [NSF, MAF], context_dim=3))
    mixture = prior(torch.randn(4, 3))
    assert mixture.batch_shape == (4,)
    assert len(mixture.logits.unique(dim=0)) == 4
    mixture.log_prob(torch.randn(4, 2)).sum().backward()
    assert all(p.grad is not None for p in prior.parameters())


def test_student_tails_learn_how_heavy_the_data_are() -> None:
    torch.manual_seed(0)
    x = dist.StudentT(2.0, torch.zeros(2), 1.0).sample((2000,))
    base = StudentTBase(2)
    density = FlowDistribution(base(), flows.full_rank(2))
    assert_close(density.log_prob(x), dist.StudentT(10.0, 0.0, 1.0).log_prob(x).sum(-1))
    adam = torch.optim.Adam(base.parameters(), lr=0.2)
    for _ in range(60):
        adam.zero_grad()
        (-base().log_prob(x).mean()).backward()
        adam.step()
    assert_close(base.df, torch.full((2,), 2.0), rtol=0.2, atol=0)
    assert base().rsample((3,)).requires_grad
    assert base(temperature=0.5).base_dist.scale.tolist() == [0.5, 0.5]


def test_each_class_has_a_base_of_its_own() -> None:
    base, flow = ClassBase(3, 2), moved(NSF(3))
    density = FlowDistribution(base(torch.eye(2)), flow)
    assert density.sample((5,)).shape == (5, 2, 3)
    x, ladj = flow.inv.call_and_ladj(torch.zeros(3))
    expected = torch.stack([dist.Normal(loc, 1.0).log_prob(x).sum() + ladj for loc in base.loc])
    assert_close(density.log_prob(torch.zeros(3)), expected)


def test_a_uniform_base_has_an_image_as_support() -> None:
    uniform = dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1)
    density = FlowDistribution(uniform, moved(NSF(2)))
    assert density.support.check(density.sample((50,))).all()
    assert not density.support.check(torch.full((2,), 9.0))


def test_a_prior_takes_a_base_that_is_a_module() -> None:
    prior = FlowPrior(2, MAF, 2, base=ClassBase)
    assert prior(torch.eye(2)).sample((3,)).shape == (3, 2, 2)
    assert {"base.loc", "base.log_scale"} <= {name for name, _ in prior.named_parameters()}
    assert FlowPrior(2, MAF, base=StudentTBase)().has_rsample


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FlowMixture(torch.zeros(2), [FlowDistribution(transform=MAF(d)) for d in (2, 3)]),
            r"FlowMixture expected parts over events of one shape, got shapes \[\(2,\), \(3,\)\]",
        ),
        (lambda: FlowMixture(torch.zeros(0), []), r"expected parts over events of one shape, got shapes \[\]"),
        (
            lambda: FlowMixture(torch.zeros(3), [FlowDistribution(transform=MAF(2))] * 2),
            r"expected logits of shape \(..., 2\), one for each part, got \(3,\)",
        ),
        (lambda: MixturePrior(2, []), "MixturePrior expected one recipe or more, got none"),
        (lambda: MixturePrior(2, [lambda d: MAF(3)]), "expected a flow with input_dim=2"),
        (lambda: ClassBase(2, 0), "ClassBase expected context_dim to be a whole number from 1 on, got 0"),
        (lambda: ClassBase(2, 3)(torch.zeros(2)), r"a context of shape \(..., 3\), got \(2,\): make class numbers"),
        (lambda: StudentTBase(0), "StudentTBase expected whole numbers input_dim >= 1"),
        (lambda: FlowPrior(2, MAF, components=2, base=StudentTBase), "expected a base or components, got .* and 2"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
