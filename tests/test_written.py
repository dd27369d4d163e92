"""Gradients that are written out equal autograd's, wherever they are used, and step aside where they cannot be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.fx.experimental.proxy_tensor import make_fx

from cases import moved
from pyroflows import bijectors, flows, nets
from pyroflows.compile import capture
from pyroflows.transforms import Coupling, FlowTransform, coupling_gradient, permute

ROWS = torch.linspace(-2.0, 2.0, 20, dtype=torch.float64).view(4, 5)
CONTEXT = torch.linspace(1.0, -1.0, 8, dtype=torch.float64).view(4, 2)


def coupled(context_dim: int = 0, **options: object) -> FlowTransform:
    """Couplings that keep the front and the back in turn, in random orders."""
    return moved(flows.realnvp(5, context_dim, layers=4, hidden_dims=(6, 7), **options).double())


def loss_of(flow: FlowTransform, way: str, x: Tensor, context: Tensor | None) -> Tensor:
    value, ladj = (flow if way == "forward" else flow.inv).call_and_ladj(x, context)
    return (value.sin() * torch.arange(1, 6)).sum() + ladj.cos().sum()


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each use of what is written out."""
    found: list[str] = []

    def watch(kind: type, real: Callable) -> Callable:
        def forward(*args: object) -> object:
            found.append(kind.__name__)
            return real(*args)

        return forward

    for kind in (coupling_gradient._AffineCoupling, coupling_gradient._ScoredCoupling, permute._Reorder):
        monkeypatch.setattr(kind, "forward", staticmethod(watch(kind, kind.forward)))
    return found


@pytest.mark.parametrize("context", [None, CONTEXT], ids=["free", "context"])
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_traced_gradients_are_those_of_autograd(way: str, context: Tensor | None, uses: list[str]) -> None:
    flow = coupled(0 if context is None else 2)
    given = [t.clone().requires_grad_() for t in (ROWS, context) if t is not None]
    parameters = list(flow.parameters())
    expected = torch.autograd.grad(loss_of(flow, way, given[0], *given[1:] or [None]), [*parameters, *given])
    assert not uses  # nobody looks on
    graph = capture(lambda *z: loss_of(flow, way, z[0], *z[1:] or [None]), given, parameters=parameters)
    assert {"_AffineCoupling", "_Reorder"} == set(uses)
    close(graph(*given)[1], list(expected))


@pytest.mark.parametrize("context", [None, CONTEXT], ids=["free", "context"])
def test_a_traced_score_is_that_of_autograd(context: Tensor | None, uses: list[str]) -> None:
    flow = coupled(0 if context is None else 2)
    parameters = list(flow.parameters())

    def found(x: Tensor, *rest: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        value, ladj, score = flow._map_and_score(x, rest[0] if rest else None, x.detach().cos())
        return (value.sin() * (torch.arange(1, 6) + score)).sum(), (ladj, score)

    given = [t for t in (ROWS, context) if t is not None]
    loss, expected = found(*given)
    slopes = torch.autograd.grad(loss, parameters)
    assert not uses
    (_, got), gradients = capture(found, given, parameters=parameters, has_aux=True)(*given)
    assert "_ScoredCoupling" in uses
    close(got, expected)
    close(gradients, list(slopes))


@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_vmapped_gradients_are_those_of_autograd(way: str, uses: list[str]) -> None:
    flow = coupled(2)
    x, context = ROWS.clone().requires_grad_(), CONTEXT[0].clone().requires_grad_()
    leaves = [x, context, *flow.parameters()]
    expected = torch.autograd.grad(loss_of(flow, way, x, context.expand(4, 2)), leaves)
    found = torch.vmap(lambda row: loss_of(flow, way, row, context))(x).sum()
    assert "_AffineCoupling" in uses
    close(torch.autograd.grad(found, leaves), expected)


def test_networks_of_their_own_for_each_row(uses: list[str]) -> None:
    layers = [moved(Coupling(5, bijectors.Affine(), hidden_dims=(6,)).double()) for _ in range(4)]
    stacked, buffers = stack_module_state(layers)
    found = torch.vmap(lambda p, b, row: functional_call(layers[0], (p, b), row))(stacked, buffers, ROWS)
    assert uses
    close(found, torch.stack([layer(row) for layer, row in zip(layers, ROWS, strict=True)]))
    key = "net.0.weight"
    (slope,) = torch.autograd.grad(found.sin().sum(), stacked[key])
    close(slope, torch.stack([_weight_slope(layer, row) for layer, row in zip(layers, ROWS, strict=True)]))


def _weight_slope(layer: Coupling, row: Tensor) -> Tensor:
    return torch.autograd.grad(layer(row).sin().sum(), layer.net[0].weight)[0]


def test_orders_of_their_own_for_each_row() -> None:
    orders = torch.stack([torch.randperm(5) for _ in range(4)])
    found = torch.vmap(permute.reorder)(ROWS, orders, orders.argsort(-1))
    close(found, ROWS.gather(-1, orders))


def test_second_derivatives(uses: list[str]) -> None:
    flow = coupled()

    def curvature(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = ROWS.clone().requires_grad_()
        (slope,) = torch.autograd.grad(call(x), x, create_graph=True)
        return list(torch.autograd.grad(slope.pow(2).sum(), [x, *flow.parameters()], allow_unused=True))

    expected = curvature(lambda x: loss_of(flow, "forward", x, None))
    assert not uses
    found = curvature(lambda x: torch.vmap(lambda row: loss_of(flow, "forward", row, None))(x).sum())
    assert uses
    close(found, expected)


@pytest.mark.parametrize("part", ["value", "ladj"])
def test_one_output_alone_has_a_gradient(part: str) -> None:
    flow, index = coupled(), ["value", "ladj"].index(part)
    x = ROWS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow.call_and_ladj(x)[index].sum(), x)
    found = torch.vmap(lambda row: flow.call_and_ladj(row)[index])(x).sum()
    close(torch.autograd.grad(found, x), (expected,))


def test_traced_graphs_neither_gather_nor_scatter() -> None:
    flow = coupled()
    graph = capture(lambda: torch.vmap(lambda row: loss_of(flow, "forward", row, None))(ROWS).sum())
    names = {str(node.target) for node in graph.module.graph.nodes}
    assert "aten.index_select.default" in names
    assert not names & {"aten.gather.default", "aten.scatter_add.default", "aten.index_add.default"}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.jacrev, torch.func.hessian])
def test_other_transforms_are_left_to_torch(transform: Callable, uses: list[str]) -> None:
    flow = coupled()
    function = transform(lambda row: loss_of(flow, "forward", row, None))
    close(torch.vmap(function)(ROWS), torch.stack([function(row) for row in ROWS]))
    assert not uses


def _hooked(net: nn.Module) -> nn.Module:
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


NETS = {
    "hook": lambda i, o: _hooked(nets.MLP(i, o, (6,))),
    "subclass": lambda i, o: nn.Sequential(_Doubled(i, 6), nn.SiLU(), nn.Linear(6, o)),
    "no bias": lambda i, o: nn.Sequential(nn.Linear(i, 6), nn.SiLU(), nn.Linear(6, o, bias=False)),
    "another activation": lambda i, o: nets.MLP(i, o, (6,), nn.ELU),
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_other_networks_are_left_to_autograd(net: Callable, uses: list[str]) -> None:
    layer = moved(Coupling(5, bijectors.Affine(), net=net).double())
    expected = layer(ROWS).detach()
    close(make_fx(lambda x: layer(x))(ROWS)(ROWS).detach(), expected)
    assert "_AffineCoupling" not in uses
