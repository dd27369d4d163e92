"""Splines of every family: single precision, tails, circles, and flows of angles."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import moved
from pyroflows import FlowDistribution, flows
from pyroflows.bijectors import (
    CircularShift,
    CubicSpline,
    LinearRationalSpline,
    LinearSpline,
    QuadraticSpline,
    RQSpline,
    Stretched,
)
from pyroflows.bijectors.spline.bins import Spline
from pyroflows.transforms import Elementwise

FAMILIES = (RQSpline, LinearSpline, QuadraticSpline, CubicSpline, LinearRationalSpline)
SMOOTH = (RQSpline, QuadraticSpline, LinearRationalSpline)


def stressed(spline: Spline, scale: float) -> list[Tensor]:
    """Parameters of 50 splines."""
    return spline.unpack(scale * torch.randn(50, 1, spline.param_count))


@pytest.mark.parametrize("tails", ["identity", "linear", "circular"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_splines_undo_themselves(family: type, tails: str) -> None:
    spline = family(16, tails=tails)
    for scale in (1.0, 10.0, 100.0):
        params = [p.requires_grad_() for p in stressed(spline, scale)]
        edge = 1.0 if tails == "circular" else 1.5
        z = torch.linspace(-edge * spline.bound, edge * spline.bound, 201).requires_grad_()
        for way in (spline, spline.inv):
            value, ladj = way.forward(z, *params)
            back, ladj_back = way.inverse(value, *params)
            assert (back - z).abs().max() <= (3e-2 if family is LinearRationalSpline else 1e-3)
            assert (ladj + ladj_back).abs().mean() <= 1e-3
            grads = torch.autograd.grad(value.sum() + ladj.sum(), [z, *params])
            assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_round_trips_far_out(family: type, size: float) -> None:
    spline = family(tails="linear")
    params, x = stressed(spline, 1.0), torch.tensor([-size, size])
    assert_close(spline.inverse(spline.forward(x, *params)[0], *params)[0], x.expand(50, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", SMOOTH)
def test_slopes_meet_at_knots_at_ends_and_around_the_circle(family: type) -> None:
    for tails in ("identity", "linear"):
        spline = family(5, 2.0, tails=tails)
        params = [p.double() for p in stressed(spline, 1.0)]
        knots = spline._tables(*params)[2][..., 0, :].squeeze(1)
        below, above = (spline.forward(knots + step, *params)[1] for step in (-1e-9, 1e-9))
        assert_close(below, above, rtol=0, atol=1e-5)
    spline = family(5, math.pi, tails="circular")
    params = [p.double() for p in stressed(spline, 1.0)]
    ends = spline.forward(torch.tensor([-math.pi, math.pi], dtype=torch.float64), *params)
    assert_close(ends[0], torch.tensor([-math.pi, math.pi], dtype=torch.float64).expand(50, 2))
    assert_close(ends[1][:, 0], ends[1][:, 1])


def test_tails_are_lines_whose_slopes_are_learnt() -> None:
    spline = RQSpline(bins=3, bound=2.0, tails="linear")
    widths, heights, slopes = torch.zeros(3), torch.zeros(3), torch.tensor([-0.5, 0.0, 0.0, 0.7])
    y, ladj = spline.forward(torch.tensor([-10.0, -5.0, 5.0, 10.0]), widths, heights, slopes)
    low, high = (torch.tensor(s / (1 + abs(s) / math.log(10.0))).exp().item() for s in (-0.5, 0.7))
    assert_close(y, torch.tensor([-2 - 8 * low, -2 - 3 * low, 2 + 3 * high, 2 + 8 * high]))
    assert_close(ladj.exp(), torch.tensor([low, low, high, high]))


def test_a_stretched_spline_learns_its_bound() -> None:
    bent, params = Stretched(RQSpline(bins=3, bound=1.0)), RQSpline(bins=3).unpack(torch.randn(8))
    wide = torch.tensor(2.0)
    y, ladj = bent.forward(torch.tensor([2.0, 3.0]), wide, *params)
    assert (ladj[0] != 0, ladj[1]) == (True, 0)
    scale = math.exp(1.0)  # of 2, softly clipped by 2
    expected, _ = RQSpline(bins=3, bound=1.0).forward(torch.tensor(2.0) / scale, *params)
    assert_close(y, torch.stack([scale * expected, torch.tensor(3.0)]))


def test_a_turn_of_a_circle_wraps() -> None:
    shift = torch.tensor(1.0)
    y, ladj = CircularShift().forward(torch.tensor([-3.0, 0.0, 3.0]), shift)
    assert_close(y, torch.tensor([-2.0, 1.0, 4.0 - 2 * math.pi]))
    assert ladj == 0
    assert_close(CircularShift().inverse(y, shift)[0], torch.tensor([-3.0, 0.0, 3.0]))
    far, _ = CircularShift(1.0).forward(torch.tensor(0.5), torch.tensor([7.0, -7.0]))
    assert_close(far, torch.tensor([-0.5, -0.5]))
    density = FlowDistribution(transform=Elementwise(1, CircularShift()))
    with pytest.raises(ValueError, match=r"cdf expected one dimension over .*, and no circle"):
        density.cdf(torch.zeros(1))


BASES = {"uniform": lambda d: None, "von Mises": lambda d: dist.VonMises(torch.zeros(d).double(), 2.0).to_event(1)}


@pytest.mark.parametrize("base", BASES)
def test_densities_on_the_torus_integrate_to_one_and_have_no_seam(base: str) -> None:
    axis = torch.linspace(-math.pi, math.pi, 201, dtype=torch.float64)
    one = FlowDistribution(BASES[base](1), moved(flows.ncsf(1)).double())
    integral = one.log_prob(axis.unsqueeze(-1)).exp()[:-1].sum() * (axis[1] - axis[0])
    assert_close(integral.item(), 1.0, rtol=0, atol=1e-3)
    two = FlowDistribution(BASES[base](2), moved(flows.ncsf(2, layers=2, bins=4, hidden_dims=(8,)), by=0.1).double())
    plane = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    values = two.log_prob(plane).exp()
    assert_close((values[:-1, :-1].sum() * (axis[1] - axis[0]) ** 2).item(), 1.0, rtol=0, atol=1e-3)
    assert_close(values[0], values[-1])
    assert_close(values[:, 0], values[:, -1])
    assert two.support.check(two.sample((50,))).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_of_splines_integrate_to_one(family: type) -> None:
    for tails in ("identity", "linear"):
        flow = moved(Elementwise(1, family(6, 3.0, tails=tails)), by=0.5).double()
        y = torch.linspace(-30, 30, 60001, dtype=torch.float64).unsqueeze(-1)
        integral = FlowDistribution(transform=flow).log_prob(y).exp().sum() * 0.001
        assert_close(integral.item(), 1.0, rtol=0, atol=1e-3)


def test_ncsf_learns_two_peaks_of_angles() -> None:
    data = torch.cat([dist.VonMises(3.1, 8.0).sample((300,)), dist.VonMises(0.5, 8.0).sample((300,))])
    data = torch.remainder(data + math.pi, 2 * math.pi).unsqueeze(-1) - math.pi
    flow = flows.ncsf(1, bins=8)
    density, adam = FlowDistribution(transform=flow), torch.optim.Adam(flow.parameters(), 0.05)
    for _ in range(100):
        adam.zero_grad()
        loss = -density.log_prob(data).mean()
        loss.backward()
        adam.step()
    entropy = 0.9189 - 0.5 * math.log(8.0) + 0.5 + math.log(2.0)  # of two normals that hardly meet
    assert loss.item() < entropy + 0.1


@pytest.mark.parametrize("call", [partial(flows.ncsf, 3, layers=1), partial(flows.ncsf, 1, layers=0)])
def test_ncsf_refuses_too_few_layers(call: partial) -> None:
    with pytest.raises(ValueError, match="ncsf expected layers >= 2, got"):
        call()


def test_an_angle_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"Coupling expected inputs in .*Interval.*, got 1 of 1 that are not"):
        flows.ncsf(2)[0](torch.tensor([0.0, 4.0]))
