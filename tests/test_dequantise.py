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
from pyroflows.training import Batches, Epochs
from pyroflows.vae import Argmax, Dequantiser, bits_per_dim


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


@pytest.mark.parametrize("noise", [None, pytest.param(wide, marks=pytest.mark.slow)])
def test_probabilities_add_up_to_one(noise: Callable | None) -> None:
    dequantise = Dequantiser(2, noise and noise()).double()
    flow = moved(FlowPrior(3, partial(flows.realnvp, layers=2)), by=0.1).double()
    x = torch.cartesian_prod(*[torch.arange(2.0).double()] * 3)
    with torch.no_grad():
        found = dequantise.log_likelihood(flow(), x, 2000).exp()
    samples = dequantise.quantise(flow().sample((20000,)))
    seen = (samples.unsqueeze(1) == x).all(-1).double().mean(0)
    # Mass of the flow outside of the margins belongs to no number: the sum stays a little below one.
    assert 0.9 < found.sum() < 1.02
    assert (found < seen + 0.02).all()


def test_learnt_noise_gives_a_higher_bound() -> None:
    torch.manual_seed(0)
    x = torch.distributions.Binomial(3, torch.tensor([0.1, 0.5, 0.8])).sample((2000,))
    bounds = []
    for noise in (None, learnt(16)):
        both = nn.ModuleList([FlowPrior(3, partial(flows.nsf, layers=2, hidden_dims=(16,))), Dequantiser(4, noise)])

        def bound(x: Tensor, both: nn.ModuleList = both) -> Tensor:
            return both[1].log_likelihood(both[0](), x).mean()

        Epochs(both, lr=0.02).run(lambda x, f=bound: -f(x), Batches([x], 200), 15, progress=False)
        with torch.no_grad():
            bounds.append(torch.stack([bound(x) for _ in range(20)]).mean().item())
    exact = torch.distributions.Binomial(3, torch.tensor([0.1, 0.5, 0.8]))
    entropy = -(exact.log_prob(exact.enumerate_support()).exp() * exact.log_prob(exact.enumerate_support())).sum()
    assert bounds[0] < bounds[1] < -entropy + 0.03


def pairs_noise() -> FlowEncoder:
    """Learnt noise for two variables of three categories each."""
    return FlowEncoder(nn.Sequential(nn.Linear(6, 32), nn.Tanh()), 32, 6, partial(flows.realnvp, layers=2))


PAIRS = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))


@pytest.mark.parametrize("noise", [None, pairs_noise])
def test_categories_come_back(noise: Callable | None) -> None:
    argmax = Argmax(3, noise and moved(noise(), by=0.2)).double()
    x = PAIRS.double().repeat(200, 1)
    y, ladj = argmax(x)
    assert (y.shape, ladj.shape) == ((1800, 6), (1800,))
    assert torch.equal(argmax.quantise(y), x)
    assert torch.equal(argmax.quantise(y.view(2, 900, 6)), x.view(2, 900, 2))


def test_bound_of_equally_likely_categories() -> None:
    # Any entry of a standard normal is as likely as another to be the largest.
    density, argmax = dist.Normal(torch.zeros(6).double(), 1.0).to_event(1), Argmax(3)
    x, exact = PAIRS.double(), torch.full((9,), -2 * math.log(3)).double()
    bound = argmax.log_likelihood(density, x.repeat(2000, 1)).view(2000, 9)
    assert (bound.mean(0) + 4 * bound.std(0) / 2000**0.5 < exact).all()
    assert_close(argmax.log_likelihood(density, x, 20000), exact, atol=0.05, rtol=0)


@pytest.mark.parametrize("noise", [None, pairs_noise])
def test_probabilities_of_categories_add_up_to_one(noise: Callable | None) -> None:
    argmax = Argmax(3, noise and noise()).double()
    flow = moved(FlowPrior(6, partial(flows.realnvp, layers=2)), by=0.1).double()
    with torch.no_grad():
        found = argmax.log_likelihood(flow(), PAIRS.double().repeat(300, 1), 10).view(300, 9).exp().mean(0)
    samples = argmax.quantise(flow().sample((40000,)))
    seen = (samples.unsqueeze(1) == PAIRS).all(-1).double().mean(0)
    assert (found < seen + 0.02).all()
    if noise is None:  # weights of draws are bounded
        assert_close(found.sum().item(), 1.0, atol=0.03, rtol=0)
        assert_close(found, seen, atol=0.02, rtol=0)


@pytest.mark.slow
def test_learns_a_correlated_pair_of_categories() -> None:
    torch.manual_seed(0)
    table = torch.tensor([0.3, 0.02, 0.02, 0.02, 0.02, 0.3, 0.02, 0.28, 0.02])
    x = PAIRS[table.multinomial(3000, replacement=True)]
    both = nn.ModuleList([FlowPrior(6, partial(flows.nsf, layers=4, hidden_dims=(32,))), Argmax(3, pairs_noise())])

    def loss(x: Tensor) -> Tensor:
        return -both[1].log_likelihood(both[0](), x).mean()

    Epochs(both, lr=0.005).run(loss, Batches([x], 200), 30, progress=False)
    with torch.no_grad():
        drawn = both[1].quantise(both[0]().sample((20000,)))
        bound = torch.stack([-loss(x) for _ in range(20)]).mean()
    seen = (drawn.unsqueeze(1) == PAIRS).all(-1).float().mean(0)
    assert_close(seen, table, atol=0.04, rtol=0)
    counts = (x.unsqueeze(1) == PAIRS).all(-1).float().mean(0)
    best = (counts * counts.log()).sum()
    assert best - 0.25 < bound < best


WRONG: dict[str, tuple[Callable, type, str]] = {
    "levels": (lambda: Dequantiser(1), ValueError, "Dequantiser expected levels >= 2, got 1"),
    "margin": (lambda: Dequantiser(2, margin=0.5), ValueError, "0 < margin < 0.5, got 0.5"),
    "range": (
        lambda: Dequantiser(4)(torch.tensor([4.0])),
        ValueError,
        "from 0 to 3, got values from 4 to 4, 0 of them",
    ),
    "scaled": (lambda: Dequantiser(4)(torch.tensor([0.5])), ValueError, "values from 0.5 to 0.5, 1 of them not whole"),
    "nan": (lambda: Dequantiser(4)(torch.tensor([math.nan])), ValueError, "whole numbers from 0 to 3"),
    "categories": (
        lambda: Argmax(3)(torch.tensor([3.0])),
        ValueError,
        "Argmax expected whole numbers from 0 to 2, got",
    ),
    "integer_categories": (lambda: Argmax(3)(torch.tensor([1])), TypeError, "Argmax expected .* got torch.int64: use"),
    "one_category": (lambda: Argmax(1), ValueError, "Argmax expected levels >= 2, got 1"),
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
