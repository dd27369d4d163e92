"""Autoregressive maps of fewer steps: blocks, graphs, residual networks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import GRAPH, SMALL, moved
from pyroflows.bijectors import Affine
from pyroflows.nets import MaskedMLP
from pyroflows.transforms import Autoregressive, Coupling


def heard(flow: Autoregressive) -> Tensor:
    """Which dimensions each hears in the direction of one pass, besides itself."""
    single = flow if flow.fast == "forward" else flow.inv
    points = torch.randn(5, flow.input_dim, dtype=torch.float64)
    jacobians = [torch.autograd.functional.jacobian(single, x).abs() for x in points]
    return torch.stack(jacobians).amax(0).fill_diagonal_(0) > 0


def build(input_dim: int = 6, **options: object) -> Autoregressive:
    return moved(Autoregressive(input_dim, Affine(), hidden_dims=(16, 16), **options)).double()


@pytest.mark.parametrize("passes", [2, 3, 4, 6])
def test_passes_are_blocks_that_hear_earlier_blocks(passes: int) -> None:
    flow = build(passes=passes, order="random")
    block = torch.arange(6) * passes // 6
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[flow.order.unsqueeze(-1), flow.order] = block.unsqueeze(-1) > block
    assert torch.equal(heard(flow), expected)
    assert len(flow.net.spans) == passes


def test_two_passes_hear_as_a_coupling_does() -> None:
    coupling = moved(Coupling(6, Affine(), **SMALL)).double()
    jacobian = torch.autograd.functional.jacobian(coupling, torch.randn(6, dtype=torch.float64))
    assert torch.equal(heard(build(passes=2)), jacobian.fill_diagonal_(0) != 0)


@pytest.mark.parametrize("fast", ["forward", "inverse"])
def test_a_graph_is_heard_and_nothing_else(fast: str) -> None:
    flow = build(5, adjacency=GRAPH, fast=fast)
    assert torch.equal(heard(flow), GRAPH)
    assert len(flow.net.spans) == 3  # 2 and 3, then 0 and 4, then 1


def test_no_passes_given_is_every_dimension_after_the_other() -> None:
    plain, full = Autoregressive(4, Affine()), Autoregressive(4, Affine(), passes=4)
    chain = Autoregressive(4, Affine(), adjacency=torch.ones(4, 4).tril(-1).bool())
    for other in (full, chain):
        assert other.net.rows == plain.net.rows
        for mask, expected in zip(other.net.buffers(), plain.net.buffers(), strict=True):
            assert torch.equal(mask, expected)


@pytest.mark.parametrize("options", [{"passes": 3}, {"adjacency": torch.ones(6, 6).tril(-3).bool()}])
def test_they_start_at_the_identity(options: dict) -> None:
    for context_dim in (0, 2):
        flow, x = Autoregressive(6, Affine(), context_dim, hidden_dims=(7, 9), **options), torch.randn(5, 6)
        context = torch.randn(5, 2) if context_dim else None
        assert_close(flow(x, context), x, rtol=1e-5, atol=1e-5)


def test_a_residual_network_adds_layers_of_one_width() -> None:
    net, x = MaskedMLP(3, 2, hidden_dims=(4, 4, 5), residual=True), torch.randn(7, 3)
    moved(net)
    weights, (a, b, c, d) = net.weights(), net.offsets(None)
    first = nn.functional.silu(x @ weights[0].T + a)
    second = first + nn.functional.silu(first @ weights[1].T + b)
    third = nn.functional.silu(second @ weights[2].T + c)
    assert_close(net(x).flatten(-2), third @ weights[3].T + d)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 1}, "passes to be a whole number from 2 on, got 1"),
        ({"passes": 5}, "expected passes up to input_dim=4, got 5"),
        ({"adjacency": torch.ones(4, 4).tril().bool()}, r"without a cycle, got dimensions in one, or after one: \[0, "),
        ({"adjacency": torch.eye(4).roll(1, 0).bool()}, r"got dimensions in one, or after one: \[0, 1, 2, 3\]"),
        ({"adjacency": torch.eye(3).bool()}, r"an adjacency of 4 x 4 booleans, got \(3, 3\) of torch.bool"),
        ({"adjacency": torch.zeros(4, 4)}, r"an adjacency of 4 x 4 booleans, got \(4, 4\) of torch.float32"),
        ({"adjacency": torch.zeros(4, 4).bool(), "passes": 2}, "expected an adjacency alone, got order or passes"),
        ({"adjacency": torch.zeros(4, 4).bool(), "order": "random"}, "expected an adjacency alone, got order"),
        ({"activation": nn.PReLU}, "expected an activation without parameters, got PReLU"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object | Callable], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoregressive(4, Affine(), **options)
