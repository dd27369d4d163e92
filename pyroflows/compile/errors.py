"""What cannot be traced, and the user's line that is to blame."""

import traceback
from importlib.util import find_spec
from pathlib import Path

import torch

READ = (
    "a value is read by Python ({}){}: replace branches on values, .item(), .numpy() and boolean masks as indices by "
    "torch.where and torch's operations"
)
CAPTURE = str(Path(__file__).with_name("captured.py"))
# Lines in these packages are not the user's.
_PYRO = find_spec("pyro")  # which need not be installed
LIBRARIES = tuple(
    str(Path(file).parent)
    for file in (torch.__file__, _PYRO and _PYRO.origin, Path(__file__).parent)
    if file is not None
)


class Untraceable(RuntimeError):
    """A function that cannot be replayed as a graph; the message says why and where."""


def reason(error: Exception) -> str:
    """The first line of an error, and the user's line."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "data-dependent control flow" in first:  # as vmap says it, and asks for an issue at torch's
        return READ.format("a branch or assert", where(error))
    return f"{first}{where(error)}"


def where(error: BaseException | None = None) -> str:
    """The user's line that is traced, or that raised, as `` at file:line``."""
    stack = traceback.extract_stack() if error is None else traceback.extract_tb(error.__traceback__)
    start = max(
        (i for i, frame in enumerate(stack) if frame.name == "capture" and frame.filename == CAPTURE), default=0
    )
    own = [frame for frame in stack[start:] if not frame.filename.startswith((*LIBRARIES, "<"))]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
