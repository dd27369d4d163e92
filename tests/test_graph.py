"""graph.capture: replays equal the function, what closes over stays live, and what would be wrong is refused."""

import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from pyroflows.compile import Graph, Untraceable, capture
from pyroflows.compile.record import record

WEIGHT, DATA = torch.tensor([1.0, -2.0, 0.5]), torch.arange(15.0).reshape(5, 3) / 10


def same(graph: Graph, function: Callable, leaves: list[Tensor], *inputs: Tensor) -> None:
    torch.manual_seed(3)
    loss, gradients = graph(*inputs)
    torch.manual_seed(3)
    expected = function(*inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, list(torch.autograd.grad(expected, leaves)))


def noisy(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: ((DATA * weight.exp() * torch.tensor(2.0)).sum(-1) + torch.randn(5) + x).square().sum()


def test_replay_equals_function_and_draws_anew() -> None:
    weight = WEIGHT.clone().requires_grad_()
    function = noisy(weight)
    graph = capture(function, [torch.ones(5)])
    same(graph, function, [weight], torch.linspace(0, 1, 5))
    assert graph(torch.ones(5))[0] != graph(torch.ones(5))[0]


def test_parameters_and_closed_tensors_stay_live() -> None:
    weight, data = nn.Parameter(WEIGHT.clone()), DATA.clone()

    def function() -> Tensor:
        return (data * weight).square().sum()

    graph = capture(function)
    assert graph.parameters[0] is weight
    with torch.no_grad():
        weight.mul_(3)
        data.add_(1)
    same(graph, function, [weight])


def test_given_parameters_and_aux() -> None:
    a, b, c = (torch.tensor([float(i), 1.0], requires_grad=True) for i in range(3))

    def function() -> tuple[Tensor, Tensor]:
        log_weights = a * b
        return -log_weights.mean(), {"log_weights": log_weights, "b": b + 1}

    graph = capture(function, parameters=[b, c], has_aux=True)
    (loss, aux), gradients = graph()
    torch.testing.assert_close(aux["log_weights"], (a * b).detach())
    assert not loss.requires_grad
    torch.testing.assert_close(gradients[0], -a.detach() / 2)
    assert gradients[1] is None
    assert graph.closed[0] is a


def test_gradients_of_inputs_follow_those_of_parameters() -> None:
    weight, x = WEIGHT.clone().requires_grad_(), torch.ones(3, requires_grad=True)
    _, gradients = capture(lambda x: (weight * x).sum(), [x])(x.detach())
    torch.testing.assert_close(gradients, [torch.ones(3), WEIGHT])


def test_indices_after_a_full_slice() -> None:
    places, weight = torch.tensor([2, 0, 2]), WEIGHT.clone().requires_grad_()

    def function(x: Tensor) -> Tensor:
        return (x * weight)[:, places].square().sum()

    same(capture(function, [DATA]), function, [weight], DATA + 1)


def test_copies_that_change_the_layout_stay() -> None:
    weight = DATA.clone().requires_grad_()

    def function() -> Tensor:
        turned = weight.square().t()
        return turned.reshape(-1)[:5].sum() + turned.contiguous().view(5, 3)[0].exp().sum()

    same(capture(function), function, [weight])


def test_without_gradients() -> None:
    weight = WEIGHT.clone().requires_grad_()
    loss, gradients = capture(lambda: weight.sum(), grad=False)()
    assert loss == weight.sum()
    assert all(g is None for g in gradients)


def test_tracing_leaves_no_trace() -> None:
    state, weight = torch.get_rng_state(), WEIGHT.clone().requires_grad_()
    capture(noisy(weight), [torch.ones(5)])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.distributions.Distribution._validate_args
    assert weight.grad is None


def test_dead_code_is_removed() -> None:
    weight = WEIGHT.clone().requires_grad_()

    def function() -> Tensor:
        weight.exp().log().sum()
        return weight.sum()

    assert "log" not in capture(function).module.code


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_numbers_made_inside_keep_their_precision() -> None:
    matrix = torch.ones(2, 2, dtype=torch.float64)
    with double():
        graph = capture(lambda: (matrix @ torch.eye(2) + torch.zeros(2)).sum())
    assert graph()[0].dtype == torch.float64


def test_a_replay_that_fails_is_refused() -> None:
    whole = torch.arange(4).view(2, 2)
    with pytest.raises(Untraceable, match="same dtype"):
        capture(double()(lambda: (torch.ones(2, 2) @ (whole / 2)).sum()))


def branch(weight: Tensor) -> Tensor:
    return weight.sum() if weight.sum() > 0 else -weight.sum()


def item(weight: Tensor) -> Tensor:
    return weight.sum() * weight[0].item()


def mask(weight: Tensor) -> Tensor:
    return weight[weight > 0].sum()


def in_place(weight: Tensor, kept: Tensor = torch.zeros(3)) -> Tensor:  # noqa: B008
    kept.add_(weight.detach())
    return (kept * weight).sum()


def in_place_of_a_view(weight: Tensor, kept: Tensor = torch.zeros(3)) -> Tensor:  # noqa: B008
    kept[0] = 1.0
    return (kept * weight).sum()


def batch_norm(weight: Tensor, norm: nn.Module = nn.BatchNorm1d(3)) -> Tensor:  # noqa: B008
    return norm(DATA * weight).square().sum()


def python_noise(weight: Tensor) -> Tensor:
    return weight.sum() * (1 + random.random())


def vector(weight: Tensor) -> Tensor:
    return weight


def broken(weight: Tensor) -> Tensor:
    return weight @ torch.ones(7)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (branch, r"read by Python .* at .*test_graph.py:\d+: replace branches"),
        (item, "read by Python"),
        (mask, "read by Python"),
        (in_place, r"outside, of shape \(3,\), is changed in place"),
        (in_place_of_a_view, "is changed in place"),
        (batch_norm, r"changed in place .* call .eval\(\)"),
        (python_noise, "state of Python.s random numbers changes whenever the function runs"),
        (vector, r"expected a scalar tensor as loss, got \(3,\)"),
        (broken, "test_graph.py"),
    ],
)
def test_refuses(function: Callable, why: str) -> None:
    weight = WEIGHT.clone().requires_grad_()
    with pytest.raises(Untraceable, match=why):
        capture(lambda: function(weight))


def test_refused_mutation_has_not_happened() -> None:
    weight, kept = WEIGHT.clone().requires_grad_(), torch.zeros(3)
    with pytest.raises(Untraceable):
        capture(lambda: in_place(weight, kept))
    assert not kept.any()


def test_refuses_a_history_from_outside() -> None:
    outside = WEIGHT.clone().requires_grad_().exp()
    with pytest.raises(Untraceable, match="history of its own"):
        capture(lambda: outside.sum())


def test_own_tensors_may_change_in_place() -> None:
    weight = WEIGHT.clone().requires_grad_()

    def function() -> Tensor:
        own = torch.zeros(3)
        own[1] = 2.0
        return (own.add_(1) * weight).sum()

    same(capture(function), function, [weight])


def test_batch_norm_with_fixed_statistics() -> None:
    norm = nn.BatchNorm1d(3).eval()
    graph = capture(lambda x: norm(x).square().sum(), [DATA])
    assert len(graph.parameters) == 2
    assert len(graph.closed) == 2


def test_current_tells_of_other_shapes() -> None:
    weight = nn.Parameter(WEIGHT.clone())
    graph = capture(lambda: weight.sum())
    assert graph.changed() is None
    weight.data = torch.ones(4)
    assert graph.changed().startswith("the shape")


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
    """What is no operation of aten does the same for the same arguments."""
    module = record(lambda z: [*z.chunk(2)], [torch.ones(4)])
    assert {n.target for n in module.graph.nodes if n.op == "call_function"} - {operator.getitem} == {
        torch.ops.aten.split.Tensor
    }
