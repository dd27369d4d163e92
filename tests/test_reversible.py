"""A reversible composition against the ordinary one: the same values and gradients, from less memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import moved, reversible
from pyroflows import flows
from pyroflows.bijectors import RQSpline, Shift
from pyroflows.transforms import Affine, Compose, Coupling, FlowTransform, LowerTriangular, Permute, reversible as module

SMALL = {"hidden_dims": (8,)}
FLOWS: dict[str, Callable[[int], Compose]] = {
    "realnvp": lambda c: flows.realnvp(4, c, layers=5, **SMALL),
    "nsf": lambda c: flows.nsf(4, c, layers=3, **SMALL),
    "tied": lambda c: Compose(3 * [Coupling(4, Shift(), c, **SMALL), Permute(4)]),
    "mixed": lambda c: Compose([LowerTriangular(4, c, **SMALL), Coupling(4, RQSpline(), **SMALL).inv, Permute(4)]),
    "nested": lambda c: Compose([reversible(flows.nice(4, c, **SMALL)), flows.realnvp(4, layers=2, **SMALL)]),
    "without_parameters": lambda c: Compose([Permute(4), Affine(4, c, **SMALL).requires_grad_(False)]),
}


def inputs(context_dim: int, *batch: int) -> list[Tensor]:
    leaves = [torch.randn(*batch, 4, dtype=torch.float64, requires_grad=True)]
    return leaves + ([torch.randn(5, context_dim, dtype=torch.float64, requires_grad=True)] if context_dim else [])


def weighted(out: tuple[Tensor, Tensor]) -> Tensor:
    """A loss whose cotangents of value and ladj differ in every place."""
    return sum((o * torch.linspace(-1, 2, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in out)


def grads(flow: FlowTransform, leaves: list[Tensor], pick: slice = slice(None)) -> tuple[Tensor | None, ...]:
    wanted = [*leaves, *(p for p in flow.parameters() if p.requires_grad)]
    return torch.autograd.grad(weighted(flow.call_and_ladj(*leaves)[pick]), wanted, allow_unused=True)


def saved_bytes(flow: FlowTransform, x: Tensor) -> int:
    """Bytes that a call keeps for the backward pass, beside what the flow holds anyway."""
    held = {t.untyped_storage().data_ptr() for t in (*flow.parameters(), *flow.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = flow.call_and_ladj(x)
    del out
    return sum(kept.values())


@pytest.mark.parametrize("pick", [slice(None), slice(0, 1), slice(1, 2)], ids=["both", "value", "ladj"])
@pytest.mark.parametrize("way", ["forward", "inverse"])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_are_those_of_the_ordinary_way(name: str, context_dim: int, way: str, pick: slice) -> None:
    plain = moved(FLOWS[name](context_dim)).double()
    again, leaves = reversible(plain), inputs(context_dim, 3, 1 if context_dim else 5)
    pair = (plain, again) if way == "forward" else (plain.inv, again.inv)
    if name == "tied" and pick == slice(1, 2):
        assert not pair[1].call_and_ladj(*leaves)[1].any()  # shifts keep volume
        return
    assert_close(*(flow.call_and_ladj(*leaves) for flow in pair), rtol=0, atol=0)
    for expected, got in zip(*(grads(flow, leaves, pick) for flow in pair), strict=True):
        assert_close(torch.zeros(()) if got is None else got, 0 * got if expected is None else expected, rtol=1e-8, atol=1e-8)
