"""Which way to run the steps of a fit: plain, as a traced graph, or compiled, from what a step costs.

The cost is counted, not timed, so that a fit goes the same way on a busy machine.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..compile import Untraceable
from .steps import Trainer
from .work import work_of

# Steps before it is decided whether to trace, and between decisions whether to compile.
PROBE, SETTLED = 15, 500
# Seconds of steps to come from which it pays to trace, which costs a second or two; and to compile a traced step, for
# each of its operations: a compiler takes 15 to 20 ms for one, and spares a part of the seconds only.
TRACE_FROM, COMPILE_FROM = 4.0, 0.05


class SpeedUp:
    """Runs a trainer's steps, and speeds them up by what the first one costs.

    Args:
        trainer: what is run.
        objective: the trainer's log weights.
        steps: how many steps are to come.
        compile: None traces or compiles where it pays, True compiles, False does neither.
        announce: is told what takes long.
    """

    def __init__(
        self,
        trainer: Trainer,
        objective: Callable[[], Tensor],
        steps: int,
        compile: bool | None,
        announce: Callable[[str], object],
    ) -> None:
        self.trainer, self.objective, self.steps, self.compile = trainer, objective, steps, compile
        self.announce = announce
        self._price = 0.0

    def step(self) -> None:
        """One step; the operations of the first are counted."""
        if self._price:
            self.trainer.step(self.objective)
        else:
            self._price = work_of(lambda: self.trainer.step(self.objective))
        done = self.trainer.safe.done
        if self.compile is not False and (done == PROBE or done % SETTLED == 0):
            self._decide(first=done == PROBE)

    def state_dict(self) -> dict[str, Any]:
        """What a step costs, and how steps are run."""
        return {"price": self._price, "speed": self.trainer.history.speed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Runs steps as they were run, since the ways differ in the last digits."""
        self._price, tier = state["price"], state["speed"].split(",")[0]
        if tier != "plain":
            self._change(tier)
        if self.trainer.history.speed.startswith(tier):
            self.trainer.history.speed = state["speed"]

    def _decide(self, first: bool) -> None:
        """Traces or compiles where the steps to come would take long as they are."""
        to_come = min(self.steps - self.trainer.safe.done, self.trainer.safe.left)
        # Most fits stop long before their last step: one that has gone on for so long goes on for about as long again.
        likely = min(to_come, self.trainer.safe.done)
        if first and self.compile:
            self._change("compiled")
        elif first and to_come * self._price > TRACE_FROM:
            self._change("traced")
        elif self.trainer.history.speed == "traced" and likely * self._price > COMPILE_FROM * self.trainer.operations:
            self._change("compiled")

    def _change(self, speed: str) -> None:
        compile, history = speed == "compiled", self.trainer.history
        self.announce("compiling the step" if compile else "tracing the step")
        try:
            self.trainer.trace(self.objective, compile)
        except Untraceable as error:
            history.speed = f"plain, as it cannot be traced: {error}"
        except Exception as error:
            # Compilers fail in many ways, for one where none is installed; the graph is as right without.
            if not compile:
                raise
            self._change("traced")
            history.speed = f"traced, as it cannot be compiled: {type(error).__name__}"
        else:
            history.speed = speed
