"""The one-slot memory: what is recalled, what is not, and that nothing is kept alive."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import moved
from pyroflows.bijectors import Affine
from pyroflows.flows import iaf, nsf, realnvp
from pyroflows.transforms import Compose, Coupling, FlowTransform, Permute


@pytest.fixture
def flow() -> FlowTransform:
    return moved(realnvp(3, layers=2, hidden_dims=(8,)))


def recalled(flow: FlowTransform, y: Tensor, x: Tensor) -> bool:
    """Whether the way back from ``y`` is the very tensor ``x``, not one computed again."""
    return flow.inv.call_and_ladj(y)[0] is x


def test_what_a_call_produced_is_recalled_once(flow: FlowTransform) -> None:
    x = torch.randn(4, 3)
    expected, y = flow.call_and_ladj(x)[1], flow(x)
    back, ladj = flow.inv.call_and_ladj(y)
    assert back is x
    assert torch.equal(ladj, -expected)
    assert not recalled(flow, y, x)


def test_value_and_ladj_together_leave_nothing_to_remember(flow: FlowTransform) -> None:
    x = torch.randn(4, 3)
    y, _ = flow.call_and_ladj(x)
    assert flow._memo._slot is None
    assert not recalled(flow, y, x)


def test_what_the_inverse_produced_is_recalled(flow: FlowTransform) -> None:
    y = torch.randn(4, 3)
    x = flow.inv(y)
    assert flow(x) is y
    assert recalled(flow.inv, x, y)


def test_the_protocol_of_torch_runs_the_flow_once(flow: FlowTransform, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], flow._map
    monkeypatch.setattr(flow, "_map", lambda *args: calls.append(args) or run(*args))
    y = flow(torch.randn(4, 3))
    x = flow.inv(y)
    ladj = flow.log_abs_det_jacobian(x, y)
    assert len(calls) == 1
    assert flow._memo._slot is None
    assert_close(ladj, flow.call_and_ladj(x)[1])


def test_the_same_way_again_is_not_the_way_back(flow: FlowTransform) -> None:
    x = torch.randn(4, 3)
    y = flow(x)
    twice = flow(y)
    assert twice is not x
    assert_close(twice, flow(y.clone()))


def test_ladj_of_another_pair_is_not_the_remembered_one(flow: FlowTransform) -> None:
    x, other = torch.randn(4, 3), torch.randn(4, 3)
    expected = flow.call_and_ladj(other)[1]
    y = flow(x)
    assert_close(flow.log_abs_det_jacobian(other, y), expected)
    x = flow.inv(y.clone())
    assert_close(flow.log_abs_det_jacobian(other, y), expected)
    assert_close(flow.log_abs_det_jacobian(x, other), flow.call_and_ladj(x.clone())[1])


@pytest.mark.parametrize("change", [Tensor.clone, Tensor.detach, lambda y: y.mul_(2.0), lambda y: y + 0])
def test_another_tensor_is_not_recognised(flow: FlowTransform, change: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 3)
    y = change(flow(x))
    assert not recalled(flow, y, x)
    assert_close(flow.inv(y), copy.deepcopy(flow).inv(y))


def test_a_source_written_in_place_is_not_recalled(flow: FlowTransform) -> None:
    with torch.no_grad():
        x = torch.randn(4, 3)
        y, before = flow(x), x.clone()
        x.zero_()
        assert not recalled(flow, y, x)
        assert_close(flow.inv(y), before)


def in_place(flow: FlowTransform) -> None:
    with torch.no_grad():
        next(flow.parameters()).mul_(1.1)


def through_data(flow: FlowTransform) -> None:
    next(flow.parameters()).data.mul_(1.1)


def new_data(flow: FlowTransform) -> None:
    parameter = next(flow.parameters())
    parameter.data = parameter.data * 1.1


def fused_step(flow: FlowTransform) -> None:
    flow(torch.randn(2, 3)).sum().backward()
    torch.optim.Adam(flow.parameters(), fused=True).step()


def new_parameter(flow: FlowTransform) -> None:
    net = flow[1].net
    net[0].weight = torch.nn.Parameter(net[0].weight.detach() * 1.1)


def load(flow: FlowTransform) -> None:
    flow.load_state_dict({k: v * 1.1 if v.is_floating_point() else v for k, v in flow.state_dict().items()})


@pytest.mark.parametrize("move", [in_place, through_data, new_data, fused_step, new_parameter, load])
def test_nothing_is_recalled_once_a_parameter_moved(flow: FlowTransform, move: Callable[[FlowTransform], None]) -> None:
    x = torch.randn(4, 3)
    y = flow(x)
    move(flow)
    back = flow.inv(y)
    assert back is not x
    assert not torch.allclose(back, x, atol=1e-6)
    assert_close(back, copy.deepcopy(flow).inv(y.detach().clone()))


@pytest.mark.parametrize("which", ["source", "produced", "context"])
@pytest.mark.parametrize("write", [lambda t: t.data.fill_(0.5), lambda t: t.numpy().fill(0.5)], ids=["data", "numpy"])
def test_nothing_is_recalled_once_a_value_was_written_unseen(which: str, write: Callable[[Tensor], object]) -> None:
    flow = moved(realnvp(3, layers=2, hidden_dims=(8,), context_dim=2))
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    with torch.no_grad():
        y = flow(x, context)
        write({"source": x, "produced": y, "context": context}[which])
        assert_close(flow.inv(y, context), copy.deepcopy(flow).inv(y.clone(), context.clone()))


def test_nothing_is_recalled_in_another_mode() -> None:
    layer = Coupling(3, Affine(), net=lambda i, o: nn.Sequential(nn.Linear(i, o), nn.Dropout(0.5)))
    flow, x = Compose([layer]), torch.randn(4, 3)
    with torch.no_grad():
        y = flow(x)
        flow.eval()
        assert_close(flow.inv(y), flow.inv(y.clone()))


def test_a_buffer_written_in_place_counts_as_a_change() -> None:
    permute, x = Permute(3, [1, 2, 0]), torch.randn(4, 3)
    y = permute(x)
    permute.load_state_dict(Permute(3, "reversed").state_dict())
    assert torch.equal(permute.inv(y), y.flip(-1))


def test_a_sample_without_a_graph_is_scored_with_one(flow: FlowTransform) -> None:
    with torch.no_grad():
        x = torch.randn(4, 3)
        y = flow(x)
    back, ladj = flow.inv.call_and_ladj(y)
    assert back.requires_grad
    assert ladj.requires_grad
    assert_close(back, x)


def test_a_sample_with_a_graph_is_recalled_without_one(flow: FlowTransform) -> None:
    x = torch.randn(4, 3)
    y = flow(x)
    with torch.no_grad():
        assert recalled(flow, y, x)


def test_thawing_a_parameter_counts_as_a_change(flow: FlowTransform) -> None:
    flow.requires_grad_(False)
    y = flow(torch.randn(4, 3))
    flow.requires_grad_(True)
    assert flow.inv(y).requires_grad


def test_another_context_is_not_confused() -> None:
    flow, x = moved(nsf(2, context_dim=1, layers=2, hidden_dims=(8,)), by=1.0), torch.randn(4, 2)
    here, there = torch.zeros(1), torch.ones(1)
    y = flow(x, here)
    assert not torch.allclose(flow.inv(y, there), x, atol=1e-3)
    y = flow(x, here)
    assert flow.inv(y, here) is x
    y = flow(x, here)
    here.add_(1.0)
    assert not torch.allclose(flow.inv(y, here), x, atol=1e-3)


def test_views_do_not_share_what_they_remember() -> None:
    flow, x = nsf(2, context_dim=1, layers=2, hidden_dims=(8,)), torch.randn(4, 2)
    first, second = flow.condition(torch.zeros(1)), flow.condition(torch.ones(1))
    y = first(x)
    assert second.inv(y) is not x
    assert first.inv(y) is x


def test_the_graph_is_freed_after_scoring(flow: FlowTransform) -> None:
    gc.disable()
    x = torch.randn(4, 3)
    y = flow(x)
    flow.inv.call_and_ladj(y)
    source = weakref.ref(x)
    del x
    assert flow._memo._slot is None
    assert source() is None
    gc.enable()


def test_the_graph_is_freed_when_the_value_is_dropped(flow: FlowTransform) -> None:
    gc.disable()
    x = torch.randn(4, 3)
    source, y = weakref.ref(x), flow(x)
    del x
    assert source() is not None
    del y
    assert source() is None
    gc.enable()


def test_one_slot_holds_the_last_call_only(flow: FlowTransform) -> None:
    x, other = torch.randn(4, 3), torch.randn(4, 3)
    y, _ = flow(x), flow(other)
    assert not recalled(flow, y, x)


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy, lambda f: pickle.loads(pickle.dumps(f))])
def test_a_copy_remembers_nothing(flow: FlowTransform, make: Callable[[FlowTransform], FlowTransform]) -> None:
    x = torch.randn(4, 3)
    y = flow(x)
    made = make(flow)
    assert made._memo is not flow._memo
    assert not recalled(made, y, x)
    assert recalled(flow, y, x)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # Pyro's JitTrace_ELBO needs it
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the checks of shapes become constants
def test_nothing_stays_in_memory_after_a_tracer(flow: FlowTransform) -> None:
    x = torch.randn(4, 3)
    torch.func.vmap(flow)(x)
    assert flow._memo._slot is None
    torch.func.jacrev(flow)(x[0])
    assert flow._memo._slot is None
    flow.requires_grad_(False)
    traced = torch.jit.trace(lambda z: flow.inv(flow(z)), (x,), check_trace=False)
    assert flow._memo._slot is None
    other = torch.randn(4, 3)
    assert_close(traced(other), other)
    with torch.inference_mode():
        y = flow(torch.randn(4, 3))
    assert_close(flow.inv(y.clone()), flow.inv(y.clone()))


def test_parts_of_a_chain_remember_nothing_of_their_own(flow: FlowTransform) -> None:
    chain = Compose([flow, iaf(3, layers=1, hidden_dims=(8,))])
    y = chain(torch.randn(4, 3))
    assert chain._memo._slot.produced() is y
    assert all(part._memo._slot is None for part in chain)


def test_an_identity_map_is_not_stored() -> None:
    class Same(Permute):
        def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
            return z, z.new_zeros(z.shape[:-1])

    x = torch.randn(4, 3)
    same = Same(3)
    assert same(x) is x
    assert same._memo._slot is None
