"""Compiled graphs do what they did before they were compiled, and a compiler that errs is not trusted."""

from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor

from pyroflows import CompiledTrace_ELBO
from pyroflows.compile import Graph, capture, fuse, inductor, lay_flat
from pyroflows.compile.adam import Adam

WEIGHT, DATA = torch.tensor([1.0, -2.0, 0.5]), torch.arange(15.0).reshape(5, 3) / 10


def assert_same(graph: Graph, compiled: Graph, *inputs: Tensor) -> None:
    found = []
    for one in (graph, compiled):
        torch.manual_seed(3)
        found.append(one(*inputs))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("noise", [torch.rand, torch.randn], ids=["uniform", "normal"])
def test_noise_is_that_of_the_graph(noise: Callable) -> None:
    weight = WEIGHT.clone().requires_grad_()

    def loss() -> Tensor:
        return (weight * noise(3)).sin().sum()

    graph, compiled = capture(loss), capture(loss).compile([])
    assert_same(graph, compiled)
    torch.manual_seed(1)
    first = compiled()[0]
    assert first != compiled()[0]


def test_what_is_added_up_in_place_is_there_before_it_is_read() -> None:
    """The gradient of a gather goes into zeros; torch 2.13 lets fused loops read them before, and is asked again."""
    torch.manual_seed(0)
    weight, noise, data, mix = torch.randn(20, requires_grad=True), *torch.randn(3, 64, 20)
    order = torch.randperm(10).expand(64, 10)

    def loss() -> Tensor:
        shift, scale = (weight + noise).view(64, 10, 2).unbind(-1)
        scale = scale / (1 + 0.5 * scale.abs())
        moved = (shift + scale.exp() * data[:, :10]).gather(-1, order)
        return (moved @ mix[:10, :10]).square().sum(-1).mean() - scale.sum(-1).mean()

    assert_same(capture(loss), capture(loss).compile([]))


def test_a_graph_is_compiled_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    first, second = (torch.full((3, 3), value, requires_grad=True) for value in (0.1, 0.2))

    def loss(x: Tensor) -> Tensor:
        return ((x @ first).sin() @ second).cos().sum()

    graph, compiled = (capture(loss, [DATA], parameters=[first, second]) for _ in range(2))
    compiled.compile([DATA])
    assert len(list(tmp_path.rglob("*.main.cpp"))) == 1
    assert_same(graph, compiled, DATA + 1)


def test_numbers_in_the_code_are_part_of_what_is_compiled() -> None:
    weight = WEIGHT.clone().requires_grad_()
    for number in (2.0, 3.0):
        graph = capture(lambda number=number: (weight * torch.tensor(number)).sum()).compile([])
        assert graph()[0] == pytest.approx(-0.5 * number)


def erring(error: float) -> Callable:
    """A compiler whose programs are wrong by so much."""
    compile = inductor._compile

    def wrong(*given: object) -> Callable:
        run = compile(*given)
        return lambda *tensors: [t * (1 + error) for t in run(*tensors)]

    return wrong


def square() -> Graph:
    weight = WEIGHT.clone().requires_grad_()
    return capture(lambda: weight.square().sum())


def test_what_a_compiler_makes_is_compared_with_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "_compile", erring(1e-5))
    square().compile([])
    monkeypatch.setattr(inductor, "_compile", erring(0.01))
    graph, expected = square(), square()()
    with pytest.raises(RuntimeError, match="differs from what was traced"):
        graph.compile([])
    torch.testing.assert_close(graph(), expected)


def test_changes_in_place_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = WEIGHT.clone().requires_grad_()
    flat, adam = lay_flat([leaf]), Adam()
    state = [flat, *adam.start(flat), torch.tensor([0.1])]

    def update(loss: Tensor, slope: Tensor, own: list[Tensor]) -> list[Tensor]:
        flat, *moments, lr = own
        return [*adam(flat, slope, lr, moments), lr, loss]

    graph = fuse(capture(lambda: leaf.square().sum()), [leaf], update, state)
    compile = inductor._compile

    def wrong(*given: object) -> Callable:
        run = compile(*given)

        def step(flat: Tensor, first: Tensor, *rest: Tensor) -> list[Tensor]:
            found = run(flat, first, *rest)
            first.mul_(1.01)
            return found

        return step

    before = [t.clone() for t in state]
    with monkeypatch.context() as patch:
        patch.setattr(inductor, "_compile", wrong)
        with pytest.raises(RuntimeError, match="differs from what was traced"):
            graph.compile([])
    graph.compile([])
    torch.testing.assert_close(state, before)


def test_where_the_compiler_errs_the_graph_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("x", pyro.distributions.Delta(pyro.param("loc", torch.tensor(1.0))))

    monkeypatch.setattr(inductor, "_compile", erring(0.1))
    elbo = CompiledTrace_ELBO()
    with pytest.warns(UserWarning, match="uncompiled.*differs from what was traced"):
        loss = elbo.loss(model, guide)
    assert loss == pytest.approx(0.5 + 0.9189385)
