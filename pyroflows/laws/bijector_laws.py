"""The laws of bijectors, each a short function."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import biject_to

from ..bijectors import Bijector
from ..transforms.domains import is_same, is_whole_space
from .expectations import expect, expect_close, law_broken, normal

ROWS = 4  # how many sets of parameters a law sees
LARGEST_LADJ = 30.0  # whatever the parameters: a slope of 1e13


def check_bijector(bijector: Bijector) -> None:
    """Checks the four laws of a bijector, that it is monotone as it says, and that its directions undo each other.

    Raises:
        AssertionError: naming the first law of ``BIJECTOR_LAWS`` that does not hold.

    Example:
        >>> from pyroflows.bijectors import LeakyReLU
        >>> check_bijector(LeakyReLU())
    """
    for name in BIJECTOR_LAWS:
        check_bijector_law(name, bijector)


def check_bijector_law(name: str, bijector: Bijector) -> None:
    """Checks one law of ``BIJECTOR_LAWS`` in both directions, see :func:`check_bijector`."""
    for way, subject in (("forward", bijector), ("inverse", bijector.inv)):
        with law_broken(name, bijector, way):
            BIJECTOR_LAWS[name](subject)


def _params(bijector: Bijector, scale: float) -> list[Tensor]:
    """Random parameters for a batch of ``(ROWS, 1)``."""
    return bijector.unpack(scale * normal(ROWS, 1, bijector.param_count))


def _grid(bijector: Bijector, wide: float = 6.0) -> Tensor:
    """Points of the domain: of the line as given, else of half as much of it mapped there."""
    line = torch.linspace(-wide, wide, 101, dtype=torch.float64)
    return line if is_whole_space(bijector.domain) else biject_to(bijector.domain)(line / 2)


def broadcasts(bijector: Bijector) -> None:
    """Inputs and parameters broadcast, the ladj to the value; each scalar is mapped on its own."""
    params = _params(bijector, 1.0)
    value, ladj = bijector.forward(_grid(bijector), *params)
    expect("shape of the value", value.shape, (ROWS, 101) if params else (101,))
    value, ladj = value.expand(ROWS, 101), ladj.expand(ROWS, 101)
    single, single_ladj = bijector.forward(_grid(bijector)[7], *(p[2, 0] for p in params))
    expect_close("one scalar", single, value[2, 7])
    expect_close("ladj of one scalar", single_ladj, ladj[2, 7])


def slope(bijector: Bijector) -> None:
    """The ladj is the log derivative, but for its sign, of the direction taken."""
    z = _grid(bijector).expand(ROWS, -1).clone().requires_grad_()
    value, ladj = bijector.forward(z, *_params(bijector, 1.0))
    (derivative,) = torch.autograd.grad(value.sum(), z)
    expect_close("ladj", ladj.expand_as(value), derivative.abs().log())


def identity(bijector: Bijector) -> None:
    """Parameters that are all zero give the identity, where there are any and the map is of a domain onto itself."""
    if not bijector.param_count or not is_same(bijector.domain, bijector.codomain):
        return
    value, ladj = bijector.forward(_grid(bijector), *_params(bijector, 0.0))
    expect_close("value at zero parameters", value, _grid(bijector).expand_as(value))
    expect_close("ladj at zero parameters", ladj, torch.zeros_like(ladj))


def bounded(bijector: Bijector) -> None:
    """Slopes stay away from zero and infinity, whatever the parameters."""
    for scale in (10.0, 1e5, 1e10):
        _, ladj = bijector.forward(_grid(bijector), *_params(bijector, scale))
        expect(f"all |ladj| below {LARGEST_LADJ}", bool((ladj.abs() < LARGEST_LADJ).all()), True)


def increasing(bijector: Bijector) -> None:
    """A larger input gives a larger output, or a smaller one as the sign says; on the whole line also in the tails.

    A sign of 0 says neither, as of a circle that is turned.
    """
    whole = is_whole_space(bijector.domain) and is_whole_space(bijector.codomain)
    for wide in () if not bijector.sign else (6.0, 1e4) if whole else (6.0,):
        value, _ = bijector.forward(_grid(bijector, wide), *_params(bijector, 1.0))
        expect("increasing", bool((bijector.sign * value.diff(dim=-1) > 0).all()), True)


def round_trip(bijector: Bijector) -> None:
    """There and back is where one started, and the two ladj cancel."""
    params, z = _params(bijector, 1.0), _grid(bijector).expand(ROWS, -1)
    value, ladj = bijector.forward(z, *params)
    back, ladj_back = bijector.inverse(value, *params)
    expect_close("there and back", back, z)
    expect_close("ladj on the way back", ladj_back, -ladj)


BIJECTOR_LAWS: dict[str, Callable[[Bijector], None]] = {
    law.__name__: law for law in (broadcasts, slope, identity, bounded, increasing, round_trip)
}
