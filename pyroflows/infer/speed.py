"""Which way to run the steps of a fit: plain, as a traced graph, or compiled, from what a step costs."""

import time
from collections.abc import Callable
from statistics import median

from torch import Tensor

from .guard import Untraceable
from .trainer import Trainer

# Steps that are timed before it is decided whether to trace, and those before whether to compile: many fits are over
# by then.
PROBE, SETTLED = 15, 500
# Seconds of steps to come from which it pays to trace, which costs a second or two; and to compile a traced step, for
# each of its operations: a compiler takes 15 to 20 ms for one, and many fits stop early.
TRACE_FROM, COMPILE_FROM = 4.0, 0.05


class SpeedUp:
    """Runs a trainer's steps, and speeds them up once it has seen what they cost.

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
        self._seconds: list[float] = []

    def step(self) -> None:
        """One step; the first ones are timed."""
        start = time.perf_counter()
        self.trainer.step(self.objective)
        self._seconds.append(time.perf_counter() - start)
        if self.compile is not False and len(self._seconds) in (PROBE, SETTLED):
            to_come = (self.steps - len(self._seconds)) * median(self._seconds[-PROBE:])
            self._decide(to_come, first=len(self._seconds) == PROBE)

    def _decide(self, to_come: float, first: bool) -> None:
        """Traces or compiles, given the seconds that the steps to come would take as they are."""
        if first and self.compile:
            self._change("compiled")
        elif first and to_come > TRACE_FROM:
            self._change("traced")
        elif not first and self.trainer.history.speed == "traced" and to_come > COMPILE_FROM * self.trainer.operations:
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
