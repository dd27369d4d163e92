"""How many threads of torch to use: short operations are faster on one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..numeric import seeded
from .gaussian import score

# Seconds of one gradient on one thread up to which others are not even tried.
SHORT = 0.03
# More threads than one must spare this much of them.
GAIN = 0.8


@contextmanager
def enough_threads(log_density: Callable[[Tensor], Tensor], z: Tensor) -> Iterator[None]:
    """Leaves torch as many threads as it has where they make a gradient faster, else one, until the end of a block.

    Threads wait for each other at the end of each operation. Where operations are short that spares nothing, and where
    other programs keep the processor busy each wait lasts until a thread gets its next turn: a fit of twenty seconds
    on one thread then takes minutes on two.

    Args:
        log_density: what the block takes gradients of; it is called a few times, and the generator left as it was.
        z: as many vectors as it takes at once, ``(rows, D)``.
    """

    def gradient() -> None:
        with seeded(0, z.device):
            score(log_density, z)

    threads = torch.get_num_threads()
    try:
        if threads > 1:
            torch.set_num_threads(1)
            alone = _seconds(gradient)
            if alone > SHORT:
                torch.set_num_threads(threads)
                if _seconds(gradient) > GAIN * alone:
                    torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(call: Callable[[], object]) -> float:
    """Of the second call, as the first may do more."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
