"""A posterior keeps the values of its model's own parameters, whatever a later fit makes of them."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import AutoFlow, Posterior, fit, flows
from pyroflows.compile import TracedDensity
from pyroflows.model import LogJoint
from pyroflows.model.parameters import Holding
from pyroflows.training import History

X = torch.linspace(-1.0, 1.0, 6)[:, None]


def by_param() -> Callable:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = pyro.deterministic("mean", z * scale * x)
        pyro.sample("y", dist.Normal(mean, scale).to_event(2), obs=x)

    return model


def by_module() -> Callable:
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = pyro.deterministic("mean", z * net(x))
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=x)

    return model


def by_lstm() -> Callable:
    net = nn.LSTM(1, 2)

    def model(x: Tensor) -> None:
        pyro.module("lstm", net)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = pyro.deterministic("mean", z * net(x)[0].sum(-1, keepdim=True))
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=x)

    return model


class Module(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)
        self.shift = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = pyro.deterministic("mean", z * self.linear(x) + self.shift)
        pyro.sample("y", dist.Normal(mean, self.scale).to_event(2), obs=x)


def by_method() -> Callable:
    return Module().forward


MODELS = {"param": by_param, "module": by_module, "lstm": by_lstm, "PyroModule": Module, "nested": lambda: Wrapped()}


class Wrapped(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Module()

    def forward(self, x: Tensor) -> None:
        self.inner(x)


def posterior_of(model: Callable) -> Posterior:
    guide = AutoFlow(model, flows.full_rank, init_scale=0.5).setup(X)
    return Posterior(guide, LogJoint(model, (X,), {}, guide.space), History(), num_draws=200)


def move(model: Callable) -> None:
    """What a later fit does to all parameters of a model."""
    tensors = [value.unconstrained() for value in dict(pyro.get_param_store().items()).values()]
    tensors += [*model.parameters()] if isinstance(model, nn.Module) else []
    for tensor in {id(t): t for t in tensors}.values():
        tensor.data += 1.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("forget", [False, True])
def test_a7_a_later_fit_changes_nothing(name: str, forget: bool) -> None:
    pyro.clear_param_store()
    model = MODELS[name]()
    posterior, z = posterior_of(model), torch.randn(4, 1)
    before = posterior.sample(5, seed=1, deterministic=True)
    scores = posterior.log_joint(z)
    move(model)
    if forget:
        pyro.clear_param_store()
    later = posterior_of(model)
    assert_close(posterior.sample(5, seed=1, deterministic=True), before)
    assert_close(posterior.log_joint(z), scores)
    assert (later.log_joint(z) - scores).abs().min() > 1e-3 or forget
    traced = TracedDensity(posterior.log_joint, z[0], rows=1)
    assert_close(traced(z[0]), scores[0])
    kept = posterior.refine("importance", num_draws=200)
    assert_close(kept.log_joint(z), scores)


@pytest.mark.slow
def test_a7_a_fit_of_other_data() -> None:
    pyro.clear_param_store()

    def model(y: Tensor) -> None:
        variance = pyro.param("variance", torch.tensor(1.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        pyro.deterministic("sigma2", variance + 0 * mean)
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, variance.sqrt()), obs=y)

    options = {"steps": 200, "num_particles": 8, "lr": 0.05, "progress": False}
    first = fit(model, torch.tensor([-4.0, 4.0, 3.0, -3.0]), **options)
    value = first.sample(3, deterministic=True)["sigma2"]
    fit(model, torch.tensor([0.1, -0.1, 0.2]), **options)
    assert_close(first.sample(3, deterministic=True)["sigma2"], value)
    assert pyro.param("variance").item() < 0.7 * float(value[0])


def in_a_subsampled_plate(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 6, subsample_size=2) as rows:
        shift = pyro.param("shift", torch.arange(6.0), event_dim=0)
        pyro.sample("y", dist.Normal(z + shift, 1e-3), obs=y[rows])


def test_a7_parameters_of_the_rows_of_a_plate() -> None:
    guide = AutoFlow(in_a_subsampled_plate, flows.full_rank, init_scale=1e-3).setup(torch.zeros(6))
    posterior = Posterior(guide, LogJoint(in_a_subsampled_plate, (torch.zeros(6),), {}, guide.space), History())
    pyro.param("shift").unconstrained().data.add_(50.0)
    found = posterior.predict(torch.zeros(6), num_samples=20)["y"].mean(0)
    assert_close(found - found[0], torch.arange(6.0), atol=0.01, rtol=0)


def test_the_store_and_the_modules_are_left_alone() -> None:
    pyro.clear_param_store()
    module = Module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    values = {"linear.weight": torch.tensor([[7.0]]), "scale": torch.tensor(3.0), "shift": torch.tensor(1.0)}
    data = {"z": torch.tensor(1.0)}
    nodes = poutine.trace(poutine.condition(Holding(values)(module), data=data)).get_trace(X).nodes
    assert_close(nodes["mean"]["value"], 7.0 * X + module.linear.bias + 1.0)
    assert nodes["scale"]["value"] == 3.0
    assert_close(dict(module.state_dict()), before)
    with pytest.raises(ZeroDivisionError):
        Holding(values)(lambda: 1 / 0)()
    assert torch.ones(2).sum() == 2.0
