"""A reversible composition against the ordinary one: the same values and gradients, from less memory."""

import copy
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from cases import moved, reversible
from pyroflows.bijectors import Affine as AffineBijector
from pyroflows.bijectors import RQSpline
from pyroflows.transforms import Affine, Compose, Coupling, FlowTransform, LowerTriangular, Permute

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from memory import saved_bytes

from pyroflows import flows

SMALL = {"hidden_dims": (8,)}
FLOWS: dict[str, Callable[[int], Compose]] = {
    "realnvp": lambda c: flows.realnvp(4, c, layers=5, **SMALL),
    "nsf": lambda c: flows.nsf(4, c, layers=3, **SMALL),
    "tied": lambda c: Compose(3 * [Coupling(4, AffineBijector(), c, **SMALL), Permute(4)]),
    "mixed": lambda c: Compose([LowerTriangular(4, c, **SMALL), Coupling(4, RQSpline(), **SMALL).inv, Permute(4)]),
    "nested": lambda c: Compose([reversible(flows.nice(4, c, **SMALL)), flows.realnvp(4, layers=2, **SMALL)]),
    "frozen": lambda c: Compose([Permute(4), Coupling(4, RQSpline(), c, **SMALL).requires_grad_(False), Affine(4)]),
    "fixed_context": lambda c: Compose([Affine(4, 3, **SMALL).condition(torch.ones(5, 3)), *flows.nsf(4, c, **SMALL)]),
}


def inputs(context_dim: int, *batch: int) -> list[Tensor]:
    leaves = [torch.randn(*batch, 4, dtype=torch.float64, requires_grad=True)]
    return leaves + ([torch.randn(5, context_dim, dtype=torch.float64, requires_grad=True)] if context_dim else [])


def weighted(out: tuple[Tensor, Tensor]) -> Tensor:
    """A loss whose cotangents of value and ladj differ in every place."""
    return sum((o * torch.linspace(-1, 2, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in out)


def grads(flow: FlowTransform, leaves: list[Tensor], pick: slice = slice(None)) -> tuple[Tensor, ...]:
    wanted = [*leaves, *(p for p in flow.parameters() if p.requires_grad)]
    return torch.autograd.grad(weighted(flow.call_and_ladj(*leaves)[pick]), wanted, materialize_grads=True)


def pair(name: str = "nsf", context_dim: int = 0) -> tuple[Compose, Compose]:
    """An ordinary flow, and a reversible one over the same parts."""
    plain = moved(FLOWS[name](context_dim)).double()
    return plain, reversible(plain)


@pytest.mark.parametrize("pick", [slice(None), slice(0, 1), slice(1, 2)], ids=["both", "value", "ladj"])
@pytest.mark.parametrize("way", ["forward", "inverse"])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_are_those_of_the_ordinary_way(name: str, context_dim: int, way: str, pick: slice) -> None:
    plain, again = pair(name, context_dim)
    leaves = inputs(context_dim, 3, 1 if context_dim else 5)
    if way == "inverse":
        plain, again = plain.inv, again.inv
    assert_close(again.call_and_ladj(*leaves), plain.call_and_ladj(*leaves))
    assert_close(grads(again, leaves, pick), grads(plain, leaves, pick), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("make", [flows.realnvp, flows.nsf])
def test_memory_does_not_grow_with_depth(make: Callable[..., Compose], context_dim: int) -> None:
    x = torch.randn(64, 4, requires_grad=True)
    context = [torch.randn(64, context_dim)] if context_dim else []
    sizes = {}
    for layers in (4, 32):
        plain = make(4, context_dim, layers=layers, **SMALL)
        both = plain, reversible(plain)
        sizes[layers] = [saved_bytes(partial(flow.call_and_ladj, x, *context), flow) for flow in both]
    assert sizes[32][1] == sizes[4][1] == 4 * 64 * (4 + context_dim)  # the output and the context
    assert sizes[32][0] > 4 * sizes[4][0]


def test_the_context_of_a_part_carries_gradients() -> None:
    part = moved(Coupling(4, RQSpline(), 2, **SMALL)).double()
    (x,), context = inputs(0, 5), torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    got, expected = (
        torch.autograd.grad(weighted(Compose([part.condition(context)], reversible=way).call_and_ladj(x)), context)
        for way in (True, False)
    )
    assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_second_derivatives(context_dim: int) -> None:
    plain, again = pair("realnvp", context_dim)
    leaves, found = inputs(context_dim, 5), []
    for flow in (plain, again):
        wanted = [*leaves, *flow.parameters()]
        first = torch.autograd.grad(weighted(flow.call_and_ladj(*leaves)), wanted, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted, materialize_grads=True))
    assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


def test_batches_of_gradients() -> None:
    (plain, again), (x,) = pair(), inputs(0, 5)
    got, expected = (torch.autograd.functional.jacobian(flow, x, vectorize=True) for flow in (again, plain))
    assert_close(got, expected)


def test_the_graph_can_be_used_twice_if_retained() -> None:
    (_, again), (x,) = pair(), inputs(0, 5)
    loss = weighted(again.call_and_ladj(x))
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert_close(torch.autograd.grad(loss, x), first)


def test_the_backward_pass_sees_the_parameters_of_the_call() -> None:
    (plain, again), (x,) = pair(), inputs(0, 5)
    others = {name: (p.detach() + 0.1).requires_grad_() for name, p in again.named_parameters()}

    def found(flow: Compose) -> tuple[Tensor, ...]:
        y = functional_call(flow, others, (x,))
        return torch.autograd.grad(weighted((y,)), [x, *others.values()])

    assert_close(found(again), found(plain), rtol=1e-8, atol=1e-8)


def test_a_parameter_that_moved_before_the_backward_pass_is_an_error() -> None:
    (_, again), (x,) = pair(), inputs(0, 5)
    loss = weighted(again.call_and_ladj(x))
    with torch.no_grad():
        again[1].net[0].bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_ordinary_way_is_taken_where_no_graph_is_made_or_a_transform_looks_on() -> None:
    (plain, again), x = pair(), torch.randn(5, 4, dtype=torch.float64)
    expected = plain.call_and_ladj(x)
    with torch.no_grad():
        assert_close(again.call_and_ladj(x), expected)
    assert again.requires_grad_(False).call_and_ladj(x)[0].grad_fn is None
    again.requires_grad_()
    assert "Reversible" in type(again.call_and_ladj(x)[0].grad_fn).__name__
    assert_close(torch.func.vmap(again.call_and_ladj)(x), expected)
    rows = torch.func.vmap(torch.func.grad(lambda row: again.call_and_ladj(row)[1]))(x)
    x.requires_grad_()
    assert_close(rows, torch.autograd.grad(plain.call_and_ladj(x)[1].sum(), x)[0])


def test_autocast_takes_the_ordinary_way() -> None:
    plain, x = moved(flows.realnvp(4, layers=3, **SMALL)), torch.randn(5, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(grads(reversible(plain), [x]), grads(plain, [x]), rtol=0, atol=0)


@pytest.mark.parametrize("make", [flows.realnvp, flows.nsf])
def test_rounding_in_float32_over_depth(make: Callable[..., Compose]) -> None:
    plain, x = moved(make(8, layers=32), by=0.05), torch.randn(100, 8, requires_grad=True)
    for got, expected in zip(grads(reversible(plain), [x]), grads(plain, [x]), strict=True):
        assert (got - expected).norm() <= 1e-3 * expected.norm()


def test_it_says_so_and_stays_so_in_copies() -> None:
    _, again = pair()
    assert "Compose(\n  input_dim=4, reversible=True" in repr(again)
    assert "reversible" not in repr(Compose([Permute(2)]))
    assert copy.deepcopy(again).reversible
    assert pickle.loads(pickle.dumps(again)).reversible
    assert again.fast == again.inv.fast == "both"
