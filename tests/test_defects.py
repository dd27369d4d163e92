"""Defects of the flows of Pyro 1.9.2, each as a test that pyroflows passes; those of guides are elsewhere."""

import copy
import io
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, ReweightedWakeSleep, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.testing import assert_close

from cases import LAYERS, TRACER_WARNING, D, base, density, every_layer, layer, moved
from pyroflows import flows
from pyroflows import transforms as tr
from pyroflows.bijectors import Affine
from pyroflows.distributions import FlowDistribution


@every_layer
def test_defect_04_stale_log_prob(name: str) -> None:
    flow, value = layer(name), torch.randn(64, D)
    d = density(flow)
    with torch.no_grad():
        before = d.log_prob(value)
        moved(flow)
        after = d.log_prob(value)
        assert_close(after, d.log_prob(value.clone()))
    assert not torch.allclose(before, after)


@pytest.mark.filterwarnings(TRACER_WARNING)
@pytest.mark.parametrize("name", ["affine_coupling", "spline_autoregressive", "lower_triangular"])
def test_defect_04_stale_log_prob_under_the_compiler(name: str) -> None:
    flow, value = layer(name), torch.randn(8, D)
    torch.compiler.reset()
    run = torch.compile(flow.call_and_ladj, backend="eager")
    with torch.no_grad():
        before, _ = run(value)
        moved(flow)
        after, _ = run(value)
    assert not torch.allclose(before, after, rtol=1e-4, atol=1e-4)
    assert_close(after, flow(value), rtol=1e-4, atol=1e-4)  # a compiler may add up in another order


@every_layer
def test_defect_05_svi_on_a_fixed_dataset_crashes(name: str) -> None:
    flow, data = layer(name), torch.randn(20, D)

    def model(x: Tensor) -> None:
        pyro.module("f", flow)
        with pyro.plate("n", len(x)):
            pyro.sample("x", density(flow), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(10)]
    assert losses[-1] < losses[0]


@every_layer
def test_defect_06_no_gradient_when_scoring_a_sample(name: str) -> None:
    flow = layer(name)
    d = density(flow)
    x = d.sample((5,))
    d.log_prob(x).sum().backward()
    got = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    d.log_prob(x.clone()).sum().backward()
    assert_close(got, [p.grad for p in flow.parameters()])


@every_layer
def test_defect_07_ladj_ignores_its_arguments(name: str) -> None:
    flow, x1, x2 = layer(name), torch.randn(3, D), torch.randn(3, D)
    y1 = flow(x1)
    first = flow.log_abs_det_jacobian(x1, y1)
    flow(x2)
    assert_close(flow.log_abs_det_jacobian(x1, y1), first)


@every_layer
def test_defect_08_missing_inverses(name: str) -> None:
    flow = layer(name)
    d = density(flow)
    x, _ = d.rsample((3,)), d.rsample((3,))
    assert_close(flow(flow.inv(x.clone())), x, rtol=1e-4, atol=1e-4)
    assert d.log_prob(x).shape == (3,)


def test_defect_08_weight_tied_layer_used_twice() -> None:
    flow = layer("affine_autoregressive")
    for transforms in ([flow, flow], [flow, dist.transforms.TanhTransform(cache_size=1)]):
        d = dist.TransformedDistribution(base(), transforms)
        x = d.rsample((3,))
        assert_close(d.log_prob(x), d.log_prob(x.clone()), rtol=1e-3, atol=1e-3)
    tied = tr.Compose([flow, flow])
    x = density(tied).rsample((3,))
    assert_close(density(tied).log_prob(x), density(tied).log_prob(x.clone()), rtol=1e-3, atol=1e-3)


def test_defect_08_reweighted_wake_sleep_and_mean_field() -> None:
    flow = moved(flows.iaf(D, layers=2))

    def model() -> None:
        pyro.module("prior", flow)
        z = pyro.sample("z", density(flow))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    guide = AutoNormal(model)
    for elbo in (ReweightedWakeSleep(num_particles=2), Trace_ELBO()):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        assert torch.tensor(svi.step()).isfinite().all()  # the store is complete from here on
        before = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}
        assert torch.tensor([svi.step() for _ in range(3)]).isfinite().all()
        assert len(before) == len(list(guide.parameters())) + len(list(flow.parameters()))
        assert all(not torch.equal(p, before[name]) for name, p in pyro.get_param_store().named_parameters())


def test_defect_08_prior_under_nuts() -> None:
    flow = moved(flows.maf(2, layers=2, hidden_dims=(8,))).requires_grad_(False)

    def model() -> None:
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow]))

    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=4, warmup_steps=4, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["z"]
    assert z.isfinite().all()
    assert len(z.unique(dim=0)) > 1  # without gradients all would be refused


@every_layer
def test_defect_09_deepcopy_after_use(name: str) -> None:
    flow, x = layer(name), torch.randn(3, D)
    y = flow(x)
    y.sum().backward()
    assert torch.equal(copy.deepcopy(flow)(x), y)


@every_layer
def test_defect_09_saving_after_a_large_batch(name: str) -> None:
    def size(flow: tr.FlowTransform) -> int:
        buffer = io.BytesIO()
        torch.save(flow, buffer)
        return buffer.tell()

    flow = layer(name)
    before = size(flow), len(pickle.dumps(flow))
    y = flow(torch.randn(2000, D))
    assert y.requires_grad
    assert (size(flow), len(pickle.dumps(flow))) == before


@pytest.mark.parametrize("name", ["affine", "affine_autoregressive", "affine_coupling", "lower_triangular", "nsf"])
def test_defect_10_shared_noise_across_context_rows(name: str) -> None:
    make = {
        "affine": lambda: tr.Affine(3, 2),
        "affine_autoregressive": lambda: tr.Autoregressive(3, Affine(), 2),
        "affine_coupling": lambda: tr.Coupling(3, Affine(), 2),
        "lower_triangular": lambda: tr.LowerTriangular(3, 2),
        "nsf": lambda: flows.nsf(3, 2, layers=2),
    }
    flow = moved(make[name]())
    normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    pyro_way = dist.ConditionalTransformedDistribution(normal, [flow]).condition(torch.zeros(5, 2))
    for d in (pyro_way, FlowDistribution(normal, flow).condition(torch.zeros(5, 2))):
        x = d.sample()
        assert d.batch_shape == (5,)
        assert len(x.unique(dim=0)) == 5
        assert d.log_prob(x).shape == (5,)


def test_defect_11_permutations_are_not_saved() -> None:
    def build(seed: int) -> tr.FlowTransform:
        torch.manual_seed(seed)
        return moved(tr.Compose([tr.Coupling(9, Affine()), tr.Permute(9), tr.Coupling(9, Affine())]))

    first, second, x = build(1), build(2), torch.randn(3, 9)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(x), second(x))
    assert second[1].to("meta").order.device.type == "meta"


def test_defect_12_the_inverse_loses_its_parameters() -> None:
    class Holder(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = layer("affine_coupling").inv

    holder = Holder()
    assert len(list(holder.parameters())) == len(list(LAYERS["affine_coupling"]().parameters()))
    assert isinstance(holder.flow, nn.Module)


def test_defect_13_a_chain_is_two_lists() -> None:
    chain, x = tr.Compose([tr.Permute(D), tr.Permute(D)]), torch.randn(3, D)
    chain.transforms[0] = layer("affine_coupling")
    chain.transforms[1] = layer("spline_coupling")
    assert_close(chain(x), chain.transforms[1](chain.transforms[0](x)))
    chain.transforms.append(tr.Permute(D, "reversed"))
    assert_close(chain(x), chain.transforms[1](chain.transforms[0](x)).flip(-1))
    assert list(chain) == list(chain.transforms)
