"""Numerical defects of the flows of Pyro 1.9.2, each as a test that pyroflows passes."""

import pyro.distributions as dist
import pytest
import torch
from torch.func import vmap
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from cases import LAYERS, TRACER_WARNING, D, base, density, every_layer, layer, moved
from pyroflows import flows
from pyroflows import transforms as tr
from pyroflows.bijectors import RQSpline
from pyroflows.distributions import FlowDistribution


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("structure", ["coupling", "autoregressive"])
def test_defect_14_quadratic_splines_are_broken(structure: str, context_dim: int) -> None:
    flow = moved(flows.nsf(D, context_dim, structure=structure, layers=2))
    assert {type(part.bijector) for part in flow if hasattr(part, "bijector")} == {RQSpline}
    assert flow(torch.randn(3, D), torch.randn(3, 2) if context_dim else None).shape == (3, D)


def test_defect_15_a_conditional_linear_map_cannot_score_a_batch() -> None:
    flow, context = moved(tr.LowerTriangular(D, 2, rank=1)), torch.randn(5, 2)
    d = dist.ConditionalTransformedDistribution(base(), [flow]).condition(context)
    x = torch.randn(3, 5, D)
    one = dist.ConditionalTransformedDistribution(base(), [flow]).condition(context[1])
    assert d.log_prob(x).shape == (3, 5)
    assert_close(d.log_prob(x)[:, 1], one.log_prob(x[:, 1]), rtol=1e-4, atol=1e-4)


@every_layer
def test_defect_16_ladj_is_wrong_while_training(name: str) -> None:
    flow, x = layer(name).double(), torch.randn(D).double()
    results = [flow.train(mode).call_and_ladj(x) for mode in (True, False)]
    assert_close(results[0], results[1])
    _, ladj = flow.train().call_and_ladj(x)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.call_and_ladj(z)[0], x)
    assert_close(ladj, jacobian.slogdet().logabsdet)


@every_layer
def test_defect_17_own_samples_are_rejected(name: str) -> None:
    d = density(layer(name))
    x = d.sample((1000,))
    assert d.support.check(x).all()
    assert d.log_prob(x).isfinite().all()
    assert d.transforms[0].inv(torch.full((D,), -1000.0)).isfinite().all()


@pytest.mark.parametrize("size", [1.0, 3.0, 8.0])
def test_defect_18_linear_map_of_large_norm(size: float) -> None:
    flow, x = moved(tr.LowerTriangular(D, rank=2), by=size).double(), torch.randn(3, D).double()
    y, ladj = flow.call_and_ladj(x)
    jacobian = torch.autograd.functional.jacobian(flow, x[0])
    assert ladj.shape == (3,)
    assert_close(ladj[0], jacobian.slogdet().logabsdet, rtol=1e-4, atol=1e-4)
    assert_close(flow.inv(y.clone()), x, rtol=1e-3, atol=1e-3)


@every_layer
def test_defect_19_float64(name: str) -> None:
    flow, x = layer(name).double(), torch.randn(3, D).double()
    for there in (flow, flow.inv):
        value, ladj = there.call_and_ladj(x)
        assert value.dtype == ladj.dtype == torch.float64
        assert_close(there.inv(value), x)


@every_layer
def test_defect_20_device(name: str) -> None:
    flow, x = layer(name).to("meta"), torch.empty(3, D, device="meta")
    for there in (flow, flow.inv):
        assert [t.device.type for t in there.call_and_ladj(x)] == ["meta", "meta"]


@pytest.mark.parametrize("scale", [3.0, 10.0])
def test_defect_21_splines_in_single_precision(scale: float) -> None:
    spline, z = RQSpline(bins=16), torch.linspace(-6, 6, 301)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        params = spline.unpack(scale * torch.randn(spline.param_count, generator=generator))
        y, ladj = spline.forward(z, *params)
        assert ladj.isfinite().all()
        assert (spline.inverse(y, *params)[0] - z).abs().max() < 1e-3


def test_defect_21_far_inputs_and_vmap() -> None:
    flow, x = tr.Coupling(2, RQSpline()), 100 * torch.randn(50, 2)
    assert_close(flow.inv(flow(x).clone()), x)
    flow = moved(flow)
    assert_close(flow.inv(flow(x).clone()), x, rtol=1e-4, atol=1e-3)
    assert_close(vmap(flow)(x), flow(x))


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4, 1e6])
def test_defect_22_autoregressive_inverse_is_nan_far_out(size: float) -> None:
    flow, y = layer("affine_autoregressive"), size * torch.randn(20, D)
    x, ladj = flow.inv.call_and_ladj(y)
    assert x.isfinite().all()
    assert ladj.isfinite().all()
    y = y.double()
    assert_close(flow.double()(flow.inv(y).clone()), y)


def test_defect_22_stacked_inverse_costs_a_pass_for_each_dimension() -> None:
    flow, y = flows.iaf(64, layers=3), torch.randn(4, 64)
    counts = []
    for there in (flow, flow.inv):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            there.call_and_ladj(y)
        counts.append(counter.get_total_flops())
    assert counts[1] <= 2 * counts[0]


@every_layer
def test_defect_23_initial_values_and_range(name: str) -> None:
    flow = LAYERS[name]()
    for size in (3.0, 10.0, 100.0, 1000.0):
        x = torch.full((D,), size)
        assert_close(flow(x), x, rtol=0.05, atol=0)
        assert_close(flow.inv(x), x, rtol=0.05, atol=0)
        away = layer(name).double()
        assert_close(away(away.inv(x.double()).clone()), x.double(), rtol=1e-5, atol=1e-5)


@every_layer
def test_defect_27_with_cache(name: str) -> None:
    flow, x = layer(name).double(), torch.randn(3, D).double()
    for size in (0, 1):
        chain = dist.transforms.ComposeTransform([flow]).with_cache(size)
        assert_close(chain(x), flow(x))
        assert_close(chain.inv(flow(x).clone()), x)


@pytest.mark.filterwarnings(TRACER_WARNING)
@pytest.mark.parametrize("name", ["nice", "realnvp", "maf", "iaf", "nsf", "full_rank"])
def test_defect_29_log_prob_breaks_the_graph(name: str) -> None:
    flow, x = moved(getattr(flows, name)(3, hidden_dims=(8,))), torch.randn(5, 3)
    torch.compiler.reset()
    d = FlowDistribution(transform=flow, validate_args=False)
    compiled = torch.compile(d.log_prob, backend="eager", fullgraph=True)
    assert_close(compiled(x), d.log_prob(x), rtol=1e-4, atol=1e-4)
