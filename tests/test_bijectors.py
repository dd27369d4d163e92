"""Bijectors beyond their laws: formulas, single precision, extreme inputs and parameters."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.func import vmap
from torch.testing import assert_close

from cases import BIJECTORS
from pyroflows.bijectors import Affine, LeakyReLU, RQSpline, Shift, Tails
from pyroflows.transforms import Elementwise

SPLINE = RQSpline(bins=16)


def params_of(name: str, rows: int, scale: float = 1.0) -> list[Tensor]:
    bijector = BIJECTORS[name]()
    return bijector.unpack(scale * torch.randn(rows, bijector.param_count))


def knots_of(raw: Tensor) -> Tensor:
    """The knots that a spline makes of its raw widths or heights."""
    return SPLINE.split(raw)[2]


def stressed(scale: float, seeds: int = 200) -> tuple[list[Tensor], Tensor]:
    """Float32 parameters of ``(seeds, 1, ...)``, and inputs inside, outside and at the knots both ways."""
    flat = torch.stack(
        [torch.randn(SPLINE.param_count, generator=torch.Generator().manual_seed(s)) for s in range(seeds)]
    )
    params = SPLINE.unpack(scale * flat.unsqueeze(1))
    grid = torch.linspace(-1.5 * SPLINE.bound, 1.5 * SPLINE.bound, 301).expand(seeds, -1)
    knots = [knots_of(raw.squeeze(1)) for raw in params[:2]]
    return params, torch.cat([grid, *knots], dim=-1)


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0, 100.0])
def test_float32_spline_undoes_itself(scale: float) -> None:
    params, z = stressed(scale)
    for there, back in ((SPLINE.forward, SPLINE.inverse), (SPLINE.inverse, SPLINE.forward)):
        value, ladj = there(z, *params)
        returned, ladj_back = back(value, *params)
        assert (returned - z).abs().max() <= 1e-3
        assert ladj.isfinite().all()
        assert ladj_back.isfinite().all()
        assert (ladj + ladj_back).abs().mean() <= 1e-3


@pytest.mark.parametrize("scale", [3.0, 10.0, 100.0])
def test_float32_spline_has_finite_gradients(scale: float) -> None:
    params, z = stressed(scale)
    leaves = [leaf.requires_grad_() for leaf in (z, *params)]
    for way in (SPLINE.forward, SPLINE.inverse):
        value, ladj = way(z, *params)
        grads = torch.autograd.grad(value.sum() + ladj.sum(), leaves)
        assert all(t.isfinite().all() for t in (value, ladj, *grads))


def test_float32_spline_agrees_with_float64() -> None:
    params, z = stressed(3.0)
    for way in (SPLINE.forward, SPLINE.inverse):
        exact, ladj = way(z.double(), *(p.double() for p in params))
        # A rounding error of a knot grows by the slope.
        assert ((way(z, *params)[0] - exact).abs() <= 1e-6 * SPLINE.bound * (1 + ladj.exp())).all()


def test_spline_of_half_precision_parameters_keeps_the_precision_of_its_input() -> None:
    params, z = stressed(3.0)
    halves = [p.bfloat16().requires_grad_() for p in params]
    for way in (SPLINE.forward, SPLINE.inverse):
        for found, expected in zip(way(z, *halves), way(z, *(p.float() for p in halves)), strict=True):
            assert torch.equal(found, expected)
            assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(found.sum(), halves, retain_graph=True))


@pytest.mark.parametrize("name", sorted(BIJECTORS.keys() - {"inline"}))  # whose sine knows no far
@pytest.mark.parametrize("size", [1e4, 1e10, 1e30])
def test_far_inputs_stay_finite_and_keep_their_size(name: str, size: float) -> None:
    bijector, params = BIJECTORS[name](), params_of(name, 20, scale=3.0)
    if bijector.domain is not constraints.real:
        return  # of a circle: nothing is far
    leaves = [leaf.requires_grad_() for leaf in (torch.tensor([-size, size]).repeat(10), *params)]
    for way in (bijector.forward, bijector.inverse):
        value, ladj = way(*leaves)
        grads = torch.autograd.grad(value.sum() + ladj.sum(), leaves)
        assert all(t.isfinite().all() for t in (value, ladj, *grads))
        assert ((value / leaves[0]).log().abs() < math.log(1001.0)).all()


def test_spline_is_exactly_the_identity_outside() -> None:
    params, z = stressed(10.0)
    outside = z.abs() > SPLINE.bound
    for way in (SPLINE.forward, SPLINE.inverse):
        value, ladj = way(z, *params)
        assert torch.equal(value[outside], z[outside])
        assert (ladj[outside] == 0).all()
        assert (value[~outside].abs() <= SPLINE.bound * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("name", "infinite"), [("affine", 1), ("leaky_relu", 0), ("spline", 0), ("spline", 1), ("spline", 2)]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_infinite_parameters_are_seen_as_nan(name: str, infinite: int, sign: float) -> None:
    bijector, params = BIJECTORS[name](), params_of(name, 5)
    params[infinite] = torch.full_like(params[infinite], sign * torch.inf)
    for way in (bijector.forward, bijector.inverse):
        value, ladj = way(torch.full((5,), -0.3), *params)
        assert value.isnan().all()
        assert ladj.isnan().all()


@pytest.mark.parametrize("name", BIJECTORS)
def test_vmap_over_inputs_and_parameters(name: str) -> None:
    bijector, params, z = BIJECTORS[name](), params_of(name, 7), torch.randn(7)
    for way in (bijector.forward, bijector.inverse):
        assert_close(vmap(way)(z, *params), way(z, *params))


@pytest.mark.parametrize("name", BIJECTORS)
def test_unpack_cuts_a_flat_vector_in_the_order_of_the_parameters(name: str) -> None:
    bijector = BIJECTORS[name]()
    flat = torch.randn(2, 3, bijector.param_count)
    parts = bijector.unpack(flat)
    assert [p.shape for p in parts] == [(2, 3, *shape) for shape in bijector.param_shapes]
    assert torch.equal(torch.cat([p.reshape(2, 3, -1) for p in parts], dim=-1), flat)


@pytest.mark.parametrize("name", BIJECTORS)
def test_apply_gives_a_ladj_of_the_shape_of_the_value(name: str) -> None:
    bijector, params = BIJECTORS[name](), params_of(name, 1)
    for inverse in (False, True):
        value, ladj = bijector.apply(torch.randn(4, 3), params, inverse)
        assert value.shape == ladj.shape == (4, 3)


def test_bijectors_are_constants() -> None:
    assert Affine() == Affine(bound=6.0) != Affine(bound=5.0)
    assert hash(RQSpline(bins=5)) == hash(RQSpline(bins=5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Affine().bound = 2.0


def test_affine_is_shift_plus_scale_times_x() -> None:
    x, shift, log_scale = torch.tensor([2.0, -1.0]), torch.tensor(3.0), torch.tensor(0.5)
    y, ladj = Affine(bound=1.0).forward(x, shift, log_scale)
    assert_close(y, 3 + math.exp(0.5 / 1.5) * x)
    assert_close(ladj.item(), 0.5 / 1.5)
    _, largest = Affine(bound=2.0).forward(x, shift, torch.tensor([-1e9, 1e9]))
    assert_close(largest, torch.tensor([-2.0, 2.0]))


def test_shift_moves_and_keeps_volume() -> None:
    y, ladj = Shift().forward(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -3.0]))
    assert y.tolist() == [4.0, -1.0]
    assert ladj.tolist() == [0.0, 0.0]


def test_leaky_relu_bends_the_negative_half_line() -> None:
    log_slope = torch.tensor(math.log(0.5))
    soft = log_slope / (1 + log_slope.abs() / LeakyReLU().bound)
    y, ladj = LeakyReLU().forward(torch.tensor([-2.0, 0.0, 3.0]), log_slope)
    assert_close(y, torch.tensor([-2.0 * soft.exp(), 0.0, 3.0]))
    assert_close(ladj, torch.tensor([soft, 0.0, 0.0]))
    steepest, _ = LeakyReLU().forward(torch.tensor(-1.0), torch.tensor([-1e9, 1e9]))
    assert_close(steepest, torch.tensor([-1e-3, -1e3]))


def test_leaky_relu_learns_its_slope() -> None:
    layer, x = Elementwise(1, LeakyReLU(), shared=True), torch.linspace(-3, 3, 101).unsqueeze(-1)
    target = torch.where(x < 0, 0.25 * x, x)
    adam = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(150):
        adam.zero_grad()
        (layer(x) - target).square().mean().backward()
        adam.step()
    assert_close(layer(torch.tensor([-1.0])).item(), -0.25, rtol=0, atol=1e-3)


def test_spline_maps_knots_to_knots_with_a_continuous_slope() -> None:
    widths, heights, slopes = (p.double() for p in SPLINE.unpack(torch.randn(SPLINE.param_count)))
    x, y = knots_of(widths), knots_of(heights)
    assert_close(SPLINE.forward(x, widths, heights, slopes)[0], y)
    assert_close(SPLINE.inverse(y, widths, heights, slopes)[0], x)
    below, above = (SPLINE.forward(x + step, widths, heights, slopes)[1] for step in (-1e-9, 1e-9))
    assert_close(below, above, rtol=0, atol=1e-5)
    assert below[0] == above[-1] == 0


def test_spline_slopes_follow_their_parameter() -> None:
    flat = torch.zeros(3)
    x, at_knot = SPLINE.bound * torch.linspace(-1, 1, 4)[1:3], []
    for raw in (-1e9, 0.0, 1e9):
        _, ladj = RQSpline(bins=3).forward(x, flat, flat, torch.tensor([raw, 0.0]))
        at_knot.append(ladj[0].item())
        assert_close(ladj[1].item(), 0.0, rtol=0, atol=1e-4)
    assert_close(at_knot, [-math.log(10.0), 0.0, math.log(10.0)], rtol=0, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"bins": 1}, {"bound": 0.0}, {"min_bin": 0.0}, {"min_bin": 1.0}, {"tails": "no"}])
def test_spline_refuses_constants_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"bins >= 2, bound > 0, 0 < min_bin < 1 and tails in .*, got RQSpline\("):
        RQSpline(**wrong)


def test_tails_of_a_normal_become_those_of_an_exponential() -> None:
    """Far out log survival falls with a constant slope, rather than ever faster: -1 / (2 sqrt(a)) a unit."""
    tails = Tails(bound=1e6)  # so that a is all but the strength
    x = torch.tensor([8.0, 16.0], dtype=torch.float64)
    strength = torch.tensor(0.25, dtype=torch.float64)
    y, _ = tails.forward(x, torch.zeros_like(strength), strength)
    slope = torch.special.log_ndtr(-x).diff() / y.diff()
    assert slope.item() == pytest.approx(-1.0, rel=0.02)
    left, ladj = tails.forward(-x, torch.zeros_like(strength), strength)
    assert_close(left, -x)
    assert_close(ladj, torch.zeros_like(x))
