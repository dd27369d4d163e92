"""A function and its gradients as a flat list of tensors: under guard, to be noted; without, to be compared."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import Untraceable
from .refuse import Guard, Readers, check_hooks


class Tracer:
    """The function with its gradients as a flat list; notes what it meets when it is run.

    Args:
        function: maps tensors to a scalar loss, or to ``(loss, aux)``.
        parameters: leaves to differentiate by; None finds them.
        has_aux: the function returns ``(loss, aux)``.
        grad: whether there are gradients.

    Attributes:
        leaves: what the last run could be differentiated by.
        used: for each leaf, then for each input with gradients, whether the loss depends on it.
        spec: the structure of what the function returned.
    """

    def __init__(self, function: Callable, parameters: Sequence[Tensor] | None, has_aux: bool, grad: bool) -> None:
        self.function, self.has_aux, self.grad = function, has_aux, grad
        self.given = None if parameters is None else list(parameters)
        self.leaves, self.used, self.spec = [], [], None

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Runs it under a guard, which refuses what no graph can hold."""
        guard = Guard()
        with guard, Readers(guard), self._mode():
            return self._run(inputs, lambda loss, own: guard.leaves(own))

    def bare(self, *inputs: Tensor) -> list[Tensor]:
        """Runs it as it is, in a quarter of the time of a run under guard."""
        with self._mode():
            return self._run(inputs, self._reached)

    def _mode(self) -> AbstractContextManager:
        return nullcontext() if self.grad else torch.no_grad()

    def _run(self, inputs: Sequence[Tensor], leaves: Callable[[Tensor, list[Tensor]], list[Tensor]]) -> list[Tensor]:
        value = self.function(*inputs)
        loss = value[0] if self.has_aux else value
        self._check(loss)
        own = [t for t in inputs if t.requires_grad]
        self.leaves = leaves(loss, own) if self.given is None else self.given
        check_hooks(self.leaves)
        gradients = self._gradients(loss, [*self.leaves, *own])
        found, self.spec = pytree.tree_flatten(value)
        self.used = [g is not None for g in gradients]
        return [*(t.detach() for t in found), *(g for g in gradients if g is not None)]

    def _reached(self, loss: Tensor, own: list[Tensor]) -> list[Tensor]:
        """The leaves that the last loss depended on, in their order, then any other one that this one does."""
        last = [leaf for leaf, used in zip(self.leaves, self.used, strict=False) if used]
        met = {id(t) for t in (*last, *own)}
        return [*last, *(leaf for leaf in _leaves_of(loss) if id(leaf) not in met)]

    def _gradients(self, loss: Tensor, leaves: list[Tensor]) -> Sequence[Tensor | None]:
        if not (self.grad and leaves and loss.requires_grad):
            return [None] * len(leaves)
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    def _check(self, loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.shape != ():
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise Untraceable(f"expected a scalar tensor as loss, got {got}: return (loss, aux) and set has_aux")


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """The leaves that autograd has noted for a tensor."""
    waiting, seen, found = [loss.grad_fn], {None}, []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found
