"""When a graph is compared with the function that it was made of, and what is said where they differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..seeds import generators, rewind
from .compare import close

# Uses between audits, once there have been some at powers of two.
EVERY = 256
# Graphs of one signature that may fail before the function itself is used.
FAILURES = 3


@dataclass
class Audit:
    """The uses of a graph, of which the 2nd, 4th, 8th, ... are audited, and then every so manieth.

    Args:
        every: uses between audits once there were more; 0: there are none.
        failures: how many graphs before it, of the same signature, have failed.

    Attributes:
        uses: how often the graph was used, with the one for which it was made.
        sound: the last use at which it was known to be right.

    Example:
        >>> audit = Audit()
        >>> [use for use in range(2, 1000) if audit.due()]
        [2, 4, 8, 16, 32, 64, 128, 256, 512, 768]
    """

    every: int = EVERY
    failures: int = 0
    uses: int = field(default=1, init=False)
    sound: int = field(default=1, init=False)

    def due(self) -> bool:
        """Counts a use, and says whether the graph is to be audited at it."""
        self.uses += 1
        return self.uses == self._following(self.uses - 1)

    def skip(self, most: int) -> int:
        """Counts as many uses as may follow without an audit, but no more than ``most``; returns how many."""
        free = min(most, self._following(self.uses) - self.uses - 1) if self.every else most
        self.uses += free
        return free

    def _following(self, use: int) -> int:
        """The next use that is audited; 0 if none is."""
        later = (use // self.every + 1) * self.every if self.every else 0
        return min(later, 1 << use.bit_length()) if use < self.every else later

    def judge(self, what: str | None) -> str | None:
        """Takes what an audit has found, None if nothing differs; returns the warning that is due."""
        if what is None:
            self.sound = self.uses
            return None
        self.failures += 1
        since = f"since use {self.sound + 1}" if self.sound + 1 < self.uses else "at this use"
        then = "No other is made" if self.spent else "It is traced anew"
        return (
            f"an audit at use {self.uses} found that the graph of a step may have been wrong {since}: {what}. {then}; "
            f"pass what changes between steps as a tensor argument, or forget graphs by retrace()"
        )

    @property
    def spent(self) -> bool:
        """Whether so many graphs have failed that there should be no other."""
        return self.failures >= FAILURES


def difference(
    function: Callable, replay: Callable, inputs: Sequence[Tensor], outputs: int, tolerance: float
) -> str | None:
    """What differs between the tensors that two functions return, both from the same random numbers; None: nothing.

    Args:
        function: returns the loss, other results, and gradients.
        replay: the graph made of it.
        inputs: what both are called with.
        outputs: how many of the tensors are no gradients.
        tolerance: largest difference, relative to the largest number of a tensor.
    """
    states, results = generators(), []
    for run in (function, replay):
        rewind(states)
        results.append(run(*fresh(inputs)))
    for index, (now, then) in enumerate(zip(*results, strict=False)):
        if not close(now, then, tolerance):
            what = "loss" if index == 0 else "gradient" if index >= outputs else "result"
            return f"the {what} is {_brief(now)}, by the graph {_brief(then)}"
    return None


def _brief(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else f"of norm {value.double().norm().item():.6g}"


def fresh(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs as leaves of their own."""
    return [t.detach().requires_grad_(t.requires_grad) for t in inputs]


def trained(leaves: Sequence[Tensor], used: Sequence[bool]) -> set[int]:
    """Which leaves the loss depends on; some of the others are made anew at each run."""
    return {id(leaf) for leaf, is_used in zip(leaves, used, strict=False) if is_used}
