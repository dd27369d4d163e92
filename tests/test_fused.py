"""A step as one graph: the gradient of many parameters as one vector, Adam as torch has it, and a tidy replay."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows.compile import Graph, Untraceable, capture, fuse, lay_flat
from pyroflows.compile.adam import Adam
from pyroflows.compile.compare import equal
from pyroflows.compile.simplify import quick, trace


def fused(net: nn.Module, x: Tensor, compile: bool) -> tuple[Graph, list[Tensor]]:
    """Steps of Adam on the mean square of a network, which return the squares as well."""

    def losses(x: Tensor) -> tuple[Tensor, Tensor]:
        each = net(x).square().squeeze(-1)
        return each.mean(), each

    def update(value: tuple[Tensor, Tensor], slope: Tensor, state: list[Tensor]) -> list[Tensor]:
        return [*adam(state[0], slope, torch.tensor([0.01]), state[1:]), *value]

    adam, parameters = Adam(), list(net.parameters())
    flat = lay_flat(parameters)
    state = [flat, *adam.start(flat)]
    graph = fuse(capture(losses, [x], has_aux=True), parameters, update, state, [x])
    return graph.compile([x]) if compile else graph, state


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fused_step_is_that_of_torch(compile: bool) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(7, 3)
    twin = copy.deepcopy(net)
    graph, state = fused(net, x, compile)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)
    for _ in range(5):
        loss, each = graph.run(*state, *graph.closed, x)
        adam.zero_grad()
        expected = twin(x).square().squeeze(-1)
        expected.mean().backward()
        adam.step()
        assert_close(each, expected.detach())
        assert_close(loss, expected.detach().mean())
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(own, other)
    assert state[3] == 5


def test_gaps_are_zero_and_others_are_read() -> None:
    a, b, c, x = (torch.tensor([float(i), 1.0], requires_grad=True) for i in range(4))
    graph = capture(lambda x: (a * c * x).sum() + b.detach().sum(), [x.detach()], parameters=[a, b, c])
    flat = lay_flat([a, b])
    step = fuse(graph, [a, b], lambda loss, slope, state: [state[0] + slope, loss], [flat], [x.detach()])
    assert step.closed[0] is c
    step.run(flat, *step.closed, x.detach())
    assert_close(flat, torch.tensor([6.0, 2.0, 1.0, 1.0]))
    assert_close(a.detach(), torch.tensor([6.0, 2.0]))


def test_laying_flat_needs_one_dtype_and_memory_of_its_own() -> None:
    a = torch.ones(2, requires_grad=True)
    with pytest.raises(Untraceable, match="differ in dtype or device"):
        lay_flat([a, torch.ones(2, dtype=torch.float64)])
    with pytest.raises(Untraceable, match="share their memory"):
        lay_flat([a, a.detach()])


def nodes(function: object) -> list[str]:
    return [getattr(n.target, "__name__", "") for n in function.__self__.graph.nodes if n.op == "call_function"]


def test_replays_do_equal_things_once_and_constants_never() -> None:
    def function(x: Tensor) -> list[Tensor]:
        noise = torch.randn(3) + torch.randn(3)
        return [x.exp() * x.exp() + torch.arange(3).float().exp() + noise.expand(3).view(3)]

    x = torch.tensor([0.1, 0.2, 0.3])
    tidied = quick(trace(function, [x]), [x])
    assert sorted(nodes(tidied)) == ["add", "add", "add", "exp", "mul", "randn", "randn"]
    results = []
    for run in (function, tidied):
        torch.manual_seed(1)
        results.append(run(x)[0])
    assert_close(*results)


def test_replays_keep_the_order_of_changes() -> None:
    def function(x: Tensor) -> list[Tensor]:
        before, product = x.clone(), x * 2
        x.add_(1)
        return [before, product, x * 2]

    x = torch.zeros(2)
    tidied = quick(trace(function, [x]), [x])
    assert_close(tidied(x), [torch.zeros(2), torch.zeros(2), torch.full((2,), 2.0)])
    assert_close(x, torch.ones(2))


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 3, 4), (3, 1, 4), (3, 4, 1), (3, 4, 5), (1, 1, 1)])
def test_products_of_rows_and_columns(rows: int, inner: int, columns: int) -> None:
    a, b, c = torch.randn(rows, inner), torch.randn(inner, columns), torch.randn(columns)

    def function(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        return [a @ b, torch.addmm(c, a, b), torch.addmm(c, a, b, beta=2, alpha=3)]

    assert_close(trace(function, [a, b, c])(a, b, c), function(a, b, c))


def test_a_replay_that_would_differ_is_the_graph_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    module = trace(lambda x: [x.exp()], [torch.ones(2)])
    monkeypatch.setattr(
        "pyroflows.compile.simplify._call_directly",
        lambda graph: graph.find_nodes(op="output")[0].update_arg(0, (next(iter(graph.nodes)),)),
    )
    assert_close(quick(module, [torch.ones(2)])(torch.zeros(2)), [torch.ones(2)])


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32, torch.complex64])
def test_functions_are_compared_in_numbers_of_every_kind(kind: torch.dtype) -> None:
    given = [torch.tensor([0.0, 2.0])]
    assert equal(lambda x: [x.to(kind)], lambda x: [(x * 1.00001).to(kind)], given)
    assert not equal(lambda x: [x.to(kind)], lambda x: [(x + 1).to(kind)], given)
