"""The third stage: the steps of the flow, and what it missed when they are done."""

import math
from collections.abc import Callable
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..guides import AutoFlow
from ..infer import Gaussian, Goal, balance, missed_modes, score, shares
from ..model import LogJoint
from ..seeds import seed_of, seeded
from ..training import Checkpoint, History, Listener, SpeedUp
from ..training.stopping import trend
from .coordinates import Density

# Steps between two looks at whether the fit is done, and draws whose moments are those of a mode that is known.
LOOK, VALUES = 100, 4000


class FlowStage:
    """The steps of the flow, from where the stages before it ended.

    Args:
        guide: what is trained, in place.
        density: the log density in its coordinates.
        goal: what for.
        speed_up: runs the steps.
        reason_to_stop: why it is time to lower the learning rate, or nothing.
        bar: is told how it goes.
        listener: is told each step, and may stop.
    """

    def __init__(
        self,
        guide: AutoFlow,
        density: Density,
        goal: Goal,
        speed_up: SpeedUp,
        reason_to_stop: Callable[[History], str],
        bar: tqdm,
        listener: Listener,
    ) -> None:
        self.guide, self.density, self.goal, self.speed_up = guide, density, goal, speed_up
        self.reason_to_stop, self.bar, self.listener = reason_to_stop, bar, listener
        self.trainer, self.safe, self.history = speed_up.trainer, speed_up.trainer.safe, speed_up.trainer.history

    def run(self, saved: Checkpoint) -> None:
        """Trains until the steps are used up, the ELBO or the spread of the weights says so, or the listener."""
        saved.resume(self.load_state_dict)
        while not self._is_over:
            self._step()
            self.listener(self.safe.done, self.history.elbo[-1], self.safe.rate)
            if self.safe.done % LOOK == 0 or self._is_over:
                saved.save(self.state_dict())
        self.history.stopped = self.listener.stopped or self.history.stopped
        self.trainer.finish()
        for _ in range(10):
            self._balance()

    @property
    def _is_over(self) -> bool:
        return self.safe.done >= self.speed_up.steps or self.safe.left <= 0 or bool(self.listener.stopped)

    def _step(self) -> None:
        moving = not self.goal.done
        self.speed_up.step()
        self.bar.update()
        if moving:
            self.goal.advance()
        if self.safe.done % LOOK == 0:
            self._balance()
            self.bar.set_postfix_str(trend(self.history))
            if reason := "" if not self.goal.done else self.reason_to_stop(self.history):
                self._end(reason, max(self.safe.done // 2, 300))
        if self.safe.done >= self.speed_up.steps // 2:
            self._end("all steps were used", self.speed_up.steps)

    def _end(self, reason: str, steps: int) -> None:
        """Lets the learning rate fall over so many steps or those that are left, unless it is falling already."""
        if self.safe.left == math.inf:
            self.history.stopped = reason
            self.safe.decay_over(min(steps, self.speed_up.steps - self.safe.done))

    def _balance(self) -> None:
        """Moves mass between the components of the base, where it has some."""
        for _ in self.guide.components:
            balance(self.guide.core_posterior(), self.density)

    def _found(self) -> list[Tensor]:
        """What the stages before this one found, and what moves without gradients."""
        return [*self.guide.transform.buffers(), *(t for base in self.guide.components for t in base.tensors)]

    def _form(self) -> list:
        return [self.guide.fixed is not None, [list(tensor.shape) for tensor in self._found()]]

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, once the stages before are made again; the goal moves with the steps."""
        return {
            "form": self._form(),
            "found": self._found(),
            "trainer": self.trainer.state_dict(),
            "speed": self.speed_up.state_dict(),
            "history": asdict(self.history),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there.

        Raises:
            ValueError: if the stages before led to other coordinates, or another base.
        """
        if state["form"] != self._form():
            raise ValueError(
                f"fit expected the stages before the flow to end as when the checkpoint was written, with "
                f"{state['form']} (non-centred, and shapes), got {self._form()}: go on with the same version of torch "
                f"on the same machine, or remove the checkpoint"
            )
        for tensor, value in zip(self._found(), state["found"], strict=True):
            tensor.copy_(value)
        self.trainer.load_state_dict(state["trainer"])
        vars(self.history).update(state["history"])
        for _ in range(self.safe.done):
            if not self.goal.done:
                self.goal.advance()
        with torch.enable_grad():
            self.speed_up.load_state_dict(state["speed"])
        self.bar.update(self.safe.done)


def note_missed(
    guide: AutoFlow, density: Density, rough: Density | None, around: Gaussian, history: History
) -> list[Gaussian]:
    """Looks for modes that a guide missed and notes them; returns their Gaussians, after one of the guide's draws."""
    level, posterior = fmean(history.window(LOOK) or [math.nan]), guide.get_posterior()
    missed = missed_modes(posterior, density, around, level, rough=rough)
    history.missed = shares(posterior, missed, level)
    if not missed:
        return []
    with torch.no_grad():
        own = Gaussian.of(posterior.sample((VALUES,)).to(around.loc))
    return [own, *(gaussian for _, gaussian in missed)]


def gradient(guide: AutoFlow, density: LogJoint, rows: int) -> None:
    """About what a step takes: gradients of the flow's draws, and of the log joint where that is finite."""
    with seeded(seed_of("the time of a step"), density.space.start.device):
        draws, log_q = guide.core_posterior().rsample_and_log_prob((rows,))
        torch.autograd.grad(draws.sum() + log_q.sum(), [*guide.transform.parameters()], allow_unused=True)
        score(density.batch, density.space.start.expand(rows, -1))


def weights_of(guide: AutoFlow, density: Density, num_particles: int, goal: Goal) -> Tensor:
    """Log weights of the guide as it stands, with the gradient of what it is trained for."""
    return goal(guide.core_posterior(), density, num_particles)
