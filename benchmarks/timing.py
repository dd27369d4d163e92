"""Timings that share a noisy machine fairly, and tables to print them in."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from time import perf_counter

import torch


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int = 5, budget: float = math.inf
) -> dict[str, float]:
    """The median seconds of each call, all timed in turn so that a busy moment hits them alike.

    Args:
        calls: what to time, by name.
        repeats: rounds that count, after one round that warms up.
        budget: seconds after which a call sits out the rounds that are left; a single run then counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            if sum(seconds[name]) < budget:
                seconds[name].append(turn(call))
    return {name: median(spent[1:] or spent) for name, spent in seconds.items()}


def turn(call: Callable[[], object], least: float = 0.03) -> float:
    """Seconds of one call, a mean over as many as take ``least`` seconds: a short call is not timed cold."""
    start, count, spent = clock(), 0, 0.0
    while spent < least:
        call()
        count, spent = count + 1, clock() - start
    return spent / count


def clock() -> float:
    """Seconds, read once the GPU has done its work where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers are given three significant digits."""
    lines = [list(headers), ["---"] * len(headers), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """The text of one cell."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
