"""How long something takes on a usual processor, by the operations that it makes: the same however busy the machine."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Seconds of an operation, of each number that it makes, and of each product that it sums up, on one usual core.
OPERATION, NUMBER, PRODUCT = 1e-5, 1e-9, 1e-10
# Operations that sum up products, by parts of their names.
PRODUCTS = ("mm", "mv", "dot", "linalg", "cholesky", "triangular", "conv")


class _Bill(TorchDispatchMode):
    """Adds up what the operations that are made in it take."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports TorchDynamo, a second of it, to keep out what never gets here

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.seconds += OPERATION
        if not func.is_view:
            made = sum(value.numel() for value in pytree.tree_leaves(found) if isinstance(value, Tensor))
            self.seconds += NUMBER * made
            if any(part in func.name() for part in PRODUCTS):
                self.seconds += PRODUCT * made * max((given.shape[-1] for given in args if _is_array(given)), default=1)
        return found


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def work_of(step: Callable[[], object]) -> float:
    """About the seconds that a step takes, by its operations and not by a clock; makes it once.

    Example:
        >>> import torch
        >>> x = torch.ones(1000)
        >>> work_of(lambda: x + x) == work_of(lambda: x + x) > 0
        True
    """
    with _Bill() as bill:
        step()
    return bill.seconds
