"""What callers pass, checked with messages that name what was expected and what came."""

import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any


def check_counts(caller: str, least: dict[str, int], **counts: object) -> None:
    """Raises a ValueError unless each count is a whole number that is not below its least, 1 where none is named."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < least.get(name, 1):
            low = least.get(name, 1)
            raise ValueError(f"{caller} expected {name} to be a whole number from {low} on, got {value!r}")


def check_ranges(caller: str, low: float, high: float, **numbers: float) -> None:
    """Raises a ValueError unless each number is at least ``low`` and below ``high``."""
    for name, value in numbers.items():
        if not low <= value < high:
            raise ValueError(f"{caller} expected {low} <= {name} < {high}, got {value!r}")


def all_or_nothing(method: Callable) -> Callable:
    """A method that leaves the attributes of its object as they were if it raises."""

    @functools.wraps(method)
    def safe(self: object, *args: object, **kwargs: object) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return safe


def check_sizes(name: str, input_dim: int, context_dim: int = 0) -> None:
    """Raises unless the sizes are whole numbers in range."""
    if not (isinstance(input_dim, Integral) and isinstance(context_dim, Integral) and input_dim > 0 <= context_dim):
        raise ValueError(
            f"{name} expected whole numbers input_dim >= 1 and context_dim >= 0, "
            f"got input_dim={input_dim} and context_dim={context_dim}"
        )


def check_event(name: str, event_shape: tuple, context_dim: int = 0) -> None:
    """Raises unless an event has dimensions of at least 1, and a context a size of at least 0."""
    if len(event_shape) == 1:
        check_sizes(name, *event_shape, context_dim)
    elif not event_shape or not all(isinstance(n, Integral) and n > 0 for n in event_shape):
        raise ValueError(f"{name} expected an event_shape of whole numbers from 1 on, got {event_shape}")
    check_sizes(name, 1, context_dim)
