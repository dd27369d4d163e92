"""Every reparameterised family that Pyro users take for guides is traced, with Pyro's own draws."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import constraints

from elbo_cases import assert_equal_to_plain, grads, replayed


def positive(name: str, value: float | list[float]) -> Tensor:
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


FAMILIES = {
    "Gamma": lambda: dist.Gamma(positive("a", 2.0), positive("b", 1.0)),
    "Beta": lambda: dist.Beta(positive("a", 2.0), positive("b", 1.0)),
    "Dirichlet": lambda: dist.Dirichlet(positive("a", [2.0, 3.0, 1.0])),
    "Dirichlets": lambda: dist.Dirichlet(positive("a", [2.0, 3.0, 1.0])).expand([2]).to_event(1),
    "StudentT": lambda: dist.StudentT(positive("a", 3.0), positive("b", 1.0)),
    "Gumbel": lambda: dist.Gumbel(positive("a", 2.0), positive("b", 1.0)),
    "Laplace": lambda: dist.Laplace(positive("a", 2.0), positive("b", 1.0)),
    "Exponential": lambda: dist.Exponential(positive("a", 2.0)),
    "Weibull": lambda: dist.Weibull(positive("a", 2.0), positive("b", 1.0)),
    "Uniform": lambda: dist.Uniform(0.0, positive("a", 1.0)),
    "MultivariateNormal": lambda: dist.MultivariateNormal(positive("a", [1.0, 2.0]), torch.eye(2)),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_draws(family: Callable) -> None:
    def guide() -> None:
        pyro.sample("z", family())

    def model() -> None:
        shape = family().event_shape
        pyro.sample("z", dist.Normal(torch.zeros(shape), 3.0).to_event(len(shape)))

    assert_equal_to_plain(model, guide)
    one, many = replayed(), replayed(num_particles=16)
    spread = [torch.tensor([e.loss(model, guide) for _ in range(300)]).std() for e in (one, many)]
    # Independent particles: the spread of their mean is a quarter.
    assert 0.1 < spread[1] / spread[0] < 0.5


def test_gradient_through_many_dirichlets_has_the_same_mean() -> None:
    def guide() -> None:
        pyro.sample("z", dist.Dirichlet(positive("a", [2.0, 3.0, 1.0])))

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.arange(3.0), 0.5).to_event(1))

    guide()
    ours = grads(replayed(num_particles=5000), model, guide)[1]
    theirs = grads(Trace_ELBO(5000, vectorize_particles=True, max_plate_nesting=0), model, guide)[1]
    torch.testing.assert_close(ours["a"], theirs["a"], rtol=0.1, atol=0.1)
