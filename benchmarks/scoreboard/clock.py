"""Seconds since a process was started, and where they went."""

import os
import time


class Clock:
    """Laps of a run. What happens between a lap and a :meth:`branch` is not counted.

    Args:
        began: ``time.time()`` when the process was started, so that imports count.
    """

    def __init__(self, began: float) -> None:
        self._began = self._last = began
        self._last_cpu = self.cpu = 0.0
        self.laps: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the process was started."""
        return time.time() - self._began

    def lap(self, name: str) -> None:
        """Books the seconds since the last lap under a name; the processor's go to ``cpu``."""
        now, cpu = time.time(), _cpu()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self.cpu += cpu - self._last_cpu
        self._last, self._last_cpu = now, cpu

    def branch(self) -> "Clock":
        """A clock that goes on from the last lap, now."""
        made = Clock(self._began)
        made.laps, made.cpu = dict(self.laps), self.cpu
        made._last, made._last_cpu = time.time(), _cpu()
        return made

    def record(self) -> dict[str, object]:
        """The laps with their sum, and the processor's seconds."""
        return {"seconds": {**self.laps, "total": sum(self.laps.values())}, "cpu": self.cpu}


def _cpu() -> float:
    """The processor's seconds of this process and of those that it waited for, as compilers."""
    return sum(os.times()[:4])
