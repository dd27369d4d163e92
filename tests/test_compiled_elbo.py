"""CompiledTrace_ELBO gives what Trace_ELBO gives, for every kind of model and guide, or falls back with a reason."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from elbo_cases import GUIDES, SD, Y, assert_equal_to_plain, by_hand, grads, replayed, schools
from pyroflows import AutoFlow, CompiledTrace_ELBO, flows


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_equals_trace_elbo_from_the_same_seed(make: Callable) -> None:
    assert_equal_to_plain(schools, make(schools), Y)


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_trains_like_trace_elbo(make: Callable) -> None:
    guide = make(schools)
    elbo = replayed(num_particles=8)
    svi = SVI(schools, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    first = svi.step(Y)
    for _ in range(60):
        svi.step(Y)
    mean = sum(elbo.loss(schools, guide, Y) for _ in range(60)) / 60
    plain = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    expected = plain.loss(schools, guide, Y)
    assert mean < first
    assert mean == pytest.approx(expected, rel=0.03)
    assert elbo.traces == 2


def test_gradient_of_many_particles_has_the_same_mean() -> None:
    guide = AutoNormal(schools)
    guide(Y)
    ours = grads(replayed(num_particles=4000), schools, guide, Y)[1]
    plain = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    theirs = grads(plain, schools, guide, Y)[1]
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0.15, atol=0.15, msg=name)


def test_parameters_of_a_module_that_pyro_does_not_know_get_gradients() -> None:
    net = nn.Linear(1, 1)

    def model() -> None:
        pyro.sample("z", dist.Normal(net(torch.ones(1)), 1.0).to_event(1))

    guide = AutoDelta(model)
    guide()
    found = []
    for elbo in (replayed(), Trace_ELBO()):
        net.zero_grad()
        elbo.loss_and_grads(model, guide)
        found.append([p.grad for p in net.parameters()])
    z = pyro.param("AutoDelta.z").detach()
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], [(net(torch.ones(1)) - z)[None].detach(), (net(torch.ones(1)) - z).detach()])


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 4, 2, 1))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("image", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("image", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_convolutional_vae_takes_new_minibatches_without_a_new_trace() -> None:
    vae, elbo = VAE(), replayed(num_particles=3)
    batches = torch.rand(4, 5, 1, 8, 8).round()
    assert_equal_to_plain(vae.model, vae.guide, batches[0])
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = [svi.step(batch) for batch in batches.repeat(8, 1, 1, 1, 1)]
    assert elbo.traces == 1
    assert losses[-1] < losses[0]
    svi.step(batches[0, :3])
    assert elbo.traces == 2
    # Bound methods are new objects at each access.
    elbo.loss_and_grads(vae.model, vae.guide, batches[1])
    assert elbo.traces == 2


def subsampled(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("x", len(x), subsample_size=2) as index:
        pyro.sample("obs", dist.Normal(loc, 1.0), obs=x[index])


@pytest.mark.parametrize("num_particles", [1, 5])
def test_subsample_indices_are_drawn_anew(num_particles: int) -> None:
    x, guide, elbo = 100.0 * torch.arange(6.0), AutoDelta(subsampled), replayed(num_particles=num_particles)
    pairs = {(i, j) for i in range(6) for j in range(i)}
    losses = {round(elbo.loss(subsampled, guide, x)) for _ in range(400)}
    assert len(losses) == len(pairs)
    assert elbo.traces == 1


def test_subsampling_has_the_mean_of_all_data() -> None:
    x = torch.tensor([0.1, 0.4, -0.3, 1.0, 0.2, -0.8])
    guide, elbo = AutoDelta(subsampled), replayed()
    losses = {round(elbo.loss(subsampled, guide, x), 5) for _ in range(200)}
    assert len(losses) == 15  # one for each pair
    loc = guide.median(x)["loc"]
    whole = dist.Normal(0.0, 1.0).log_prob(loc) + dist.Normal(loc, 1.0).log_prob(x).sum()
    assert sum(losses) / 15 == pytest.approx(-whole.item(), abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        partial(poutine.scale, scale=0.3),
        partial(poutine.mask, mask=torch.tensor([True, False] * 4)),
        partial(poutine.block, hide=["y"]),
    ],
    ids=["scale", "mask", "block"],
)
def test_handlers(change: Callable) -> None:
    def likelihood(theta: Tensor) -> None:
        pyro.sample("y", dist.Normal(theta, SD), obs=Y)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("school", 8):
            change(likelihood)(mu)

    assert_equal_to_plain(model, AutoNormal(model))


def test_handler_around_model_and_guide() -> None:
    guide = AutoNormal(schools)
    guide(Y)
    assert_equal_to_plain(poutine.scale(schools, 0.1), poutine.scale(guide, 0.1), Y)


def test_parameters_of_the_model_and_random_modules() -> None:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

        def forward(self, x: Tensor, y: Tensor) -> None:
            noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    model = Regression()
    guide = AutoDiagonalNormal(model)
    assert_equal_to_plain(model, guide, torch.randn(9, 2), torch.randn(9))
    elbo = replayed(num_particles=4)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    before = pyro.param("noise").item()
    svi.step(torch.randn(9, 2), torch.randn(9))
    assert pyro.param("noise").item() != before


@pytest.mark.parametrize("local", [False, True])
def test_module_form_with_a_torch_optimizer(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        guide, elbo = AutoNormal(schools), replayed(num_particles=8)
        loss = elbo(schools, guide)
        loss(Y)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
        values = []
        for _ in range(40):
            optimizer.zero_grad()
            value = loss(Y)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert sum(values[-10:]) < sum(values[:10])
        assert elbo.traces == 1


def test_differentiable_loss_reaches_arguments() -> None:
    def model(loc: Tensor) -> None:
        pyro.sample("z", dist.Normal(loc, 1.0))

    def guide(loc: Tensor) -> None:
        pyro.sample("z", dist.Delta(pyro.param("at", torch.tensor(2.0))))

    loc = torch.tensor(0.5, requires_grad=True)
    (replayed().differentiable_loss(model, guide, 2 * loc) * 3).backward()
    assert loc.grad == pytest.approx(-3 * 2 * (2.0 - 1.0))
    assert pyro.get_param_store()._params["at"].grad == pytest.approx(3.0)


def test_seed_reproduces_a_run() -> None:
    def run() -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        svi = SVI(schools, AutoNormal(schools), pyro.optim.Adam({"lr": 0.01}), elbo)
        return [svi.step(Y) for _ in range(5)]

    elbo = replayed(num_particles=4)
    assert run() == run()


def test_cache_is_bounded_and_statics_are_part_of_the_key() -> None:
    def model(y: Tensor, scale: float = 1.0) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), scale), obs=y)

    guide, elbo = AutoDelta(model), replayed(cache_size=2)
    for scale in (1.0, 2.0, 3.0):
        plain = Trace_ELBO().loss(model, guide, Y[0], scale=scale)
        assert elbo.loss(model, guide, Y[0], scale=scale) == pytest.approx(plain)
    assert len(elbo._graphs) == 2
    assert elbo.traces == 3


def test_cleared_store_means_new_parameters() -> None:
    elbo = replayed()
    elbo.loss(schools, by_hand)
    pyro.clear_param_store()
    assert_equal_to_plain(schools, by_hand, elbo=elbo)
    assert len(pyro.get_param_store()) == 5


@pytest.mark.parametrize("make", [AutoNormal, GUIDES["AutoFlow coupling"]])
def test_elbo_and_guide_are_copied_and_pickled(make: Callable) -> None:
    guide, elbo = make(schools), replayed(num_particles=4)
    SVI(schools, guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(Y)
    for twin in (copy.deepcopy(elbo), pickle.loads(pickle.dumps(elbo))):
        assert not twin._graphs
        assert twin.num_particles == 4
        twin.loss(schools, guide, Y)
    twin = copy.deepcopy(guide)
    pyro.clear_param_store()
    twin(Y)
    assert pickle.loads(pickle.dumps(guide)) is not None


def test_compiled_trains() -> None:
    guide, elbo = AutoNormal(schools), CompiledTrace_ELBO(num_particles=4, strict=True)
    svi = SVI(schools, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step(Y) for _ in range(30)]
    assert sum(losses[-10:]) < sum(losses[:10])
    found = []
    for each in (elbo, replayed(num_particles=4)):
        pyro.set_rng_seed(2)
        found.append([each.loss(schools, guide, Y) for _ in range(5)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


DEEP = {
    f"AutoFlow {recipe.__name__}": partial(AutoFlow, flow=partial(recipe, layers=3, hidden_dims=[16, 16]))
    for recipe in (flows.maf, flows.iaf, flows.realnvp, flows.nsf)
}


@pytest.mark.slow
@pytest.mark.parametrize("make", [*GUIDES.values(), *DEEP.values()], ids=[*GUIDES, *DEEP])
def test_compiled_equals_trace_elbo_from_the_same_seed(make: Callable) -> None:
    guide = make(schools)
    assert_equal_to_plain(schools, guide, Y, elbo=CompiledTrace_ELBO(strict=True))
    many, wanted = (grads(elbo, schools, guide, Y) for elbo in (CompiledTrace_ELBO(64, strict=True), replayed(64)))
    assert many[0] == pytest.approx(wanted[0], rel=1e-5)
    for name, gradient in many[1].items():
        torch.testing.assert_close(gradient, wanted[1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_compiled_vae_with_new_minibatches() -> None:
    vae, elbo = VAE(), CompiledTrace_ELBO(num_particles=2, strict=True)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    batches = torch.rand(4, 5, 1, 8, 8).round()
    losses = [svi.step(batch) for batch in batches.repeat(20, 1, 1, 1, 1)]
    assert losses[-1] < losses[0]
    assert elbo.traces == 1
