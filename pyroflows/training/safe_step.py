"""What keeps a step of training from breaking it: clipping, an average, a schedule, and bad steps dropped."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# A step is bad when its loss or gradient is not finite; so many in a row, or this share of all, is an error.
BAD_IN_A_ROW, BAD_SHARE = 50, 0.2


class SafeStep:
    """The part of a training step that is the same for every loss and optimizer.

    The gradient is clipped as a whole. A step whose value or gradient is not finite is dropped: it counts in the
    schedule, and leaves no other trace; too many are an error. The learning rate rises linearly over the first steps,
    and falls linearly once :meth:`decay_over` was called. A moving average of the iterates is kept.

    Args:
        parameters: what is trained, in place, by its ``grad``.
        lr: learning rate after the rise.
        warmup: steps over which the rate rises from zero.
        clip: largest norm of the whole gradient.
        average: decay of the moving average.
        noun: what the value of a step is, for the message.

    Attributes:
        mean: the averages, one for each parameter.
        done: steps so far, those that were dropped among them.
        bad: how many were dropped.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, warmup: int, clip: float, average: float, noun: str
    ) -> None:
        self.parameters = list(parameters)
        self.warmup, self.clip, self.average, self.noun = warmup, clip, average, noun
        self.restart(lr)

    def restart(self, lr: float) -> None:
        """Starts anew from where the parameters are, with another learning rate."""
        self.lr, self._decay = lr, (math.inf, 1)
        self.done = self.bad = self._bad_run = 0
        self.mean = [p.detach().clone() for p in self.parameters]

    def state_dict(self) -> dict[str, Any]:
        """Averages, counts and schedule."""
        counts = [self.done, self.bad, self._bad_run]
        return {"mean": self.mean, "counts": counts, "lr": self.lr, "decay": list(self._decay)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; the averages keep their place in memory."""
        for mean, value in zip(self.mean, state["mean"], strict=True):
            mean.copy_(value)
        self.done, self.bad, self._bad_run = state["counts"]
        self.lr, self._decay = state["lr"], tuple(state["decay"])

    def decay_over(self, steps: int) -> None:
        """Lowers the rate linearly to one percent over the next ``steps``, unless it is falling already."""
        if self._decay[0] == math.inf:
            self._decay = (self.done, max(steps, 1))

    @property
    def left(self) -> float:
        """Steps until the rate has fallen, infinite before :meth:`decay_over`."""
        return sum(self._decay) - self.done

    @property
    def rate(self) -> float:
        """The learning rate of the step that was begun last."""
        start, length = self._decay
        fall = 1 - 0.99 * min(max(self.done - start, 0) / length, 1)
        return self.lr * min(1.0, self.done / self.warmup) * fall

    @property
    def weight(self) -> float:
        """The weight of the newest iterate in the average, which falls from 1 so that the start is forgotten."""
        return 1 - min(self.average, self.done / (self.done + 10))

    def judged(self, value: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a step is good, by its value and the norm of its gradient, and by what to multiply the gradient."""
        return value.isfinite() & norm.isfinite(), (self.clip / norm).clamp(max=1)

    def make(self, value: Tensor, move: Callable[[], object], *notes: Tensor) -> list[float]:
        """Begins a step and, if it is good, makes it, along the gradients that the parameters hold.

        Args:
            value: the loss, or what it stands for.
            move: the optimizer's step, at :attr:`rate`.
            notes: more scalars.

        Returns:
            Whether it was good, 1 or 0, the value, and the notes.
        """
        self.done += 1
        slopes = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(slopes)
        good, scale = self.judged(value, torch.stack([norm.to(norms[0].device) for norm in norms]).norm())
        found = torch.stack([each.detach().to(value) for each in (good, value, *notes, scale)]).tolist()
        if found[0]:
            if found[-1] < 1:
                torch._foreach_mul_(slopes, found[-1])
            move()
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], self.weight)
        return found[:-1]

    def count(self, good: float, value: float) -> None:
        """Counts a step that was made or dropped.

        Raises:
            FloatingPointError: if there were too many bad ones.
        """
        if good:
            self._bad_run = 0
            return
        self.bad += 1
        self._bad_run += 1
        if self._bad_run >= BAD_IN_A_ROW or self.bad > max(BAD_IN_A_ROW, BAD_SHARE * self.done):
            raise FloatingPointError(
                f"expected finite {self.noun} and gradients, got {self.bad} bad steps of {self.done} (the last "
                f"{self.noun} was {value}): try a smaller lr, double precision, or look for a log density that is "
                f"infinite or NaN where the prior is not"
            )
