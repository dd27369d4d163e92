"""Steps by signature: those used last are kept, and calls that come without end are noticed."""

from collections import Counter, OrderedDict
from collections.abc import Hashable

from ..compile import Untraceable
from ..compile.signature import without_numbers
from .cached_step import Plain, Step

# Values of a number among the arguments that get a graph each.
NUMBERS = 8
# Calls in turn that fit no graph, after which a warning is due.
MISSES = 20


class StepCache:
    """The steps that were made, by signature.

    Args:
        size: how many are kept.

    Attributes:
        misses: how many calls in turn were of signatures not seen before.
    """

    def __init__(self, size: int) -> None:
        self.size, self.misses = size, 0
        self._steps: OrderedDict[Hashable, Step | Plain] = OrderedDict()
        self._numbers: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._steps)

    def get(self, key: Hashable) -> Step | Plain | None:
        """The step of a signature, if there is one."""
        found = self._steps.get(key)
        self.misses = 0 if found else self.misses + 1
        return found

    def keep(self, key: Hashable, step: Step | Plain) -> None:
        """Takes a step for the one of its signature, and drops the one that has not been used for the longest time."""
        self._steps[key] = step
        self._steps.move_to_end(key)
        if len(self._steps) > self.size:
            self._steps.popitem(last=False)

    def count(self, key: Hashable) -> None:
        """Counts a new signature; refuses it if there are many that differ from it by numbers alone."""
        family = without_numbers(key)
        if family == key:
            return
        if len(self._numbers) > 10 * self.size:
            self._numbers.clear()  # which holds on to models and guides
        self._numbers[family] += 1
        if self._numbers[family] > NUMBERS:
            raise Untraceable(
                f"a number among the arguments has had more than {NUMBERS} values: pass it as a tensor, of any value"
            )
