"""Random numbers that nobody else draws: seeds by purpose, and blocks that run from their own."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def seed_of(name: str) -> int:
    """A seed from 0 to 2^63 - 1 for random numbers that nobody else draws, by what they are for.

    Data are often made from the seed 0, 1 or 42. Draws that judge a fit to such data must not have the same numbers.

    Example:
        >>> seed_of("an example")
        8492489780910537357
    """
    return int.from_bytes(hashlib.sha256(f"pyroflows: {name}".encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int | None, *devices: torch.device) -> Iterator[None]:
    """Runs a block from its own seed and leaves the generators as they were; ``None`` changes nothing."""
    if seed is None:
        yield
        return
    elsewhere = any(device.type != "cpu" for device in devices)
    with torch.random.fork_rng(range(torch.cuda.device_count()) if elsewhere else []):
        # torch.manual_seed would also seed GPUs that are not in use yet.
        (torch.manual_seed if elsewhere else torch.default_generator.manual_seed)(seed)
        yield


def generators() -> list[torch.Tensor]:
    """The states of torch's generators: the CPU's, and those of the GPUs in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def rewind(states: list[torch.Tensor]) -> None:
    """Sets the generators to states that they had, those of GPUs as far as these are here."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)
