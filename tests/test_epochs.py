"""Training by epochs: what is kept, dropped, saved, resumed and refused."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows.maths import between
from pyroflows.training import Batches, Checkpoint, Epochs, Listener
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


def resumable(path: Path | None, epochs: int = 9, patience: int | None = None, end: int | None = None) -> tuple:
    """Training with validation, that is broken off in an epoch; the module, the log and the callback's epochs."""
    module, told = network(), []
    torch.manual_seed(2)
    own, run = trainer(module)
    inner = run.pop("loss")
    log = own.run(
        lambda x, y: stop() if len(own.log.train) == end else inner(x, y),
        **run,
        epochs=epochs,
        validate=lambda: (module(X[:20]) - Y[:20]).square().mean().item(),
        patience=patience,
        checkpoint=Checkpoint("Epochs", path),
        listener=Listener("Epochs", lambda epoch, *_: told.append(epoch)),
    )
    return module, log, told


@pytest.mark.parametrize("end", [0, 4, 8])
def test_resumes_as_if_it_had_not_stopped(tmp_path: Path, end: int) -> None:
    straight, log, _ = resumable(None)
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path / "c.pt", end=end)
    torch.manual_seed(3)
    other, again, told = resumable(tmp_path / "c.pt")
    assert again == log
    assert told == [*range(end + 1, 10)]
    assert_close(other.state_dict(), straight.state_dict(), rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("options", [{}, {"epochs": 90, "patience": 2}])
def test_training_that_is_done_is_read_and_no_more(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "c.pt"
    module, log, told = resumable(path, **options)
    content, numbers = path.read_bytes(), torch.get_rng_state()
    other, again, nothing = resumable(path, **options, end=len(told))
    assert (again, nothing, path.read_bytes()) == (log, [], content)
    assert len(log.train) == len(told) < 90
    assert torch.equal(torch.get_rng_state(), numbers)
    assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)
    more = resumable(path, epochs=len(told) + 3)[2]
    assert more == [len(told) + k for k in (1, 2, 3)]


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


def frozen() -> nn.Module:
    module = network()
    module[0].requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: trainer(network(), lr=0.02), r"lr 0\.02, got .*c\.pt, with 0\.01: make the call that was made"),
        (lambda: trainer(network(), weight_decay=0.1), r"weight_decay 0\.1, got .*, with 0\.0"),
        (
            lambda: trainer(nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 1))),
            r"trained 0\.weight of shape \[9, 3\], got .*, with \[8, 3\]",
        ),
        (lambda: trainer(frozen()), r"fixed 0\.weight of shape \[8, 3\], got .*, with none"),
    ],
    ids=["lr", "decay", "architecture", "frozen"],
)
def test_a_checkpoint_of_another_training(tmp_path: Path, other: Callable, message: str) -> None:
    Checkpoint("Epochs", tmp_path / "c.pt").check(trainer(network())[0].problem())
    Checkpoint("Epochs", tmp_path / "c.pt").check(trainer(network())[0].problem())
    with pytest.raises(ValueError, match=f"Epochs expected a checkpoint of the same call, with .*{message}"):
        Checkpoint("Epochs", tmp_path / "c.pt").check(other()[0].problem())
    with pytest.raises(ValueError, match=r"SVI expected .* with caller 'SVI', got .*, with 'Epochs'"):
        Checkpoint("SVI", tmp_path / "c.pt").check({})


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
