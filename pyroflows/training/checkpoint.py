"""A file from which training goes on where it was, however it ended."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..seeds import generators, rewind

# Devices and versions round differently, by this relative and ten times this absolute error.
DOUBLE, SINGLE = 1e-6, 1e-5


class Checkpoint:
    """A file from which the same call goes on to the same numbers, however it ended: killed, interrupted, or done.

    It holds what the problem was, so that another one is refused; the state of torch's generators at the beginning, to
    which they go back when the file is opened, and when the problem was noted, so that what comes before training comes
    out as it did; and for each training, one after the other, its state as it was last saved, with that of the
    generators.

    Args:
        caller: who trains, for messages.
        path: the file, which is read if it is there; None saves nothing.

    Raises:
        ValueError: if there is no such folder, or the file is damaged or something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for _ in range(2):
        ...         saved, seen = Checkpoint("count", f"{folder}/count.pt"), [0]
        ...         saved.check({"lr": 0.1})
        ...         resumed = saved.resume(seen.append)
        ...         saved.save(seen[-1] + 1)
        ...         print(resumed, seen)
        False [0]
        True [0, 1]
    """

    def __init__(self, caller: str, path: str | Path | None) -> None:
        self.caller, self.path, self._turn = caller, None if path is None else Path(path), -1
        self._content: dict[str, Any] = {
            "begin": generators(),
            "given": [],
            "problem": None,
            "checked": [],
            "states": [],
        }
        if self.path is None:
            return
        if self.path.exists():
            kind = f"a checkpoint of {caller}"
            self._content = dict(files.check_keys(files.read(self.path, kind), self._content.keys(), kind))
            rewind(self._content["begin"])
        elif not self.path.parent.is_dir():
            raise ValueError(f"{caller} expected a checkpoint in a folder that is there, got {self.path}")

    @property
    def _is_new(self) -> bool:
        return self._content["problem"] is None

    @torch.no_grad()
    def begin(self, given: Sequence[Tensor]) -> bool:
        """Notes tensors that were there before and that training changes, or puts them back; whether it did that.

        The generators are back at the beginning then.
        """
        if self._is_new:
            self._content["given"] = [tensor.detach().clone() for tensor in given]
            return False
        saved = self._content["given"]
        self._agree("given tensors", [list(t.shape) for t in saved], [list(t.shape) for t in given])
        for tensor, value in zip(given, saved, strict=True):
            tensor.copy_(value)
        rewind(self._content["begin"])
        return bool(saved)

    def check(self, problem: dict[str, Any]) -> None:
        """Notes what the problem is: numbers, strings, and lists of these by name; tensors may differ by rounding.

        Raises:
            ValueError: if the file is of another one.
        """
        own = {"caller": self.caller, **problem}
        if self._is_new:
            self._content |= {"problem": own, "checked": generators()}
            self._write()
            return
        saved = self._content["problem"]
        for name in {**own, **saved}:
            self._agree(name, saved.get(name), own.get(name))
        rewind(self._content["checked"])

    def _agree(self, name: str, saved: object, own: object) -> None:
        if isinstance(saved, Tensor) and isinstance(own, Tensor):
            close = DOUBLE if saved.dtype == own.dtype == torch.float64 else SINGLE
            same = torch.isclose(own, saved.to(own), rtol=close, atol=10 * close, equal_nan=True).all()
        else:
            same = saved == own
        if not same:
            raise ValueError(
                f"{self.caller} expected a checkpoint of the same call, with {name} {_shown(own)}, got {self.path}, "
                f"with {_shown(saved)}: make the call that was made, or name a file that is not there yet"
            )

    def resume(self, load: Callable[[Any], object]) -> bool:
        """Begins the next training, where it was when that is in the file: ``load`` gets its state. Whether it is."""
        self._turn += 1
        known = self._turn < len(self._content["states"])
        if known:
            state, numbers = self._content["states"][self._turn]
            load(state)
            rewind(numbers)
        return known

    def save(self, state: Any) -> None:
        """Writes the state of the training that was begun last."""
        if self.path is not None:
            # A copy, as a later training writes it again.
            self._content["states"][self._turn :] = [(copy.deepcopy(state), generators())]
            self._write()

    def _write(self) -> None:
        if self.path is not None:
            files.write(self._content, self.path)


def _shown(value: object) -> str:
    return "none" if value is None else f"{value.item():.6g}" if isinstance(value, Tensor) else repr(value)


def described(value: object) -> object:
    """A number or string as it is, anything else in words that are the same in every process.

    Example:
        >>> described(0.1), described(torch.sin), described(partial(max, 1, default=2))
        (0.1, 'sin', 'max(1, default=2)')
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    if isinstance(value, partial):
        parts = [*map(described, value.args), *(f"{name}={described(each)}" for name, each in value.keywords.items())]
        return f"{described(value.func)}({', '.join(map(str, parts))})"
    if is_dataclass(value) and not isinstance(value, type):
        return str(value)
    return getattr(value, "__name__", type(value).__name__)
