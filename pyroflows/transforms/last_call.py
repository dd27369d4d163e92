"""A one-slot memory that recalls the other side of a value that a transform has just produced."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd import is_symbolic


@dataclass
class _Slot:
    produced: Any
    source: Tensor
    ladj: Tensor
    inverse: bool
    with_grad: bool
    stamps: tuple


class Memo:
    """Recalls ``(source, ladj)`` for a value that a call produced: once, and only when it cannot be stale.

    Sampling and then scoring the same tensor should run a flow once. A caller's own tensor is never
    recognised; only the very tensor that came out of a call is, and only while parameters, buffers, modes, the
    context and both tensors are what they were (their values are compared, since fused optimizers and NumPy do
    not raise version counters) and the graph made then suffices now. Nothing is stored under a compiler,
    vmap or a dispatch mode; what ``torch.jit.trace`` runs is remembered for the time of the trace. The slot
    keeps no reference to the produced tensor, is emptied when that one is dropped, and is empty in a copy or
    a pickle.
    """

    def __init__(self) -> None:
        self._slot: _Slot | None = None

    def __getstate__(self) -> dict:
        """An empty memory."""
        return {"_slot": None}

    def store(self, owner: nn.Module, context: Tensor | None, inverse: bool, source: Tensor, out: tuple) -> None:
        """Remembers one call of ``owner``."""
        produced, ladj = out
        self._slot = None
        if produced is not source and not is_symbolic(source, produced):
            stamps = _stamps(owner, context, source, produced)
            with_grad = torch.is_grad_enabled()
            reference = weakref.ref(produced, lambda _: self.clear())
            self._slot = _Slot(reference, source, ladj, inverse, with_grad, stamps)

    def recall(self, owner: nn.Module, context: Tensor | None, inverse: bool, value: Tensor) -> tuple | None:
        """The source of ``value`` and the ladj on the way back to it, or None."""
        if is_symbolic(value):
            return None
        slot = self._slot
        if slot is None or slot.produced() is not value or slot.inverse == inverse:
            return None
        if torch.is_grad_enabled() and not slot.with_grad:
            return None
        if not _same(slot.stamps, _stamps(owner, context, slot.source, value)):
            return None
        return slot.source, -slot.ladj

    def clear(self) -> None:
        """Forgets; the graph of the remembered call can then be freed."""
        self._slot = None


def _stamps(owner: nn.Module, context: Tensor | None, source: Tensor, produced: Tensor) -> tuple:
    """What must not have changed: identities, versions and modes, and a copy of all floating-point values."""
    given = [source, produced] if context is None else [source, produced, context]
    tensors = [*given, *owner.parameters(), *owner.buffers()]
    values = [t.detach().flatten() for t in tensors if t.is_floating_point()]
    known = (
        *((id(t), t._version, t.requires_grad) for t in tensors),
        *(module.training for module in owner.modules()),
    )
    return known, None if torch.jit.is_tracing() else torch.cat(values)


def _same(old: tuple, new: tuple) -> bool:
    """Compares two results of :func:`_stamps`."""
    if old[1] is None or new[1] is None:
        return old[0] == new[0] and old[1] is new[1]
    return old[0] == new[0] and torch.equal(old[1], new[1])
