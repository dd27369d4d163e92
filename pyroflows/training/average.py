"""Moving averages of iterates."""


def averaging_weight(decay: float, steps: int) -> float:
    """The weight of the newest iterate in a moving average, which falls from 1 so that the start is forgotten."""
    return 1 - min(decay, steps / (steps + 10))
