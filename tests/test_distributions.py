"""The flow distribution: densities that integrate to one, shapes, gradients, and Pyro around it."""

import math
from collections.abc import Callable, Iterator

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import SMALL, moved
from pyroflows import flows
from pyroflows.bijectors import LeakyReLU
from pyroflows.distributions import FlowDistribution, standard_normal
from pyroflows.transforms import Affine, Compose, Elementwise, FlowTransform, Permute


def students(input_dim: int) -> dist.Distribution:
    return dist.StudentT(torch.tensor(5.0).double()).expand([input_dim]).to_event(1)


def grid(half: float, points: int, input_dim: int) -> tuple[Tensor, float]:
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    axes = torch.meshgrid([axis] * input_dim, indexing="ij")
    return torch.stack([a.flatten() for a in axes], dim=-1), float(axis[1] - axis[0]) ** input_dim


@pytest.mark.parametrize("base", [None, students], ids=["normal", "student"])
@pytest.mark.parametrize("name", ["nice", "realnvp", "maf", "nsf"])
def test_density_in_one_dimension_integrates_to_one(name: str, base: Callable | None) -> None:
    flow = moved(getattr(flows, name)(1)).double()
    density = FlowDistribution(base and base(1), flow)
    y, cell = grid(200.0, 40001, 1)
    assert_close(density.log_prob(y).exp().sum().item() * cell, 1.0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("base", [None, students], ids=["normal", "student"])
@pytest.mark.parametrize("name", ["nice", "realnvp", "maf", "iaf", "nsf", "full_rank"])
def test_density_in_two_dimensions_integrates_to_one(name: str, base: Callable | None) -> None:
    options = {} if name == "full_rank" else {"layers": 2}
    flow = moved(getattr(flows, name)(2, **options, **SMALL), by=0.2).double()
    density = FlowDistribution(base and base(2), flow)
    y, cell = grid(24.0, 601, 2)
    assert_close(density.log_prob(y).exp().sum().item() * cell, 1.0, rtol=0, atol=5e-3)


def test_samples_follow_the_density() -> None:
    density = FlowDistribution(transform=moved(flows.nsf(1)).double())
    y, cell = grid(60.0, 12001, 1)
    weights = density.log_prob(y).exp() * cell
    mean = (weights * y[:, 0]).sum()
    variance = (weights * (y[:, 0] - mean).square()).sum()
    samples = density.sample((20000,))
    assert abs(samples.mean() - mean) < 5 * (variance / 20000).sqrt()
    assert_close(samples.var(), variance, rtol=0.1, atol=0)


def test_log_prob_is_that_of_the_base_moved() -> None:
    flow = moved(flows.nsf(3, layers=2, **SMALL))
    density, x = FlowDistribution(transform=flow), torch.randn(10, 3)
    y, ladj = flow.call_and_ladj(x)
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1) - ladj
    assert_close(density.log_prob(y.clone()), expected, rtol=1e-4, atol=1e-4)
    pyro_way = dist.TransformedDistribution(standard_normal(flow), [flow])
    assert_close(density.log_prob(y), pyro_way.log_prob(y.clone()))


def test_rsample_and_log_prob_agree_with_two_calls() -> None:
    density = FlowDistribution(transform=moved(flows.iaf(3, layers=2, **SMALL)))
    y, log_prob = density.rsample_and_log_prob((7,))
    assert y.requires_grad
    assert_close(log_prob, density.log_prob(y.clone()), rtol=1e-4, atol=1e-4)


SHAPES = [((), ()), ((4,), ()), ((), (5,)), ((4, 2), (5,)), ((3,), (2, 5))]


@pytest.mark.parametrize(("sample_shape", "batch_shape"), SHAPES)
def test_shapes(sample_shape: tuple, batch_shape: tuple) -> None:
    density = FlowDistribution(transform=moved(flows.realnvp(3, layers=2, **SMALL))).expand(batch_shape)
    y = density.rsample(sample_shape)
    assert density.batch_shape == batch_shape
    assert density.event_shape == (3,)
    assert y.shape == sample_shape + batch_shape + (3,) == density.shape(sample_shape)
    assert density.log_prob(y).shape == sample_shape + batch_shape
    assert len(y.reshape(-1, 3).unique(dim=0)) == y[..., 0].numel()


def test_no_rows() -> None:
    d = FlowDistribution(transform=moved(flows.realnvp(3, layers=2, hidden_dims=(8,))))
    assert d.log_prob(d.sample((0,))).shape == (0,)
    for found in (d.rsample_and_log_prob((2, 0)), d.rsample_and_score((2, 0))):
        assert [t.shape for t in found] == [(2, 0, 3), (2, 0), (2, 0, 3)][: len(found)]


def test_base_over_scalars_is_made_a_vector() -> None:
    flow = flows.realnvp(3, layers=2, **SMALL)
    for base in (dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1)):
        density = FlowDistribution(base, flow)
        assert density.batch_shape == ()
        assert density.log_prob(torch.zeros(3)).shape == ()
    assert FlowDistribution(dist.Normal(torch.zeros(5, 3), 1.0), flow).batch_shape == (5,)
    full = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    assert_close(FlowDistribution(full, flow).log_prob(torch.zeros(3)).item(), -1.5 * math.log(2 * math.pi))


def test_context_gives_the_batch_shape_and_noise_of_its_own_to_each_row() -> None:
    flow = moved(flows.nsf(2, context_dim=3, layers=2, **SMALL))
    context = torch.ones(6, 3)
    density = FlowDistribution(transform=flow).condition(context)
    assert density.batch_shape == (6,)
    y = density.sample()
    assert len(y.unique(dim=0)) == 6
    assert density.sample((4,)).shape == (4, 6, 2)
    assert density.expand((5, 6)).sample().shape == (5, 6, 2)
    assert_close(density.log_prob(y.clone())[2], FlowDistribution(transform=flow.condition(context[2])).log_prob(y[2]))
    assert FlowDistribution(standard_normal(flow).expand((4, 1)), flow.condition(context)).batch_shape == (
        4,
        6,
    )


def test_context_moves_the_density() -> None:
    flow = moved(flows.maf(2, context_dim=1, layers=2, **SMALL), by=0.5)
    near, far = (FlowDistribution(transform=flow).condition(torch.tensor([c])) for c in (0.0, 3.0))
    assert (near.sample((500,)).mean(0) - far.sample((500,)).mean(0)).abs().max() > 0.2


def test_expanding_keeps_the_density_and_the_parameters() -> None:
    flow, y = moved(flows.nsf(2, layers=2, **SMALL)), torch.randn(5, 2)
    density = FlowDistribution(transform=flow)
    wide = density.expand((5,))
    assert wide.transform is flow
    assert_close(wide.log_prob(y), density.log_prob(y))
    assert density.expand_by((4,)).batch_shape == (4,)


def test_mask_and_to_event() -> None:
    density, y = FlowDistribution(transform=flows.nsf(2, layers=2, **SMALL)).expand((3,)), torch.randn(3, 2)
    mask = torch.tensor([True, False, True])
    assert_close(density.mask(mask).log_prob(y), density.log_prob(y) * mask)
    joint = density.to_event(1)
    assert (joint.batch_shape, joint.event_shape) == ((), (3, 2))
    assert_close(joint.log_prob(y), density.log_prob(y).sum())


def test_support_and_validation() -> None:
    density = FlowDistribution(transform=flows.nsf(2, layers=2, **SMALL))
    assert density.support.event_dim == 1
    assert density.support.check(torch.randn(4, 2)).shape == (4,)
    with pytest.raises(ValueError, match="expected numbers, got NaN in 1 of 2 places"):
        density.log_prob(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match=r"expected an input of shape"):
        density.log_prob(torch.zeros(3))


def test_has_rsample_if_the_base_has() -> None:
    flow = Elementwise(2, LeakyReLU())
    assert FlowDistribution(transform=flow).has_rsample
    counts = FlowDistribution(dist.Poisson(torch.ones(2)).to_event(1), flow)
    assert not counts.has_rsample
    assert counts.sample((3,)).shape == (3, 2)


def test_sample_has_no_graph_and_rsample_has() -> None:
    flow = moved(flows.nsf(2, layers=2, **SMALL))
    loc = torch.zeros(2, requires_grad=True)
    density = FlowDistribution(dist.Normal(loc, 1.0).to_event(1), flow)
    draws = []
    for draw in (density.sample, density.rsample):
        torch.manual_seed(0)
        draws.append(draw((5,)))
    assert_close(*draws)
    assert [y.requires_grad for y in draws] == [False, True]
    draws[1].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (loc, *flow.parameters()))


@pytest.mark.parametrize("name", ["realnvp", "maf", "iaf", "nsf", "full_rank"])
def test_gradients_right_after_sample(name: str) -> None:
    flow = moved(getattr(flows, name)(3, **SMALL))
    density = FlowDistribution(transform=flow)
    y = density.sample((5,))
    density.log_prob(y).sum().backward()
    got = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    density.log_prob(y.clone()).sum().backward()
    assert_close(got, [p.grad for p in flow.parameters()])
    assert sum(g.abs().sum() for g in got) > 0


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("inverse", [False, True])
def test_cdf_and_icdf_agree_with_numeric_integration(scale: float | None, inverse: bool) -> None:
    flow = moved(flows.nsf(1)).double()
    base = scale and dist.Normal(torch.zeros(1).double(), scale).to_event(1)
    density = FlowDistribution(base, flow.inv if inverse else flow)
    y, cell = grid(50.0, 50001, 1)
    mass = density.log_prob(y).exp()
    assert_close(density.cdf(y), (mass.cumsum(0) - mass / 2) * cell, rtol=0, atol=1e-4)
    levels = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999]).double()
    assert density.icdf(levels).shape == (5, 1)
    assert_close(density.cdf(density.icdf(levels)), levels)


def test_cdf_of_a_decreasing_transform() -> None:
    class Mirror(FlowTransform):
        sign = -1

        def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
            return -z, z.new_zeros(z.shape[:-1])

    base = dist.Normal(torch.ones(1), 1.0).to_event(1)
    density, y = FlowDistribution(base, Mirror(1)), torch.tensor([[-2.0], [-1.0], [0.5]])
    assert_close(density.cdf(y), dist.Normal(-1.0, 1.0).cdf(y).squeeze(-1))
    levels = torch.tensor([0.1, 0.7])
    assert_close(density.icdf(levels), dist.Normal(-1.0, 1.0).icdf(levels).unsqueeze(-1))


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("name", ["nice", "realnvp", "maf", "iaf", "nsf", "full_rank"])
def test_double_precision_by_default(name: str) -> None:
    flow = getattr(flows, name)(3, context_dim=2, **SMALL)
    density = FlowDistribution(transform=flow).condition(torch.randn(4, 2))
    y = density.rsample()
    assert y.dtype == density.log_prob(y).dtype == torch.float64


def test_base_follows_the_dtype_and_device_of_the_transform() -> None:
    assert standard_normal(Affine(2).double()).sample().dtype == torch.float64
    assert standard_normal(Affine(2).to("meta")).base_dist.loc.device.type == "meta"
    assert standard_normal(Permute(2)).sample().dtype == torch.get_default_dtype()
    frozen = Compose([Permute(2), Affine(2).double()])
    assert FlowDistribution(transform=frozen).sample().dtype == torch.float64


def test_a_net_with_dropout_scores_what_it_sampled() -> None:
    def net(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(inputs, outputs))

    density = FlowDistribution(transform=moved(flows.realnvp(4, layers=2, net=net)))
    x = density.base.rsample((50,))
    y = density.transform(x)
    assert density.transform.inv(y) is x
