"""Training by epochs: what is kept, dropped, saved, resumed and refused."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows.maths import between
from pyroflows.training import Batches, Epochs
from pyroflows.training.epochs import CLIP

X = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]])


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))


def trainer(module: nn.Module, **options: float) -> tuple[Epochs, dict]:
    """A trainer, and what to run it with."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (module(x) - y).square().mean()

    run = {"loss": loss, "batches": Batches([X, Y], 16), "progress": False}
    return Epochs(module, **({"lr": 0.01} | options)), run


def test_learns() -> None:
    module = network()
    epochs, run = trainer(module)
    log = epochs.run(**run, epochs=40)
    assert log.train[-1] < 0.2 * log.train[0]
    assert (len(log.train), log.bad_steps, log.stopped) == (40, 0, "all epochs were used")
    assert not module.training
    assert (module(X) - Y).square().mean() < 0.3


def test_resumes_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def validate(module: nn.Module) -> float:
        return (module(X[:20]) - Y[:20]).square().mean().item()

    straight, resumed = network(), network()
    torch.manual_seed(2)
    epochs, run = trainer(straight)
    log = epochs.run(**run, epochs=9, validate=lambda: validate(straight))
    torch.manual_seed(2)
    epochs, run = trainer(resumed)
    interrupted = {**run, "loss": lambda x, y: stop() if len(epochs.log.train) == 4 else run["loss"](x, y)}
    with pytest.raises(KeyboardInterrupt):
        epochs.run(**interrupted, epochs=9, validate=lambda: validate(resumed), checkpoint=tmp_path / "c.pt")
    other = network()
    epochs, run = trainer(other)
    epochs.load(tmp_path / "c.pt")
    again = epochs.run(**run, epochs=9, validate=lambda: validate(other))
    assert again == log
    assert_close(other.state_dict(), straight.state_dict(), rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def stop() -> Tensor:
    raise KeyboardInterrupt


def test_the_best_average_is_left() -> None:
    module = network()
    epochs, run = trainer(module)
    seen: list[dict] = []

    def validate() -> float:
        seen.append(copy.deepcopy(module.state_dict()))
        return [3.0, 1.0, math.nan, 2.0, 4.0][len(seen) - 1]

    log = epochs.run(**run, epochs=10, validate=validate, patience=3)
    assert (log.best_epoch, len(log.train), log.stopped) == (2, 5, "no gain on the held-out rows for 3 epochs")
    assert_close(module.state_dict(), seen[1], rtol=0, atol=0)


def test_bad_steps_are_dropped() -> None:
    module = network()
    epochs, run = trainer(module)
    count = iter(range(1000))
    poisoned = {**run, "loss": lambda x, y: run["loss"](x, y) * (math.nan if next(count) % 6 == 0 else 1.0)}
    log = epochs.run(**poisoned, epochs=40)
    assert log.bad_steps == -(-280 // 6)
    assert all(math.isfinite(value) for value in log.train)
    assert (module(X) - Y).square().mean() < 0.5


@pytest.mark.parametrize(("scale", "norm"), [(1.0, 5.0), (100.0, CLIP)])
def test_a_large_gradient_is_clipped_as_a_whole_and_a_small_one_is_not(scale: float, norm: float) -> None:
    module, slope = nn.Linear(1, 1), torch.tensor([3.0, 4.0])
    weights = list(module.parameters())
    Epochs(module, lr=0.01).step(scale * sum((s * p).sum() for s, p in zip(slope, weights, strict=True)))
    assert_close(torch.stack([p.grad.sum() for p in weights]), slope / 5.0 * norm)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_counts_in_the_schedule_and_leaves_no_other_trace(value: float) -> None:
    modules = [network().eval() for _ in range(2)]
    trainers, losses = zip(*((epochs, run["loss"]) for epochs, run in map(trainer, modules)), strict=True)
    for k in range(8):
        for epochs, loss in zip(trainers, losses, strict=True):
            if k != 3:
                epochs.step(loss(X, Y))
            elif epochs is trainers[0]:
                assert math.isnan(epochs.step(value * loss(X, Y)))
            else:
                epochs.safe.done += 1
    assert [epochs.log.bad_steps for epochs in trainers] == [1, 0]
    assert_close(modules[0].state_dict(), modules[1].state_dict(), rtol=0, atol=0)
    assert_close(trainers[0].safe.mean, trainers[1].safe.mean, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_is_dropped_too() -> None:
    module = nn.Linear(1, 1)
    before = copy.deepcopy(module.state_dict())
    epochs = Epochs(module, lr=0.1)
    epochs.step((0.0 * module.weight).sqrt().sum())  # the value is 0, its slope infinite
    assert epochs.log.bad_steps == 1
    assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_fifty_bad_steps_in_a_row_are_an_error() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    epochs, run = trainer(module)
    message = r"expected finite loss and gradients, got 50 bad steps of 50 \(the last loss was inf\): try a smaller lr"
    with pytest.raises(FloatingPointError, match=message):
        epochs.run(**{**run, "loss": lambda x, y: run["loss"](x, y) * math.inf}, epochs=20)
    assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert epochs.log.bad_steps == 50
    assert len(epochs.log.train) == 7
    assert all(map(math.isnan, epochs.log.train))


def test_a_batch_that_is_refused_leaves_the_average() -> None:
    module = network()
    epochs, run = trainer(module)
    count = iter(range(1000))
    refused = {**run, "loss": lambda x, y: run["loss"](x, y) if next(count) < 20 else stop()}
    with pytest.raises(KeyboardInterrupt):
        epochs.run(**refused, epochs=9)
    assert_close(list(module.parameters()), epochs.safe.mean, rtol=0, atol=0)
    assert (epochs.safe.done, module.training) == (20, False)


def test_no_batches() -> None:
    epochs, run = trainer(network())
    with pytest.raises(ValueError, match="at least one batch, got none: the data or the loader is empty"):
        epochs.run(**{**run, "batches": []}, epochs=2)


def test_a_checkpoint_of_another_architecture_changes_nothing() -> None:
    epochs, _ = trainer(network())
    before = copy.deepcopy(epochs.state_dict())
    other, _ = trainer(nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 1)))
    with pytest.raises(ValueError, match=r"of this architecture, got one that differs in 9 tensors, such as 0.bias"):
        epochs.load_state_dict(other.state_dict())
    frozen = network()
    frozen[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"one that differs in 4 tensors, such as average 0: \(1, 8\) for \(8, 3\)"):
        epochs.load_state_dict(trainer(frozen)[0].state_dict())
    assert_close(epochs.state_dict()["module"], before["module"], rtol=0, atol=0)


def test_weight_decay_and_average() -> None:
    plain, decayed = network(), network()
    for module, decay in ((plain, 0.0), (decayed, 5.0)):
        epochs, run = trainer(module, weight_decay=decay)
        epochs.run(**run, epochs=30)
    norms = [sum(p.square().sum() for p in module.parameters()) for module in (plain, decayed)]
    assert norms[1] < 0.5 * norms[0]
    last = network()
    epochs, run = trainer(last, average=0.0)
    epochs.run(**run, epochs=2)
    assert_close(list(last.parameters()), epochs.safe.mean, rtol=0, atol=0)


def test_batches_cover_all_rows_once() -> None:
    batches = Batches([torch.arange(10), torch.arange(10) * 2], 3)
    for _ in range(2):
        parts = list(batches)
        assert [len(x) for x, _ in parts] == [3, 3, 2, 2]
        assert sorted(torch.cat([x for x, _ in parts]).tolist()) == list(range(10))
        assert all(torch.equal(2 * x, y) for x, y in parts)


def test_the_arc_between_vectors() -> None:
    a, b = torch.randn(50), 2 * torch.randn(50)
    path = between(a, b, 5)
    assert_close(path[[0, -1]], torch.stack([a, b]), rtol=1e-5, atol=1e-5)
    assert_close(path.norm(dim=-1), torch.linspace(float(a.norm()), float(b.norm()), 5))
    turns = torch.nn.functional.cosine_similarity(path[1:], path[:-1], dim=-1)
    assert_close(turns, turns[:1].expand(4), rtol=1e-4, atol=1e-4)
    assert_close(between(a, a, 3), a.expand(3, 50))
    assert_close(between(torch.zeros(2), torch.ones(2), 3)[1], torch.full((2,), 0.5))
    assert_close(between(-torch.ones(2), torch.ones(2), 3)[1], torch.zeros(2))
