"""Models, guides and comparisons for the tests of CompiledTrace_ELBO."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyroflows import AutoFlow, CompiledTrace_ELBO, flows

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SD = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
replayed = partial(CompiledTrace_ELBO, compile=False, strict=True)


def schools(y: Tensor = Y) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, SD[: len(y)]), obs=y)


def by_hand(y: Tensor = Y) -> None:
    for name in ("mu", "tau"):
        loc = pyro.param(f"{name}_loc", torch.tensor(0.1))
        scale = pyro.param(f"{name}_scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample(name, (dist.Normal if name == "mu" else dist.LogNormal)(loc, scale))
    with pyro.plate("school", len(y)):
        pyro.sample("theta", dist.Normal(pyro.param("theta_loc", lambda: torch.randn(len(y))), 1.0))


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(10))
        self.scale = PyroParam(torch.ones(10), constraint=constraints.positive)

    def forward(self, y: Tensor = Y) -> None:
        loc, scale = self.loc, self.scale
        pyro.sample("mu", dist.Normal(loc[0], scale[0]))
        pyro.sample("tau", dist.LogNormal(loc[1], scale[1]))
        with pyro.plate("school", len(y)):
            pyro.sample("theta", dist.Normal(loc[2:], scale[2:]))


def parts(model: Callable) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["mu", "tau"])))
    guide.append(AutoNormal(poutine.block(model, hide=["mu", "tau"])))
    return guide


GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoDelta": AutoDelta,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    "AutoFlow coupling": partial(AutoFlow, flow=partial(flows.realnvp, layers=2, hidden_dims=[8])),
    "AutoFlow iaf": partial(AutoFlow, flow=partial(flows.iaf, layers=2, hidden_dims=[16])),
    "AutoGuideList": parts,
    "by hand": lambda model: by_hand,
    "PyroModule": lambda model: Guide(),
}


def grads(elbo: Trace_ELBO, model: Callable, guide: Callable, *args: object, seed: int = 7) -> tuple[float, dict]:
    """The loss, and the gradients by parameter, from one seed."""
    store = pyro.get_param_store()
    for _, leaf in store.named_parameters():
        leaf.grad = None
    pyro.set_rng_seed(seed)
    loss = elbo.loss_and_grads(model, guide, *args)
    return loss, {name: leaf.grad for name, leaf in store.named_parameters() if leaf.grad is not None}


def assert_equal_to_plain(model: Callable, guide: Callable, *args: object, elbo: Trace_ELBO | None = None) -> None:
    """With one particle, replay and plain Pyro draw the same numbers."""
    elbo = elbo or replayed()
    plain = Trace_ELBO(max_plate_nesting=1)
    plain.loss(model, guide, *args)
    (loss, gradients), (expected, wanted) = grads(elbo, model, guide, *args), grads(plain, model, guide, *args)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
