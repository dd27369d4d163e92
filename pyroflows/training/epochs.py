"""Training on minibatches, epoch by epoch: early stopping, the best state kept, checkpoints, bad steps dropped."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoint import Checkpoint
from .listener import Listener
from .safe_step import SafeStep
from .threads import Threads

# Steps over which the learning rate rises, and the largest norm of a gradient.
WARMUP, CLIP = 50, 10.0


@dataclass
class EpochLog:
    """What was recorded at each epoch.

    Args:
        train: mean loss over the epoch's finite steps, NaN if there were none.
        validation: loss on rows held out, where there are some.
        bad_steps: how many steps were dropped, as their loss or gradient was not finite.
        best_epoch: the epoch, from 1 on, whose state was kept.
        stopped: why training ended.
        notes: what was found in the data, a sentence each.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    bad_steps: int = 0
    best_epoch: int = 0
    stopped: str = ""
    notes: list[str] = field(default_factory=list)


class Epochs:
    """Trains a module by Adam on minibatches, with averaged iterates.

    Steps are those of :class:`SafeStep`, and the learning rate falls along a cosine to one percent at the last epoch.
    With validation, the best average is what is left in the module, otherwise the last one, also if training ends with
    an error; it is left in evaluation mode.

    Args:
        module: what is trained, in place.
        lr: largest learning rate.
        weight_decay: as in AdamW.
        average: decay of the moving average of the parameters, by step; 0 keeps the last iterate.

    Raises:
        ValueError: if ``lr`` is not positive and finite.
    """

    def __init__(self, module: nn.Module, *, lr: float, weight_decay: float = 0.0, average: float = 0.99) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"expected a learning rate lr > 0, got {lr!r}")
        self.module, self.lr, self.weight_decay = module, lr, weight_decay
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.safe = SafeStep(self.parameters, lr=lr, warmup=WARMUP, clip=CLIP, average=average, noun="loss")
        self.adam = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=weight_decay, fused=True)
        self.best: dict[str, Tensor] | None = None
        self.log = EpochLog()

    def run(
        self,
        loss: Callable[..., Tensor],
        batches: Iterable[tuple],
        epochs: int,
        *,
        validate: Callable[[], float] | None = None,
        patience: int | None = None,
        checkpoint: Checkpoint | None = None,
        listener: Listener | None = None,
        progress: bool = True,
    ) -> EpochLog:
        """Trains until ``epochs`` are done, counted from the first run on, or nothing was gained for long.

        Args:
            loss: the mean loss of the rows of a batch, called as ``loss(*batch)``.
            batches: gives an epoch's batches, anew each time that it is iterated.
            epochs: how many epochs in all.
            validate: the loss on rows held out.
            patience: epochs without a new best validation loss after which to stop, None for never.
            checkpoint: is saved after each epoch; training goes on from it.
            listener: is told the epoch, from 1 on, its training loss and the learning rate, and may stop training.
                What its callback raised is for the caller to pass on.
            progress: show a progress bar.

        Raises:
            ValueError: if there are no batches.
            FloatingPointError: if too many steps were not finite; the module is left as at the best epoch.
        """
        checkpoint, listener = checkpoint or Checkpoint("Epochs", None), listener or Listener("Epochs", None)
        if not checkpoint.resume(self.load_state_dict):
            checkpoint.save(self.state_dict())
        log = self.log
        with ExitStack() as at_end:
            threads = at_end.enter_context(Threads())
            at_end.callback(self._finish)  # also after a batch that was refused, or Ctrl-C
            bar = at_end.enter_context(tqdm(total=epochs, initial=len(log.train), disable=not progress, unit="epoch"))
            while not (stopped := listener.stopped or self._end(epochs, patience)):
                log.train.append(self._epoch(loss, batches, epochs, threads))
                if validate is not None:
                    self._judge(validate)
                checkpoint.save(self.state_dict())
                bar.update()
                bar.set_postfix_str(_trend(log))
                listener(len(log.train), log.train[-1], self.safe.rate)
        log.stopped = stopped
        return log

    def _end(self, epochs: int, patience: int | None) -> str:
        """Why training is over, or nothing."""
        done = len(self.log.train)
        if patience is not None and self.log.validation and done - self.log.best_epoch >= patience:
            return f"no gain on the held-out rows for {patience} epochs"
        return "all epochs were used" if done >= epochs else ""

    def _epoch(self, loss: Callable[..., Tensor], batches: Iterable[tuple], epochs: int, threads: Threads) -> float:
        self.module.train()
        fall = 0.505 + 0.495 * math.cos(math.pi * len(self.log.train) / epochs)
        found = [threads.run(lambda batch=batch: self.step(loss(*batch), fall)) for batch in batches]
        if not found:
            raise ValueError(
                "expected at least one batch, got none: the data or the loader is empty, or it is an iterator, which "
                "cannot be run through again for the next epoch"
            )
        finite = [value for value in found if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

    def step(self, loss: Tensor, rate: float = 1.0) -> float:
        """One step down a loss, at a share of the learning rate; returns the loss, NaN where it was dropped."""
        self.safe.lr = self.lr * rate
        self.adam.zero_grad()
        loss.backward()
        good, value = self.safe.make(loss, self._move)
        self.log.bad_steps += not good
        self.safe.count(good, value)
        return value if good else math.nan

    def _move(self) -> None:
        self.adam.param_groups[0]["lr"] = self.safe.rate
        self.adam.step()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, parameter in zip(self.safe.mean, self.parameters, strict=True):
            mean.data, parameter.data = parameter.data, mean.data

    def _judge(self, validate: Callable[[], float]) -> None:
        """Keeps the averaged state if it is the best so far."""
        self._swap()
        self.module.eval()
        with torch.no_grad():
            value = float(validate())
        earlier = [v for v in self.log.validation if math.isfinite(v)]
        self.log.validation.append(value)
        if math.isfinite(value) and value < min(earlier, default=math.inf):
            self.log.best_epoch = len(self.log.train)
            self.best = {key: tensor.clone() for key, tensor in self.module.state_dict().items()}
        self._swap()

    @torch.no_grad()
    def _finish(self) -> None:
        """Leaves the best state, or the average, in the module."""
        if self.best is not None:
            self.module.load_state_dict(self.best)
        else:
            for mean, parameter in zip(self.safe.mean, self.parameters, strict=True):
                parameter.copy_(mean)
        self.module.eval()

    def problem(self) -> dict[str, Any]:
        """What tells one training from another, for a checkpoint: the options, and the shapes of tensors."""
        options = {"lr": self.lr, "weight_decay": self.weight_decay, "average": self.safe.average}
        trained = {name for name, p in self.module.named_parameters() if p.requires_grad}
        shapes = {
            f"{'trained' if name in trained else 'fixed'} {name} of shape": list(tensor.shape)
            for name, tensor in self.module.state_dict().items()
        }
        return options | shapes

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: parameters, their averages, Adam's moments, the log."""
        return {
            "module": self.module.state_dict(),
            "safe": self.safe.state_dict(),
            "adam": self.adam.state_dict(),
            "best": self.best,
            "log": asdict(self.log),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where another run of the same problem was saved."""
        self.module.load_state_dict(state["module"])
        self.safe.load_state_dict(state["safe"])
        self.adam.load_state_dict(state["adam"])
        self.best, self.log = state["best"], EpochLog(**state["log"])


def _trend(log: EpochLog) -> str:
    held = f", held out {log.validation[-1]:.4g} (best at {log.best_epoch})" if log.validation else ""
    return f"loss {log.train[-1]:.4g}{held}" + (f", {log.bad_steps} bad steps" if log.bad_steps else "")
