"""The loss of minibatches as graphs: right for every shape, aware of changes, and out of the way where it cannot be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import VAE, FlowDistribution, FlowEncoder, FlowPrior, flows
from pyroflows.compile import TracedLoss, capture

SMALL = {"layers": 2, "hidden_dims": (8,)}


def counted(module: nn.Module) -> tuple[Callable, list]:
    """The mean square of a module's output, and a list that grows with each call."""
    calls: list[int] = []

    def loss(x: Tensor, shift: Tensor | None = None) -> Tensor:
        calls.append(len(x))
        return (module(x) if shift is None else module(x) + shift).square().mean()

    return loss, calls


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


def test_values_and_gradients_for_each_shape() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    loss, calls = counted(module)
    traced = TracedLoss(loss, module.parameters())
    for rows in (5, 2, 5, 2, 5):
        for given in ((torch.randn(rows, 3),), (torch.randn(rows, 3), torch.randn(1)), (torch.randn(rows, 3), None)):
            assert_close(traced(*given), loss(*given))
            assert_close(gradients(3 * traced(*given), module), gradients(3 * loss(*given), module))
    calls.clear()
    traced(torch.randn(5, 3))
    assert calls == []


def test_shapes_without_end_are_left_alone() -> None:
    module = nn.Linear(3, 1)
    loss, calls = counted(module)
    traced = TracedLoss(loss, module.parameters(), audit=0)
    for rows in range(1, 9):
        traced(torch.randn(rows, 3))
    before = len(calls)
    for rows in range(1, 9):
        traced(torch.randn(rows, 3))
    assert calls[before:] == [1, 1, 2, 3, 4, 5]  # the first is traced, in the place of the fifth, and then none


class Annealed(nn.Module):
    """A module with a number that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(3, 1), 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.linear(x)


def test_a_changed_number_is_noticed() -> None:
    module, x = Annealed(), torch.randn(4, 3)
    loss, _ = counted(module)
    traced = TracedLoss(loss, module.parameters())
    for step in range(8):
        module.factor = 0.1 * step
        assert_close(traced(x), loss(x))


def test_running_statistics_are_kept_up() -> None:
    module, x = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.randn(4, 3)
    traced = TracedLoss(counted(module)[0], module.parameters())
    for _ in range(3):
        traced(x).backward()
    assert module[0].num_batches_tracked == 3


def test_a_loss_that_is_not_finite_is_asked_of_the_function() -> None:
    weight = torch.ones(2, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        total = (weight * x).log().sum()
        if not torch.utils._python_dispatch._get_current_dispatch_mode_stack() and not total.isfinite():
            raise ValueError("expected positive numbers")
        return total

    traced = TracedLoss(loss, [weight])
    traced(torch.ones(2)).backward()
    with pytest.raises(ValueError, match="positive"):
        traced(-torch.ones(2))


def test_dropout_is_drawn_anew() -> None:
    module = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    traced = TracedLoss(counted(module)[0], module.parameters())
    x = torch.randn(4, 3)
    assert len({traced(x).item() for _ in range(5)}) == 5


def test_an_inverse_in_blocks_is_captured() -> None:
    density = FlowDistribution(transform=flows.iaf(4, **SMALL))
    x = torch.randn(5, 4)
    graph = capture(lambda x: -density.log_prob(x).mean(), [x])
    assert_close(graph(x)[0], -density.log_prob(x).mean())


def bits(rows: int) -> Tensor:
    return torch.randint(2, (rows, 2)).float().repeat_interleave(4, dim=-1)


def build(flow: Callable | None = None, *before: nn.Module) -> VAE:
    torch.manual_seed(3)
    encoder = FlowEncoder(nn.Sequential(*before, nn.Linear(8, 16), nn.Tanh()), 16, 2, flow)
    return VAE(encoder, nn.Linear(2, 8), FlowPrior(2, lambda dim: flows.realnvp(dim, **SMALL)))


@pytest.mark.parametrize("flow", [None, lambda dim, context: flows.iaf(dim, context, **SMALL)], ids=["none", "iaf"])
def test_a_vae_trains_as_without(flow: Callable | None) -> None:
    x, found = bits(55), []
    for trace in (True, False):
        vae = build(flow)
        torch.manual_seed(4)
        log = vae.fit(x.split(20), epochs=4, progress=False, trace=trace)
        found.append((log.train, vae.state_dict()))
    assert_close(*found, rtol=1e-3, atol=1e-4)


def test_a_vae_calls_its_parts_only_to_trace_and_audit() -> None:
    calls: list[int] = []
    vae = build()
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    vae.fit([bits(20)] * 40, epochs=1, progress=False)
    assert len(calls) < 12  # five of them in audits
    vae.fit([bits(20)] * 40, epochs=1, progress=False, trace=False)
    assert len(calls) > 40


def test_a_vae_refuses_data_that_come_late() -> None:
    good = [bits(20)] * 3
    with pytest.raises(ValueError, match=r"support of its likelihood, Boolean.*from 0 to 2"):
        build().fit([*good, 2 * bits(20)], epochs=1, progress=False)


def test_a_vae_with_batch_normalisation() -> None:
    vae = build(None, nn.BatchNorm1d(8))
    vae.fit([bits(20)] * 3, epochs=2, progress=False)
    assert vae.encoder.net[0].num_batches_tracked == 6


def test_graphs_are_forgotten_by_hand() -> None:
    weight = torch.ones(2, requires_grad=True)
    loss = TracedLoss(lambda x: (weight * x).sum(), [weight])
    loss(torch.ones(2))
    assert len(loss._graphs) == 1
    loss.retrace()
    assert len(loss._graphs) == 0
    assert loss(torch.ones(2)).item() == 2.0
