"""Bijectors that are the integral of a positive slope: polynomials, and a small network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import check_counts
from ..maths import quadrature, soft_clip
from .base import check_bound
from .monotone import Monotone


@dataclass(frozen=True)
class SumOfSquares(Monotone):
    """A polynomial whose slope is ``p(u)^2 + (1 - u^2) q(u)^2`` with ``u = x / bound``, a straight line outside.

    By a theorem of Lukacs every polynomial that is not negative on ``[-1, 1]``, and of twice the degree of ``p``, has
    that form. Parameters count ``p`` from the Chebyshev polynomial of its degree and ``q`` from that of the second
    kind, whose sum of squares is one: zero is the identity. The value is the integral of the slope, exact by
    quadrature. Forward costs some polynomials, the inverse is a root, 10 to 40 times as much.

    Args:
        degree: of ``p``, at least 1; that of ``q`` is one less, that of the map ``2 degree + 1``.
        bound: half width of the interval that is bent.
        largest: largest absolute coefficient.
        floor: the smallest slope.

    Raises:
        ValueError: if an argument is outside its range.

    References:
        Sum-of-Squares Polynomial Flow. Jaini, Selby, Yu, 2019. https://arxiv.org/abs/1905.02325
    """

    degree: int = 3
    bound: float = 5.0
    largest: float = 5.0
    floor: float = 1e-2

    def __post_init__(self) -> None:
        """Checks the constants."""
        check_counts("SumOfSquares", {}, degree=self.degree)
        check_bound(self, self.bound)
        check_bound(self, self.floor, below=1)

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Coefficients of ``p`` and of ``q``."""
        return (self.degree + 1,), (self.degree,)

    def _curve(self, x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        return _integral(self._slope, 2 * self.degree + 1, x, soft_clip(p, self.largest), soft_clip(q, self.largest))

    def _slope(self, x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        u = x / self.bound
        squares = (_chebyshev(u, 1, p) ** 2, (1 - u * u) * _chebyshev(u, 2, q) ** 2)
        return self.floor + (1 - self.floor) * (squares[0] + squares[1])


@dataclass(frozen=True)
class MonotoneNet(Monotone):
    """The integral of ``exp(g(x))`` over a network ``g`` with one hidden layer of tanh; a straight line outside.

    The slope is free, where other families are sums of given shapes. Quadrature integrates it, to about six digits,
    as hidden units are smooth and no steeper than some bound. Forward evaluates the network at ``nodes``
    points, the inverse, a root, 10 to 40 times as often. Zero is the identity, where units are evenly spaced.

    Args:
        width: hidden units, at least 2.
        bound: half width of the interval that is bent.
        largest: largest absolute ``g``, the log slope.
        nodes: points of quadrature.

    Raises:
        ValueError: if an argument is outside its range.

    References:
        Unconstrained Monotonic Neural Networks. Wehenkel, Louppe, 2019. https://arxiv.org/abs/1908.05164
    """

    width: int = 8
    bound: float = 5.0
    largest: float = 4.0
    nodes: int = 32

    def __post_init__(self) -> None:
        """Checks the constants."""
        check_counts("MonotoneNet", {"width": 2}, width=self.width, nodes=self.nodes)
        check_bound(self, self.bound)
        check_bound(self, self.largest)

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Steepness, place and weight of each hidden unit, and the level."""
        return (self.width,), (self.width,), (self.width,), ()

    def _curve(self, x: Tensor, steep: Tensor, place: Tensor, weight: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        steep = soft_clip(steep, 0.7).exp()
        even = torch.linspace(-3.0, 3.0, self.width, dtype=x.dtype, device=x.device)
        place = even + soft_clip(place, self.bound)
        return _integral(self._slope, self.nodes, x, steep, place, soft_clip(weight, 2.0), level.unsqueeze(-1))

    def _slope(self, x: Tensor, steep: Tensor, place: Tensor, weight: Tensor, level: Tensor) -> Tensor:
        steep, place, weight = (t.unsqueeze(-2) for t in (steep, place, weight))
        units = torch.tanh(steep * (x.unsqueeze(-1) - place))
        log_slope = level + (weight * units).sum(-1)
        return (self.largest * torch.tanh(log_slope / self.largest)).exp()  # smooth, or quadrature lost its digits


@dataclass(frozen=True)
class Bernstein(Monotone):
    """A Bernstein polynomial with increasing coefficients, a straight line outside ``[-bound, bound]``.

    ``y = sum_k c_k B(k, degree, u)`` with ``u`` from 0 to 1, where log steps from each coefficient to the next are the
    parameters: equal ones give a straight line, zero the identity. The inverse is a root, 10 to 40
    times as much as forward.

    Args:
        degree: of the polynomial, at least 2.
        bound: half width of the interval that is bent.
        largest: largest absolute log step, and log slope.

    Raises:
        ValueError: if an argument is outside its range.

    References:
        Robust Normalizing Flows using Bernstein-type Polynomials. Ramasinghe, Fernando, Khan, Barnes, 2021.
        https://arxiv.org/abs/2102.03509
    """

    degree: int = 16
    bound: float = 5.0
    largest: float = 6.0

    def __post_init__(self) -> None:
        """Checks the constants."""
        check_counts("Bernstein", {"degree": 2}, degree=self.degree)
        check_bound(self, self.bound)
        check_bound(self, self.largest)

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The log steps."""
        return ((self.degree,),)

    def _curve(self, x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        steps = soft_clip(steps, self.largest).exp()
        u, width = ((x / self.bound + 1) / 2).unsqueeze(-1), 2 * self.bound / self.degree
        # What the coefficients count from half of their range, so that a bend on one side does not move the other.
        after = steps.cumsum(-1) - steps.sum(-1, keepdim=True) / 2
        coefficients = torch.cat([-after[..., -1:], after], -1) * width
        return (coefficients * _bernstein(u, self.degree)).sum(-1), (steps * _bernstein(u, self.degree - 1)).sum(-1)


def _integral(slope: object, nodes: int, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
    """The integral of a slope from 0 to ``x``, and the slope there; it takes points ``(..., N)``."""
    places, weights = quadrature(nodes, x)
    slopes = slope(x.unsqueeze(-1) * torch.cat([places, torch.ones_like(places[:1])]), *params)
    return x * (weights * slopes[..., :-1]).sum(-1), slopes[..., -1]


def _chebyshev(u: Tensor, kind: int, coefficients: Tensor) -> Tensor:
    """The last Chebyshev polynomial of some degree, plus a combination of it and those before it."""
    terms = [torch.ones_like(u), kind * u]
    while len(terms) < coefficients.shape[-1]:
        terms.append(2 * u * terms[-1] - terms[-2])
    terms = terms[: coefficients.shape[-1]]
    return sum((c.unsqueeze(-1) * t for c, t in zip(coefficients.unbind(-1), terms, strict=True)), terms[-1])


def _bernstein(u: Tensor, degree: int) -> Tensor:
    """All Bernstein polynomials of a degree at ``u`` of shape ``(..., 1)``."""
    k = torch.arange(degree + 1, dtype=u.dtype, device=u.device)
    ways = (torch.lgamma(torch.full_like(k, degree + 1)) - torch.lgamma(k + 1) - torch.lgamma(degree - k + 1)).exp()
    return ways * _powers(u, degree) * _powers(1 - u, degree).flip(-1)


def _powers(u: Tensor, degree: int) -> Tensor:
    """``1, u, ..., u^degree`` of ``(..., 1)``; torch's power has no second derivative at zero."""
    powers = [torch.ones_like(u)]
    for _ in range(degree):
        powers.append(powers[-1] * u)
    return torch.cat(powers, -1)
