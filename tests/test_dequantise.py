"""Dequantisation: bounds that are right, learnt noise that is nearer, numbers that come back."""

import math
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import moved
from pyroflows import FlowEncoder, FlowPrior, flows
from pyroflows.dequantise import Dequantiser, bits_per_dim
from pyroflows.epochs import Batches, Epochs


def learnt(features: int = 8) -> FlowEncoder:
    return FlowEncoder(nn.Sequential(nn.Linear(3, features), nn.Tanh()), features, 3, partial(flows.realnvp, layers=2))


def wide() -> FlowEncoder:
    """Noise whose logit spreads more than that of a uniform variable, so that weights of draws are bounded."""
    encoder = moved(learnt(), by=0.05)
    encoder.transform[0].params.value.data[3:] += 1.0
    return encoder


def numbers(rows: int, levels: int) -> Tensor:
    return torch.randint(levels, (rows, 3)).double()


@pytest.mark.parametrize("noise", [None, learnt])
def test_numbers_come_back(noise: Callable | None) -> None:
    dequantise = Dequantiser(5, noise and moved(noise(), by=0.2)).double()
    x = numbers(500, 5)
    y, ladj = dequantise(x)
    assert y.shape == (500, 3)
    assert ladj.shape == (500,)
    assert torch.equal(dequantise.quantise(y), x)


def test_uniform_numbers_have_their_probability() -> None:
    # The logit of a uniform variable is logistic: the bound is then tight for every draw of the noise.
    logistic = dist.TransformedDistribution(
        dist.Uniform(torch.zeros(3).double(), 1.0), dist.transforms.SigmoidTransform().inv
    ).to_event(1)
    x = numbers(50, 16)
    y, ladj = Dequantiser(16, margin=1e-9)(x)
    assert_close(logistic.log_prob(y) + ladj, torch.full((50,), -3 * math.log(16)).double())
    assert_close(bits_per_dim(logistic.log_prob(y) + ladj, 3), torch.full((50,), 4.0).double())


@pytest.mark.parametrize("noise", [None, wide])
def test_probabilities_add_up_to_one(noise: Callable | None) -> None:
    dequantise = Dequantiser(2, noise and noise()).double()
    flow = moved(FlowPrior(3, partial(flows.realnvp, layers=2)), by=0.1).double()
    x = torch.cartesian_prod(*[torch.arange(2.0).double()] * 3)
    with torch.no_grad():
        total = dequantise.log_likelihood(flow(), x, 4000).exp().sum()
    samples = dequantise.quantise(flow().sample((20000,)))
    seen = (samples.unsqueeze(1) == x).all(-1).double().mean(0)
    # Mass of the flow outside of the margins belongs to no number: the sum stays a little below one.
    assert 0.9 < total < 1.02
    with torch.no_grad():
        assert (dequantise.log_likelihood(flow(), x, 4000).exp() < seen + 0.02).all()


def test_learnt_noise_gives_a_higher_bound() -> None:
    torch.manual_seed(0)
    x = torch.distributions.Binomial(3, torch.tensor([0.1, 0.5, 0.8])).sample((2000,))
    bounds = []
    for noise in (None, learnt(16)):
        both = nn.ModuleList([FlowPrior(3, partial(flows.nsf, layers=2, hidden_dims=(16,))), Dequantiser(4, noise)])

        def bound(x: Tensor, both: nn.ModuleList = both) -> Tensor:
            return both[1].log_likelihood(both[0](), x).mean()

        Epochs(both, lr=0.01).run(lambda x, f=bound: -f(x), Batches([x], 200), 30, progress=False)
        with torch.no_grad():
            bounds.append(torch.stack([bound(x) for _ in range(20)]).mean().item())
    exact = torch.distributions.Binomial(3, torch.tensor([0.1, 0.5, 0.8]))
    entropy = -(exact.log_prob(exact.enumerate_support()).exp() * exact.log_prob(exact.enumerate_support())).sum()
    assert bounds[0] < bounds[1] < -entropy + 0.03


WRONG: dict[str, tuple[Callable, type, str]] = {
    "levels": (lambda: Dequantiser(1), ValueError, "levels >= 2 and 0 < margin < 0.5, got 1 and 0.05"),
    "margin": (lambda: Dequantiser(2, margin=0.5), ValueError, "0 < margin < 0.5, got 2 and 0.5"),
    "range": (
        lambda: Dequantiser(4)(torch.tensor([4.0])),
        ValueError,
        "from 0 to 3, got values from 4 to 4, 0 of them",
    ),
    "scaled": (lambda: Dequantiser(4)(torch.tensor([0.5])), ValueError, "values from 0.5 to 0.5, 1 of them not whole"),
    "nan": (lambda: Dequantiser(4)(torch.tensor([math.nan])), ValueError, "whole numbers from 0 to 3"),
    "samples": (
        lambda: Dequantiser(4).log_likelihood(FlowPrior(1)(), torch.tensor([1.0]), samples=0),
        ValueError,
        "expected samples to be a whole number from 1 on, got 0",
    ),
    "integers": (lambda: Dequantiser(4)(torch.tensor([1])), TypeError, "floating-point tensor, got torch.int64: use"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
