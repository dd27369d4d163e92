"""Maps from one domain onto another: closed forms, single precision, supports, and what is refused."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints, transforms
from torch.testing import assert_close

from cases import ELEMENTARY
from pyroflows import FlowDistribution
from pyroflows.bijectors import (
    ELU,
    Bijector,
    Cos,
    DistributionCDF,
    Exp,
    ExponentialCDF,
    Inline,
    NormalCDF,
    Power,
    Sigmoid,
    SinhArcsinh,
    Softplus,
    Tanh,
)
from pyroflows.maths import fill_triangular
from pyroflows.transforms import Autoregressive, Compose, Coupling, Elementwise, Onto

X = torch.linspace(-4, 4, 41, dtype=torch.float64)
CLOSED = {
    "exp": (Exp(), transforms.ExpTransform(), X),
    "softplus": (Softplus(), transforms.SoftplusTransform(), X),
    "sigmoid": (Sigmoid(), transforms.SigmoidTransform(), X),
    "tanh": (Tanh(), transforms.TanhTransform(), X),
    "square": (Power(2.0), transforms.PowerTransform(torch.tensor(2.0)), X.exp()),
    "reciprocal": (Power(-1.0), transforms.PowerTransform(torch.tensor(-1.0)), X.exp()),
    "normal": (NormalCDF(), transforms.CumulativeDistributionTransform(dist.Normal(0.0, 1.0)), X),
    "exponential": (
        ExponentialCDF(),
        transforms.CumulativeDistributionTransform(dist.Exponential(1.0)),
        X.exp().sqrt(),
    ),
    "laplace": (
        DistributionCDF(dist.Laplace(0.5, 2.0)),
        transforms.CumulativeDistributionTransform(dist.Laplace(0.5, 2.0)),
        X,
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_values_of_torchs_own_transforms(name: str) -> None:
    bijector, known, x = CLOSED[name]
    y, ladj = bijector.forward(x)
    assert_close(y, known(x))
    assert_close(ladj, known.log_abs_det_jacobian(x, y))
    assert_close(bijector.inverse(y)[0], x)
    assert repr(bijector.codomain) == repr(known.codomain)


def test_cosine_and_elu() -> None:
    x = torch.linspace(0.1, 3.0, 20, dtype=torch.float64)
    assert_close(Cos().forward(x), (x.cos(), x.sin().log()))
    assert_close(ELU(1.5).forward(X)[0], torch.nn.functional.elu(X, 1.5))
    assert repr(ELU(1.5).codomain) == "GreaterThan(lower_bound=-1.5)"


def test_sinh_arcsinh_by_its_formula() -> None:
    wide = SinhArcsinh(bound=1e12, tail_bound=1e12)
    skew, tail = torch.tensor([0.5, math.log(1.3)], dtype=torch.float64)
    assert_close(wide.forward(X, skew, tail)[0], torch.sinh(1.3 * (torch.asinh(X) + 0.5)))


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("name", sorted(ELEMENTARY.keys() - {"gumbel_cdf", "gamma_cdf", "inline_exp"}))
def test_float32_stays_finite_in_the_domain_and_in_the_codomain(name: str, size: float) -> None:
    bijector = ELEMENTARY[name]()
    for way in (bijector, bijector.inv):
        far = torch.tensor([-size, 0.0, size])
        x = biject_to(way.domain)(far)
        x = x[way.domain.check(x) & x.isfinite()].requires_grad_()
        y, ladj = way.forward(x)
        assert all(t.isfinite().all() for t in (y, ladj, *torch.autograd.grad(y.sum() + ladj.sum(), x)))
        assert way.codomain.check(y).all()


@pytest.mark.parametrize(("bijector", "reach"), [(Softplus(), 80.0), (ELU(), 10.0), (NormalCDF(), 5.0), (Exp(), 80.0)])
def test_float32_round_trips_in_the_lower_tail(bijector: Bijector, reach: float) -> None:
    x = torch.linspace(-reach, 0.0, 30)
    assert_close(bijector.inverse(bijector.forward(x)[0])[0], x, rtol=1e-3, atol=1e-3)


SUPPORTS = {
    "positive": (Exp(), dist.LogNormal(0.0, 1.0), constraints.positive),
    "unit": (NormalCDF(), dist.Uniform(0.0, 1.0), constraints.unit_interval),
    "above": (ELU(), None, constraints.greater_than(-1.0)),
    "interval": (Tanh(), None, constraints.interval(-1.0, 1.0)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_supports_and_densities(name: str) -> None:
    bijector, known, support = SUPPORTS[name]
    density = FlowDistribution(transform=Elementwise(1, bijector))
    assert repr(density.support) == repr(constraints.independent(support, 1))
    y = density.sample((50,))
    if known is not None:
        assert_close(density.log_prob(y.clone()), known.log_prob(y).squeeze(-1), rtol=1e-4, atol=1e-4)
    off = torch.tensor([-3.0])
    with pytest.raises(ValueError, match=r"Elementwise expected inputs in .* got 1 of 1 that are not"):
        density.log_prob(off)
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        values = torch.cat([y[:3], off[None]]).requires_grad_()
        log_prob = density.log_prob(values)
        (grad,) = torch.autograd.grad(log_prob[:3].sum(), values)
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)
    assert log_prob[-1] == -torch.inf
    assert log_prob[:3].isfinite().all()
    assert grad.isfinite().all()


def test_a_logarithm_of_exponential_draws() -> None:
    """Whose support has its end, which has no mass."""
    density = FlowDistribution(dist.Exponential(torch.ones(2)), Elementwise(2, Exp().inv))
    y = density.sample((5,))
    assert_close(density.log_prob(y.clone()), (y - y.exp()).sum(-1))


def test_a_decreasing_map_has_its_distribution_function() -> None:
    transform = Compose([Onto(constraints.positive, 1), Elementwise(1, Power(-1.0))])
    density = FlowDistribution(transform=transform)
    assert (transform.sign, transform.inv.sign) == (-1, -1)
    assert_close(density.cdf(density.icdf(torch.tensor(0.3))), torch.tensor(0.3))
    assert_close(density.icdf(torch.tensor(0.9)), density.sample((20000,)).quantile(0.9).view(1), rtol=0.1, atol=0.0)


def test_what_inline_leaves_out_is_found() -> None:
    given = Inline(lambda x: x.sinh(), lambda y: y.asinh(), lambda x: x.cosh().log())
    found = Inline(torch.sinh)
    for way in ("forward", "inverse"):
        assert_close(getattr(found, way)(X), getattr(given, way)(X))
    falling = Inline(lambda x: 1 / x, domain=constraints.positive, codomain=constraints.positive, sign=-1)
    assert_close(falling.inverse(X.exp())[0], (-X).exp())


def test_fill_triangular() -> None:
    numbers = torch.arange(1.0, 13.0).view(2, 6)
    assert fill_triangular(numbers)[1].tolist() == [[7, 0, 0], [8, 9, 0], [10, 11, 12]]
    assert fill_triangular(numbers, upper=True)[0].tolist() == [[1, 2, 3], [0, 4, 5], [0, 0, 6]]
    with pytest.raises(ValueError, match=r"expected 1, 3, 6, 10, ... n \(n \+ 1\) / 2 numbers, got 5"):
        fill_triangular(torch.zeros(5))


MESSAGES: dict[str, tuple[Callable, str]] = {
    "power": (lambda: Power(0.0), "Power expected a finite exponent other than 0, got 0.0"),
    "elu": (lambda: ELU(-1.0), "ELU expected a positive alpha, got -1.0"),
    "rate": (lambda: ExponentialCDF(0.0), "ExponentialCDF expected a positive rate, got 0.0"),
    "sinh": (lambda: SinhArcsinh(bound=-1.0), "expected a bound above 0, got SinhArcsinh"),
    "sign": (lambda: Inline(torch.exp, sign=2), "Inline expected a sign of 1 or -1, got 2"),
    "no_cdf": (lambda: DistributionCDF(dist.StudentT(3.0)), "expected one continuous distribution of numbers that has"),
    "discrete": (
        lambda: DistributionCDF(dist.Poisson(3.0)),
        "expected one continuous distribution of numbers that has",
    ),
    "batch": (lambda: DistributionCDF(dist.Normal(torch.zeros(2), 1.0)), "without a batch shape, got Normal"),
    "context": (lambda: Elementwise(2, Exp(), 3), r"expected context_dim=0 for Exp\(\), which has no parameters"),
    "coupling": (lambda: Coupling(2, Exp()), r"Coupling expected a bijector that has parameters and maps its domain"),
    "autoregressive": (lambda: Autoregressive(2, Exp()), r"Autoregressive expected a bijector that has parameters"),
    "order": (
        lambda: Compose([Elementwise(2, Exp()), Elementwise(2, Exp())]),
        "each part to end where the next begins",
    ),
    "domain": (lambda: Elementwise(2, Cos())(torch.tensor([1.0, 4.0])), "Elementwise expected inputs in .*Interval"),
    "root": (
        lambda: Inline(torch.tanh).inverse(torch.tensor(2.0)),
        "expected a function that takes every y for some x",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    wrong, message = MESSAGES[name]
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_uniform_under_an_interval() -> None:
    density = FlowDistribution(transform=Elementwise(1, NormalCDF().inv))
    x = torch.linspace(-3, 3, 7).unsqueeze(-1)
    assert_close(density.log_prob(x), dist.Normal(0.0, 1.0).log_prob(x).squeeze(-1))
    assert math.isclose(density.cdf(torch.tensor([1.0])).item(), 0.8413, rel_tol=1e-3)
