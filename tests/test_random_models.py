"""Models whose log joint is random itself: refused by fit, with the site and the remedy; minibatches are not."""

import itertools
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.testing import assert_close

from pyroflows import fit, log_joint
from pyroflows.fitting.repeatable import check_repeatable

Y = torch.linspace(-1.0, 2.0, 40)
DROPOUT, CALLS = nn.Dropout(0.2), itertools.count()


def noisy(sd: float = 1.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([40]).to_event(1), obs=Y + sd * torch.randn(40))


def minibatch_by_hand() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    rows = torch.randperm(40)[:10]
    with poutine.scale(scale=4.0), pyro.plate("row", 10):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y[rows])


def dropout() -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    x = DROPOUT(torch.ones(40, 3))  # nothing to see at b = 0
    pyro.sample("y", dist.Normal(x @ b, 1.0).to_event(1), obs=Y)


def of_numpy() -> None:
    mu = pyro.sample("mu", dist.Normal(float(np.random.default_rng().normal()), 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([40]).to_event(1), obs=Y)


def of_python() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("y", -(mu - random.random()).square())


def counting() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0 + next(CALLS)).expand([40]).to_event(1), obs=Y)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (noisy, "y"),
        (partial(noisy, 1e-2), "y"),
        (minibatch_by_hand, "y"),
        (dropout, "b|y"),
        (of_numpy, "mu"),
        (of_python, "y"),
        (counting, "y"),
    ],
)
def test_a6_a_random_log_joint_is_refused(model: Callable, site: str) -> None:
    with pytest.raises(ValueError, match=rf"another one at the site '({site})': .* draw them once, before the model"):
        check_repeatable(log_joint(model))


def test_a6_fit_refuses_it() -> None:
    with pytest.raises(ValueError, match="fit expected a log joint that is the same whenever it is computed"):
        fit(noisy, steps=10, progress=False)


def chosen_by_pyro() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("column", 4, subsample_size=2, dim=-1) as j, pyro.plate("row", 10, subsample_size=3, dim=-2) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y.reshape(10, 4)[i][:, j])


def chosen_by_the_user() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 40, subsample=torch.randperm(40)[:10]) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y[rows])


def predicting() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([40]).to_event(1), obs=Y)
    pyro.deterministic("new", mu + torch.randn(()))


@pytest.mark.parametrize("model", [chosen_by_pyro, chosen_by_the_user, predicting, partial(noisy, 0.0)])
def test_a6_minibatches_and_predictions_are_not_random(model: Callable) -> None:
    runs = []
    density = log_joint(lambda: (runs.append(1), model()))
    runs.clear()
    check_repeatable(density)
    assert len(runs) > 1  # it did compare
    assert_close(density(torch.ones(1)), density(torch.ones(1)), rtol=0.0, atol=0.0)


def test_a6_dropout_that_is_off_is_not_random() -> None:
    density = log_joint(dropout)
    DROPOUT.eval()
    check_repeatable(density)
    DROPOUT.train()
    with pytest.raises(ValueError, match="another one at the site"):
        check_repeatable(density)


def test_a6_generators_are_left_alone() -> None:
    density, state = log_joint(predicting), torch.get_rng_state()
    check_repeatable(density)
    assert torch.equal(state, torch.get_rng_state())
