"""Flows whose inverse is a root or a fixed point: far inputs, ranges, integrals, gradients, and what is refused."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from cases import SMALL, moved
from pyroflows import FlowDistribution, flows
from pyroflows import transforms as tr
from pyroflows.bijectors import Affine, Bernstein, Bijector, Chain, MixtureCDF, MonotoneNet, SumOfSquares
from pyroflows.maths import normal_log_cdf, normal_quantile, quadrature

CURVES: dict[str, Bijector] = {
    "sum_of_squares": SumOfSquares(),
    "bernstein": Bernstein(),
    "monotone_net": MonotoneNet(),
    "logistic": MixtureCDF(),
    "normal": MixtureCDF(kernel="normal"),
    "chain": Chain((MixtureCDF(4), Affine())),
}
RECIPES: dict[str, Callable[..., tr.Compose]] = {
    "naf": partial(flows.naf, layers=2, components=4, **SMALL),
    "sospf": partial(flows.sospf, layers=2, **SMALL),
    "bpf": partial(flows.bpf, layers=2, degree=8, **SMALL),
    "unaf": partial(flows.unaf, layers=1, width=4, **SMALL),
    "flowpp": partial(flows.flowpp, layers=2, components=4, **SMALL),
    "gaussianization": partial(flows.gaussianization, layers=2, components=4),
    "bnaf": partial(flows.bnaf, layers=2, units=3),
    "planar": partial(flows.planar, layers=4, fast="inverse"),
    "radial": partial(flows.radial, layers=4),
    "sylvester": partial(flows.sylvester, layers=2, fast="inverse"),
    "residual": partial(flows.residual, layers=3, **SMALL),
}


def params_of(bijector: Bijector, rows: int) -> list[Tensor]:
    return bijector.unpack(torch.randn(rows, bijector.param_count))


@pytest.mark.parametrize("name", CURVES)
def test_float32_roots_are_right_however_far(name: str) -> None:
    curve = CURVES[name]
    for size in (1.0, 10.0, 100.0, 1000.0):
        y, params = size * torch.linspace(-1, 1, 500), params_of(curve, 500)
        x, ladj = curve.inverse(y, *params)
        back, ladj_back = curve.forward(x, *params)
        assert_close(back, y, rtol=1e-5, atol=1e-5)
        assert_close(ladj, -ladj_back, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_float32_flows_come_back_however_far(name: str) -> None:
    flow = moved(RECIPES[name](3), by=0.05)
    # Networks that read inputs of a thousand let errors grow in autoregressive flows, affine ones, too.
    largest = 2 if any(isinstance(part, tr.Autoregressive) for part in flow.modules()) else 3
    for size in (10.0**k for k in range(largest + 1)):
        x = size * torch.randn(30, 3)
        for way in (flow, flow.inv):
            y, ladj = way.call_and_ladj(x)
            back, ladj_back = way.inv.call_and_ladj(y.clone())
            assert_close(back / size, x / size, rtol=1e-3, atol=1e-3)
            assert_close(ladj_back, -ladj, rtol=1e-3, atol=2e-2)
            # No bounded range: what goes far away comes out far away.
            assert y.abs().amax(-1).min() > 1e-3 * x.abs().amax(-1).min()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("dim", "wide", "points"), [(1, 40.0, 8001), (2, 15.0, 301)])
def test_density_integrates_to_one(name: str, dim: int, wide: float, points: int) -> None:
    flow = moved(RECIPES[name](dim), by=0.1).double()
    line = torch.linspace(-wide, wide, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    total = FlowDistribution(transform=flow).log_prob(grid).exp().sum() * (2 * wide / (points - 1)) ** dim
    assert_close(total.item(), 1.0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CURVES)
def test_gradients_of_the_inverse_are_those_of_finite_differences(name: str) -> None:
    curve = CURVES[name]
    y = torch.tensor([-7.0, -0.7, 1.3, 40.0], dtype=torch.float64, requires_grad=True)
    params = [p.double().requires_grad_() for p in params_of(curve, 4)]
    assert gradcheck(curve.inverse, (y, *params), atol=1e-5, fast_mode=True)
    assert gradgradcheck(lambda y: curve.inverse(y, *params), y, atol=1e-4, fast_mode=True)


def test_gradients_of_inverse_flows_with_a_context() -> None:
    for make in (tr.Planar, tr.Radial, tr.Sylvester, tr.Residual, partial(tr.BlockAutoregressive, units=2)):
        flow = moved(make(2, 1, hidden_dims=(4,)), by=0.5).double()
        given = (torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64))
        assert gradcheck(flow.inv.call_and_ladj, tuple(t.requires_grad_() for t in given), atol=1e-5, fast_mode=True)


def test_curves_are_straight_outside_and_smooth_at_the_bound() -> None:
    for curve in CURVES.values():
        bound, params = getattr(curve, "bound", 8.0), params_of(curve, 5)
        x = torch.tensor([-3.0, -2.0, 2.0, 3.0]).unsqueeze(-1) * bound
        ladj = curve.forward(x, *params)[1]
        assert_close(ladj[::3], ladj[1:3])
        inside, outside = (curve.forward(torch.full((5,), bound * (1 + e)), *params)[1] for e in (-1e-5, 1e-5))
        assert_close(inside, outside, rtol=0, atol=1e-2)


def test_mixtures_leave_a_gap_between_two_narrow_components() -> None:
    curve = MixtureCDF(2, "normal")
    params = torch.zeros(2), torch.tensor([-5.0, 5.0]), torch.tensor([-3.0, -3.0]), torch.tensor(-9.0)
    ladj = curve.forward(torch.tensor([-4.6, 0.0, 4.6]), *params)[1]
    assert ladj[1] < -2 < 0 < min(ladj[0], ladj[2])


def test_normal_quantile_undoes_log_probabilities_far_in_the_tails() -> None:
    x = torch.tensor([-300.0, -40.0, -5.0, -1e-3, 0.0, 0.5, 8.0, 300.0])
    assert_close(normal_quantile(normal_log_cdf(x), normal_log_cdf(-x)), x, rtol=1e-6, atol=1e-6)
    assert_close(normal_log_cdf(x[1:]), torch.special.log_ndtr(x[1:]), rtol=1e-6, atol=1e-30)


def test_quadrature_is_exact_for_polynomials() -> None:
    for count in (1, 2, 5, 8):
        points, weights = quadrature(count, torch.empty(0, dtype=torch.float64))
        for degree in range(count):
            assert_close((weights * points**degree).sum().item(), 1 / (degree + 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SumOfSquares(degree=0), "degree to be a whole number from 1 on, got 0"),
        (lambda: Bernstein(degree=1), "degree to be a whole number from 2 on, got 1"),
        (lambda: MonotoneNet(width=1), "width to be a whole number from 2 on, got 1"),
        (lambda: MixtureCDF(1), "components to be a whole number from 2 on, got 1"),
        (lambda: MixtureCDF(kernel="cauchy"), "expected kernel='logistic' or 'normal', got 'cauchy'"),
        (lambda: SumOfSquares(bound=-1.0), "expected a bound above 0"),
        (lambda: Chain(()), r"Chain expected a tuple of bijectors, got \(\)"),
        (lambda: tr.Sylvester(3, rank=4), "expected a rank up to 3 and a basis out of"),
        (lambda: tr.Sylvester(3, basis="random"), "got rank=3 and basis='random'"),
        (lambda: tr.BlockAutoregressive(3, units=0), "units to be a whole number from 1 on, got 0"),
        (lambda: tr.Residual(3, lipschitz=1.1), "expected 0 < lipschitz < 1, got 1.1: .* take more layers instead"),
        (lambda: tr.Residual(3, hidden_dims=()), "Residual expected at least one hidden layer"),
        (lambda: flows.planar(3, fast="both"), "expected fast='forward' or 'inverse', got 'both'"),
        (lambda: flows.planar(3, layers=0), "planar expected layers to be a whole number from 1 on, got 0"),
        (lambda: flows.gaussianization(3, layers=0), "gaussianization expected layers"),
        (lambda: flows.bnaf(3, layers=0), "bnaf expected layers"),
        (lambda: flows.residual(3, layers=0), "residual expected layers"),
        (lambda: flows.flowpp(3, layers=1), "expected layers >= 2, got 1"),
        (lambda: flows.naf(3, layers=0), "expected layers >= 1, got 0"),
    ],
)
def test_what_is_out_of_range_is_refused(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
