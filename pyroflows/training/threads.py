"""How many threads of torch to use: short steps are faster on one.

Threads wait for each other at the end of each operation. Where operations are short that spares nothing, and where
other programs keep the processor busy each wait lasts until a thread gets its next turn: a fit of fifteen seconds on
one thread then takes a minute or more on two.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

# Seconds of a step on one thread up to which others are not even tried.
SHORT = 0.03
# More threads than one must spare this much of them.
GAIN = 0.8
# Steps timed on each, of which the shortest counts: some do more, or are interrupted.
TRIES = 4


class Threads:
    """While entered, one thread of torch, or all that there were if steps are long and faster on those.

    The number of threads is that of the whole process: not for blocks that Python runs side by side.

    Args:
        step: part of what is done again and again, called up to eight times at once; None leaves it to :meth:`run` to
            time the first steps that are made.

    Example:
        >>> with Threads() as threads:
        ...     losses = [threads.run(lambda: 1.0) for _ in range(5)]
        >>> threads.chosen
        True
    """

    def __init__(self, step: Callable[[], object] | None = None) -> None:
        self.step, self.most = step, torch.get_num_threads()
        self._seconds: list[float] = []
        self.chosen = self.most == 1

    def __enter__(self) -> "Threads":
        """Goes on with one thread, or with what is best for the step."""
        torch.set_num_threads(1)
        try:
            while self.step is not None and not self.chosen:
                self.run(self.step)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves as many threads as there were."""
        torch.set_num_threads(self.most)

    def run(self, step: Callable[[], Any]) -> Any:
        """Makes a step and returns what it returns; the first ones decide on the threads of the others."""
        if self.chosen:
            return step()
        start = time.perf_counter()
        value = step()
        self._seconds.append(time.perf_counter() - start)
        self._decide()
        return value

    def _decide(self) -> None:
        """After so many steps on one thread, and again after as many on all."""
        alone, together = min(self._seconds[:TRIES]), self._seconds[TRIES:]
        if len(self._seconds) == TRIES:
            self.chosen = alone <= SHORT
            torch.set_num_threads(1 if self.chosen else self.most)
        elif len(together) == TRIES:
            self.chosen = True
            torch.set_num_threads(self.most if min(together) <= GAIN * alone else 1)
