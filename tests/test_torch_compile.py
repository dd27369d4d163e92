"""What torch.compile makes of flows has their gradients; torch 2.13 gets those of running sums and gathers wrong.

A number per row is compiled, as users do, and for two threads: a sum in the graph and one thread hide what goes wrong.
"""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cases import BIJECTORS, CASES
from pyroflows import flows
from pyroflows.bijectors import RQSpline
from pyroflows.transforms import FlowTransform

ROWS = 64  # vectors of numbers, and some that are left over
# One of each kind; to compile all takes an hour.
KINDS = (
    "affine lower_triangular lower_triangular_low_rank full_rank elementwise_1d coupling_alternating coupling_net "
    "autoregressive_random autoregressive_elu compose_mixed compose_reversible_nsf realnvp realnvp_tails maf iaf "
    "copula nsf nsf_maf nsf_iaf"
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def assert_same_gradients(loss: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    torch.compiler.reset()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers announce deprecations of torch's own
        for function in (loss, torch.compile(loss, fullgraph=True)):
            value = function().sum()
            found.append((value, torch.autograd.grad(value, leaves, allow_unused=True)))
    (expected, old), (compiled, new) = found
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(old, new, strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(1 + one.abs().max()))


def assert_bijector(name: str, inverse: bool) -> None:
    torch.manual_seed(0)
    bijector = BIJECTORS[name]()
    z = torch.randn(ROWS, 3, requires_grad=True)
    raw = torch.randn(ROWS, 3, bijector.param_count, requires_grad=True)

    def loss() -> Tensor:
        value, ladj = bijector.apply(z, bijector.unpack(raw), inverse)
        return (value.sin() + ladj).sum(-1)

    assert_same_gradients(loss, [z, raw])


@pytest.mark.parametrize("inverse", [pytest.param(False, marks=pytest.mark.slow), True], ids=["forward", "inverse"])
def test_gradients_of_a_spline(inverse: bool) -> None:
    name = next(name for name, make in BIJECTORS.items() if type(make()) is RQSpline)
    assert_bijector(name, inverse)


def sum_of(transform: FlowTransform, x: Tensor, context: Tensor | None = None) -> Tensor:
    value, ladj = transform.call_and_ladj(x, context)
    return value.sin().sum(-1) + ladj


@pytest.mark.slow
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", BIJECTORS)
def test_gradients_of_bijectors(name: str, inverse: bool) -> None:
    assert_bijector(name, inverse)


@pytest.mark.slow
def test_gradients_of_reordered_dimensions() -> None:
    torch.manual_seed(0)
    flow = flows.maf(4, layers=2, hidden_dims=[8])
    for p in flow.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x = torch.randn(ROWS, 4, requires_grad=True)
    assert_same_gradients(lambda: sum_of(flow, x), [x, *flow.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{kind}{end}" for kind in KINDS.split() for end in ("", "_context")])
def test_gradients_of_densities(name: str) -> None:
    torch.manual_seed(0)
    transform = CASES[name]()
    x = torch.randn(ROWS, transform.input_dim, requires_grad=True)
    context = torch.randn(ROWS, transform.context_dim) if transform.context_dim else None

    assert_same_gradients(lambda: sum_of(transform, x, context), [x, *transform.parameters()])
