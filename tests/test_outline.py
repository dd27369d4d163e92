"""outline: what recurs in a graph becomes calls of one function, and the graph does what it did."""

import gc
import operator
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

import pyro
import pytest
import torch
from torch import Tensor, fx
from torch.nn.functional import linear

from pyroflows import AutoFlow, CompiledSVI, CompiledTrace_ELBO, flows
from pyroflows.compile import inductor, inductor_mends
from pyroflows.compile.outline import outline
from pyroflows.compile.record import record
from tests.elbo_cases import Y, schools

CALL = torch.ops.higher_order.invoke_subgraph


def weights(layers: int, size: int = 6) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size, size) / 2 for _ in range(layers)]


def layer(z: Tensor, weight: Tensor) -> Tensor:
    """Sixty operations and a few views."""
    left, right = (z @ weight.t()).chunk(2, -1)
    for scale in (0.5, 0.7, 0.9, 1.1, 1.3):
        left = (left.tanh() * scale + right.sigmoid()).exp().sin() - left.unsqueeze(0).abs().sum(0).atan().neg()
    return torch.cat([right, left.cos()], -1) + z.tanh()


def deep(z: Tensor, *given: Tensor) -> list[Tensor]:
    for weight in given:
        z = layer(z, weight)
    return [z.sum()]


def with_gradients(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    def both(*given: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in given]
        with torch.enable_grad():
            value = function(*leaves)[0]
            return [value.detach(), *torch.autograd.grad(value, leaves)]

    return both


def calls(module: fx.GraphModule) -> list[str]:
    return [node.args[1] for node in module.graph.find_nodes(op="call_function", target=CALL)]


def check(function: Callable[..., list[Tensor]], given: Sequence[Tensor], names: list[str]) -> fx.GraphModule:
    """Outlines a function; the graph must make these calls and do the same, also to its arguments."""
    module = record(function, [t.clone() for t in given])
    before, parts = str(module.graph), outline(module)
    assert str(module.graph) == before
    assert calls(parts) == names
    results = []
    for run in (module, parts):
        torch.manual_seed(1)
        own = [t.clone() for t in given]
        results.append([*run(*own), *own])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    parts.graph.lint()
    return parts


@torch.no_grad()
def test_layers_and_their_gradients_become_calls() -> None:
    parts = check(with_gradients(deep), [torch.randn(5, 6), *weights(6)], ["part_1"] * 6 + ["part_0"] * 5)
    assert len(parts.graph.nodes) < 400
    inner = fx.GraphModule({}, parts.part_1.graph)
    assert {node.meta["kind"][0] for node in inner.graph.nodes if "kind" in node.meta} >= {(5, 6), (5, 3)}


@torch.no_grad()
def test_graphs_without_layers_are_left_as_they_are() -> None:
    for function in (lambda z: [z.exp().sum()], lambda z: deep(z, *weights(1)), lambda z: [z]):
        module = record(function, [torch.randn(5, 6)])
        assert outline(module) is module


@torch.no_grad()
def test_layers_of_other_shapes_or_numbers_are_others() -> None:
    z = torch.randn(5, 6)
    check(lambda z: [*deep(z, *weights(5)), *deep(z[:3], *weights(5))], [z], ["part_0"] * 5 + ["part_1"] * 5)
    module = record(lambda z: [layer(layer(z, weights(1)[0]) * scale, weights(1)[0]) for scale in (1, 1.0, True)], [z])
    assert calls(outline(module)) == ["part_0"] * 6


@torch.no_grad()
def test_equal_operations_that_take_other_places_are_others() -> None:
    """The second layer takes the value before the last one where the first takes the last one."""

    def twisted(z: Tensor, last: bool) -> Tensor:
        before = z
        for _ in range(25):
            before, z = z, (z if last else before).sin().cos().exp().neg().tanh().abs()
        return z

    def function(z: Tensor) -> list[Tensor]:
        return [twisted(z, True), twisted(z, False), twisted(z + 1, True), twisted(z + 1, False)]

    check(function, [torch.randn(4)], calls(outline(record(function, [torch.randn(4)]))))


@torch.no_grad()
def test_what_is_drawn_or_changed_stays_in_its_place() -> None:
    def function(z: Tensor, *given: Tensor) -> list[Tensor]:
        for weight in given:
            z = layer(z, weight) + torch.randn(5, 6)
            z[0] += 1
        given[0].mul_(2)
        return [z, given[0] + z.sum()]

    parts = check(function, [torch.randn(5, 6), *weights(6)], ["part_0"] * 6)
    inner = {str(node.target) for node in parts.part_0.graph.nodes}
    assert not {name for name in inner if "randn" in name or name.endswith("_.Tensor")}


@torch.no_grad()
def test_views_and_several_outputs_of_layers_are_used_elsewhere() -> None:
    def function(z: Tensor, *given: Tensor) -> list[Tensor]:
        kept = []
        for weight in given:
            z = layer(z, weight)
            top, order = z.sort(-1)
            kept += [z.t(), z.unbind(-1)[2], top[:, 1:].expand(2, 5, 5), order, weight.t()]
        return [*kept, z]

    check(function, [torch.randn(5, 6), *weights(6)], ["part_0"] * 6)


@torch.no_grad()
def test_constants_and_shared_arguments_are_given() -> None:
    table = weights(7)

    def function(z: Tensor, shared: Tensor) -> list[Tensor]:
        for index, weight in enumerate(table[1:]):
            z = layer(z * torch.tensor(index + 0.5), weight) + linear(z, shared, table[0][0])
        return [z]

    parts = check(function, [torch.randn(5, 6), table[0]], ["part_0"] * 6)
    first = next(iter(parts.graph.find_nodes(op="call_function", target=CALL)))
    assert len(first.args) == 2 + 5


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 20))])
@torch.no_grad()
def test_random_graphs_stay_what_they_are(seed: int) -> None:
    pick = Random(seed).randrange
    unary = [torch.sin, torch.tanh, Tensor.t, lambda z: z.reshape(-1, 2)[1:].exp().sum() + z]
    unary = [*3 * unary, torch.randn_like]
    words = [[(pick(13), pick(4)) for _ in range(pick(30) + 15)] for _ in range(2)]
    text = [words[pick(2)] for _ in range(14)]

    def function(z: Tensor) -> list[Tensor]:
        past = [z, z.cos(), z + 1, z.t()]
        for which, back in (pair for word in text for pair in word):
            past.append((unary[which](past[-1]) + past[-1 - back] / 2).tanh())
        return past[:: pick(7) + 3]

    module = record(function, [torch.randn(4, 4)])
    names = calls(outline(module))
    assert len(names) > 1
    check(module, [torch.randn(4, 4)], names)


def deep_svi(compile: bool) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoFlow(schools, partial(flows.realnvp, layers=8))
    svi = CompiledSVI(
        schools, guide, pyro.optim.Adam({"lr": 1e-3}), CompiledTrace_ELBO(4, strict=True, compile=compile)
    )
    return svi.run(30, Y).tolist()


def test_a_deep_flow_is_compiled_in_parts_and_trains_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor

    asked, compile = [], torch._inductor.compile

    def spy(module: fx.GraphModule, *given: object, **options: object) -> Callable:
        asked.append(module)
        return compile(module, *given, **options)

    monkeypatch.setattr("torch._inductor.compile", spy)
    found = deep_svi(compile=True)
    assert [sorted(set(calls(module))) for module in asked] == [["part_0", "part_1"]]
    assert gc.isenabled()
    assert found == pytest.approx(deep_svi(compile=False), rel=1e-3)


def test_where_parts_cannot_be_compiled_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def without_parts(module: fx.GraphModule, examples: list, options: dict) -> Callable:
        asked.append((bool(calls(module)), options))
        if calls(module):
            raise NotImplementedError("invoke_subgraph")
        return module.forward

    monkeypatch.setattr("torch._inductor.compile", without_parts)
    monkeypatch.setattr(inductor, "_trusted", True)
    assert deep_svi(compile=True) == pytest.approx(deep_svi(compile=False), rel=1e-3)
    options = inductor.TRUST | inductor.FOR_CPU | inductor.COMPARABLE
    assert asked == [(True, options), (False, options)]
    assert inductor._trusted


def test_a_header_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import codecache

    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path))
    asked, compiled = [], tmp_path / "header.h.gch"

    def compile(*given: object, **options: object) -> str:
        asked.append((given, options))
        compiled.touch()
        return str(compiled.with_suffix(""))

    for line in ("g++ -Og", "g++ -Og", "g++ -O3"):
        assert inductor_mends._header(compile, "array.h", line, device="cpu") == str(tmp_path / "header.h")
    assert asked == [(("array.h", line), {"device": "cpu"}) for line in ("g++ -Og", "g++ -O3")]
    compiled.unlink()
    inductor_mends._header(compile, "array.h", "g++ -Og")
    assert len(asked) == 3


def test_kernels_and_calls_are_built_together_then_linked() -> None:
    built = []

    def build(lock: str, builders: Sequence[str], *rest: str) -> None:
        built.append((lock, *builders, *rest))

    inductor_mends._build(build, "lock", ("calls", "kernels", "link"))
    assert sorted(built[:2]) == [("lock.0", "calls"), ("lock.1", "kernels")]
    assert built[2:] == [("lock", "calls", "kernels", "link")]
    inductor_mends._build(build, "lock", ("one",))
    inductor_mends._build(build, "lock", "one command", "older")
    assert built[3:] == [("lock", "one"), ("lock", *"one command", "older")]


@torch.no_grad()
def test_views_that_change_nothing_are_not_noted() -> None:
    def function(z: Tensor) -> list[Tensor]:
        same = z.detach().view(3, 2).expand(3, 2).permute(0, 1)
        same.add_(1)
        wide = z.unsqueeze(0)
        wide.squeeze_(0)
        return [same * 2, wide.view(2, 3), z.as_strided((2,), (1,), 0) + z.as_strided((2,), (1,), 4)]

    module = record(function, [torch.zeros(3, 2)])
    aten = torch.ops.aten
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert targets == [
        aten.add_.Tensor,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.mul.Tensor,
        aten.view.default,
        aten.as_strided.default,
        aten.as_strided.default,
        aten.add.Tensor,
    ]
    z = torch.arange(6.0).view(3, 2)
    for found, expected in zip(module(z.clone()), function(z.clone()), strict=True):
        assert torch.equal(found, expected)


def test_getitem_is_the_only_function_that_is_not_of_aten() -> None:
    """outline takes for a view of what it is taken from whatever is no operation of aten."""
    module = record(lambda z: [*z.chunk(2)], [torch.ones(4)])
    assert {n.target for n in module.graph.nodes if n.op == "call_function"} - {operator.getitem} == {
        torch.ops.aten.split.Tensor
    }
