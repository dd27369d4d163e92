"""The incremental inverse against the naive loop, which lives only here."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from cases import moved
from pyroflows.bijectors import Affine, Bijector, RQSpline
from pyroflows.flows import iaf, maf
from pyroflows.nets import MaskedMLP
from pyroflows.transforms import Autoregressive

BIJECTORS = {"affine": Affine(), "spline": RQSpline(bins=5)}
WIDTHS = [(3,), (8, 8), (2, 5, 3), (64, 64)]


def build(
    bijector: Bijector,
    context_dim: int = 0,
    input_dim: int = 7,
    hidden_dims: tuple[int, ...] = (8, 8),
    scale: float = 0.5,
    activation: Callable[[], nn.Module] = nn.Tanh,
) -> Autoregressive:
    options = {"hidden_dims": hidden_dims, "activation": activation}
    return moved(Autoregressive(input_dim, bijector, context_dim, fast="inverse", order="random", **options), scale)


def naive(flow: Autoregressive, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """One pass of the whole network for each dimension, differentiated by plain autograd."""
    batch = y.shape[:-1] if context is None else torch.broadcast_shapes(y.shape[:-1], context.shape[:-1])
    y = y[..., flow.order].expand(*batch, -1)
    x, ladj = torch.zeros_like(y), torch.zeros(())
    for i in range(flow.input_dim):
        params = flow.bijector.unpack(flow.net(x, context)[..., i, :])
        value, part = flow.bijector.inverse(y[..., i], *params)
        x = torch.cat([x[..., :i], value.unsqueeze(-1), x[..., i + 1 :]], dim=-1)
        ladj = ladj + part
    return x[..., flow.order_back], ladj


@pytest.mark.parametrize("hidden_dims", WIDTHS)
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("name", BIJECTORS)
def test_values_agree_with_the_naive_loop_in_float32(name: str, context_dim: int, hidden_dims: tuple[int, ...]) -> None:
    flow = build(BIJECTORS[name], context_dim, hidden_dims=hidden_dims, scale=0.2)
    context = torch.randn(50, context_dim) if context_dim else None
    y = 2 * torch.randn(50, 7)
    got, expected = flow.call_and_ladj(y, context), naive(flow, y, context)
    assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden_dims", WIDTHS[:3])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("name", BIJECTORS)
def test_gradients_agree_with_the_naive_loop(name: str, context_dim: int, hidden_dims: tuple[int, ...]) -> None:
    flow = build(BIJECTORS[name], context_dim, hidden_dims=hidden_dims).double()
    context = torch.randn(1, 4, context_dim, dtype=torch.float64, requires_grad=True) if context_dim else None
    y = torch.randn(3, 1, 7, dtype=torch.float64, requires_grad=True)
    leaves = [y, *flow.parameters(), *([] if context is None else [context])]
    weights = torch.randn(3, 4, 7), torch.randn(3, 4)

    def grads(out: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((o * w).sum() for o, w in zip(out, weights, strict=True)), leaves)

    assert_close(grads(flow.call_and_ladj(y, context)), grads(naive(flow, y, context)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", BIJECTORS)
def test_gradients_of_the_value_alone_and_of_the_ladj_alone(name: str) -> None:
    flow, y = build(BIJECTORS[name]).double(), torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    for index in (0, 1):
        got = torch.autograd.grad(flow.call_and_ladj(y)[index].sum(), [y, *flow.parameters()])
        expected = torch.autograd.grad(naive(flow, y, None)[index].sum(), [y, *flow.parameters()])
        assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.ELU])
def test_any_elementwise_activation(activation: type[nn.Module]) -> None:
    flow, y = build(Affine(), activation=activation).double(), torch.randn(4, 7, dtype=torch.float64)
    leaves = list(flow.parameters())
    got, expected = flow.call_and_ladj(y), naive(flow, y, None)
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got[0].sum(), leaves), torch.autograd.grad(expected[0].sum(), leaves))


@pytest.mark.parametrize("frozen", ["parameters", "input"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    flow, y = build(Affine()), torch.randn(4, 7, requires_grad=frozen == "parameters")
    flow.requires_grad_(frozen == "input")
    x, ladj = flow.call_and_ladj(y)
    (x.sum() + ladj.sum()).backward()
    assert (y.grad is None) == (frozen == "input")
    assert all((p.grad is None) == (frozen == "parameters") for p in flow.parameters())


def test_the_graph_can_be_used_twice_if_retained() -> None:
    flow, y = build(Affine()), torch.randn(4, 7, requires_grad=True)
    x, ladj = flow.call_and_ladj(y)
    first = torch.autograd.grad(x.sum() + ladj.sum(), y, retain_graph=True)
    assert_close(torch.autograd.grad(x.sum() + ladj.sum(), y), first)


@pytest.mark.parametrize("input_dim", [1, 2, 5])
def test_second_derivatives_are_right_or_refused(input_dim: int) -> None:
    flow = build(RQSpline(), input_dim=input_dim).double()
    y = torch.randn(2, input_dim, dtype=torch.float64, requires_grad=True)
    if input_dim == 1:
        assert torch.autograd.gradgradcheck(flow.call_and_ladj, y)
    else:
        (grad,) = torch.autograd.grad(flow.call_and_ladj(y)[1].sum(), y, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative: take the flow's cheap direction"):
            grad.sum().backward()


def test_each_weight_is_multiplied_once() -> None:
    flow, y = build(Affine(), input_dim=32, hidden_dims=(64, 64)), torch.randn(16, 32)
    with FlopCounterMode(display=False) as single, torch.no_grad():
        flow.inv.call_and_ladj(y)
    with FlopCounterMode(display=False) as walk, torch.no_grad():
        flow.call_and_ladj(y)
    assert walk.get_total_flops() <= 2 * single.get_total_flops()  # the walk, and one pass for the ladj


@pytest.mark.parametrize("make", [maf, iaf])
def test_deep_flows_invert_in_float32(make: Callable) -> None:
    flow, x = moved(make(16, layers=5), by=0.05), torch.randn(100, 16)
    assert_close(flow.inv(flow(x).clone()), x, rtol=1e-3, atol=1e-3)


def test_no_rows_and_no_batch() -> None:
    flow = build(Affine())
    for shape in ((0, 7), (3, 0, 7), (7,), (1, 7), (2, 3, 7)):
        y = torch.randn(shape, requires_grad=True)
        x, ladj = flow.call_and_ladj(y)
        (x.sum() + ladj.sum()).backward()
        assert x.shape == y.grad.shape == shape
        assert ladj.shape == shape[:-1]


@pytest.mark.parametrize("context_dim", [0, 2])
def test_masked_network_sees_only_what_comes_before(context_dim: int) -> None:
    net = MaskedMLP(5, 3, context_dim, hidden_dims=(7, 5))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    context = torch.randn(context_dim) if context_dim else None
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, context), torch.randn(5))
    seen = jacobian.abs().amax(dim=1) > 0
    assert torch.equal(seen, torch.ones(5, 5).tril(-1).bool())


def test_masked_network_hides_no_unit_from_the_context() -> None:
    net = MaskedMLP(4, 2, 3, hidden_dims=(9, 6))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    jacobian = torch.autograd.functional.jacobian(lambda c: net(torch.randn(4), c), torch.randn(3))
    assert (jacobian != 0).all()


def test_masked_network_counts_the_units_that_see_so_many_inputs() -> None:
    net = MaskedMLP(4, 2, hidden_dims=(6,))
    assert [net.seen(0, i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert [net.seen(1, i) for i in range(5)] == [0, 2, 4, 6, 6]


@pytest.mark.parametrize("hidden_dims", [(8,), (7,), (6, 5), (4, 3)])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_masked_network_starts_at_zero_with_gradients_of_hidden_units(context_dim: int, hidden_dims: tuple) -> None:
    net = MaskedMLP(5, 3, context_dim, hidden_dims)
    out = net(torch.randn(20, 5), torch.randn(20, context_dim) if context_dim else None)
    assert_close(out, torch.zeros_like(out), rtol=0, atol=1e-6)
    (out * torch.randn_like(out)).sum().backward()
    for layer in net.layers[-2:]:
        assert layer.weight.grad.abs().max() > 1e-3


def test_masked_network_refuses_no_hidden_layer() -> None:
    with pytest.raises(ValueError, match="expected at least one hidden layer, got hidden_dims of length 0"):
        MaskedMLP(3, 2, hidden_dims=())


WAYS = {
    "grad of grad": lambda f, x: torch.func.grad(lambda u: torch.func.grad(f)(u).sum())(x),
    "functional hessian": torch.autograd.functional.hessian,
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch itself
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", [iaf, maf])
def test_f4_derivatives_that_are_not_there_say_what_has_them(recipe: Callable, way: str) -> None:
    made = recipe(3, layers=2)
    for p in made.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    slow = made.inv if made.fast == "forward" else made

    def squared(x: Tensor) -> Tensor:
        return slow.call_and_ladj(x)[0].square().sum()

    with pytest.raises(NotImplementedError, match=r"no (second|forward-mode) derivative: take the flow's"):
        WAYS[way](squared, torch.randn(3))
    assert torch.func.grad(squared)(torch.randn(3)).isfinite().all()
    assert WAYS[way](lambda x: slow.inv.call_and_ladj(x)[0].square().sum(), torch.randn(3)) is not None
