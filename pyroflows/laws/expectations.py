"""How a law says that it is broken, and the random numbers it starts from."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.testing import assert_close

from ..seeds import seed_of, seeded


@contextlib.contextmanager
def law_broken(law: str, subject: object, way: str) -> Iterator[None]:
    """Seeds what runs inside; whatever goes wrong there is told as a broken law."""
    try:
        with seeded(seed_of(law), torch.device("cpu")):
            yield
    except Exception as error:
        raise AssertionError(f"{type(subject).__name__} breaks the law {law!r} {way}: {error}") from error


def expect_close(what: str, got: Tensor, expected: Tensor) -> None:
    """Raises unless two tensors agree in shape, and in values to six digits."""
    assert_close(got, expected, rtol=1e-6, atol=1e-6, msg=lambda text: f"{what}: {text}")


def expect(what: str, got: object, expected: object) -> None:
    """Raises unless two values are equal."""
    if got != expected:
        raise AssertionError(f"{what}: expected {expected}, got {got}")


def expect_change(what: str, before: Tensor, after: Tensor) -> None:
    """Raises if two tensors are equal."""
    if torch.equal(before, after):
        raise AssertionError(f"{what}: expected the output to change, got the same")


def normal(*shape: int) -> Tensor:
    """Standard normal numbers in double precision."""
    return torch.randn(shape, dtype=torch.float64)
