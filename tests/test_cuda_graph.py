"""What is replayed and what is recorded anew, with a stand-in for the GPU; test_gpu.py has the thing itself."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pyroflows.compile import cuda_graph
from pyroflows.compile.cuda_graph import FEW, CudaGraph
from pyroflows.compile.record import record


class Recorder:
    """Replays as a GPU does: where tensors lay, with the numbers that there were, into the same memory."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, function: Callable, tensors: Sequence[Tensor]) -> tuple[Callable[[], None], list[Tensor]]:
        self.calls += 1
        given = [t.clone() if t.dim() == 0 else t for t in tensors]
        outputs = list(function(*(t.clone() for t in tensors)))

        def replay() -> None:
            for out, new in zip(outputs, function(*given), strict=True):
                out.copy_(new)

        return replay, outputs


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(cuda_graph, "record", made)
    return made


def step(state: Tensor, x: Tensor, rate: Tensor) -> list[Tensor]:
    """Moves a state in place."""
    state.add_(rate * x)
    return [state.sum()]


def test_what_lies_still_is_recorded_once(recorder: Recorder) -> None:
    graph, state, x, rate = CudaGraph(step, {0}), torch.zeros(2), torch.ones(2), torch.tensor(0.5)
    found = [graph(state, x, rate)[0] for _ in range(3)]
    assert [loss.item() for loss in found] == [1.0, 2.0, 3.0]  # each has memory of its own
    x.fill_(2.0)
    assert graph(state, x, rate)[0].item() == 5.0
    assert recorder.calls == 1


def test_what_is_only_read_may_move_and_stays_as_it_is(recorder: Recorder) -> None:
    graph, state, rate = CudaGraph(step, {0}), torch.zeros(2), torch.tensor(1.0)
    batches = [torch.full((2,), float(i)) for i in range(6)]
    assert [graph(state, x, rate)[0].item() for x in batches] == [0.0, 2.0, 6.0, 12.0, 20.0, 30.0]
    assert [x.tolist() for x in batches] == [[i, i] for i in range(6)]
    assert recorder.calls == 2


def test_what_has_several_numbers_in_one_place_may_move(recorder: Recorder) -> None:
    graph, state, rate = CudaGraph(step, {0}), torch.zeros(2), torch.tensor(1.0)
    batches = [torch.full((1,), float(i)).expand(2) for i in range(3)]
    assert [graph(state, x, rate)[0].item() for x in batches] == [0.0, 2.0, 6.0]
    assert batches[0].tolist() == [0.0, 0.0]


def test_a_state_elsewhere_is_the_one_that_changes(recorder: Recorder) -> None:
    graph, x, rate = CudaGraph(step, {0}), torch.ones(2), torch.tensor(1.0)
    first, second = torch.zeros(2), torch.full((2,), 5.0)
    graph(first, x, rate)
    graph(second, x, rate)
    assert first.tolist() == [1.0, 1.0]
    assert second.tolist() == [6.0, 6.0]


def test_numbers_are_not_frozen(recorder: Recorder) -> None:
    graph, state, x, rate = CudaGraph(step, {0}), torch.zeros(2), torch.ones(2), torch.tensor(1.0)
    graph(state, x, rate)
    rate.fill_(3.0)
    assert graph(state, x, rate)[0].item() == 8.0
    assert recorder.calls == 2


@pytest.mark.filterwarnings("default")
def test_what_changes_at_every_call_is_not_recorded_for_ever(recorder: Recorder) -> None:
    graph, state, x = CudaGraph(step, {0}), torch.zeros(2), torch.ones(2)
    with pytest.warns(UserWarning, match="a number its value, again and again"):
        found = [graph(state, x, torch.tensor(float(i)))[0].item() for i in range(10)]
    assert found == [2.0 * sum(range(i + 1)) for i in range(10)]
    assert recorder.calls == FEW


@pytest.mark.parametrize("quiet", [False, True])
def test_where_nothing_can_be_recorded_the_function_is_called(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeError("not permitted")

    monkeypatch.setattr(cuda_graph, "record", refuse)
    graph, state, given = CudaGraph(step, {0}, quiet), torch.zeros(2), (torch.ones(2), torch.tensor(1.0))
    if quiet:
        assert graph(state, *given)[0].item() == 2.0
    else:
        with pytest.warns(UserWarning, match="no CUDA graph is made, since recording it failed: not permitted"):
            assert graph(state, *given)[0].item() == 2.0
    assert graph(state, *given)[0].item() == 4.0


def test_a_tracer_sees_the_operations(recorder: Recorder) -> None:
    graph = CudaGraph(lambda x: [x.exp()], set())
    graph(torch.zeros(2))
    module = record(lambda x: graph(x), [torch.zeros(2)])
    assert [node.name for node in module.graph.nodes] == ["input_0", "exp_default", "output"]


def test_without_a_gpu_nothing_is_recorded() -> None:
    run = step
    assert cuda_graph.launched(run, torch.fx.GraphModule({}, torch.fx.Graph()), [torch.ones(2)], "automatic") is run
