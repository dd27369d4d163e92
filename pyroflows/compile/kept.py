"""Graphs by signature: made at a first call, compared and audited at later ones, made anew, and given up."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .audit import EVERY, Audit
from .changes import Watch
from .errors import Untraceable
from .graph import Graph

# A graph that has been used so often has paid for itself. After so many in turn that had not, no other is made.
OFTEN, SPARE = 20, 5
ADVICE = "make functions once, pass what changes as tensors of few shapes, then forget graphs by retrace()"


@dataclass(eq=False)
class Kept:
    """What there is for a signature: a graph, or none until something changes.

    Args:
        graph: None where none can be made.
        audit: counts uses, and what audits found.
        held: what was made with the graph; None, or something with a ``changed`` of its own.
        ready: whether the graph has been compiled, if it is to be.
    """

    graph: Graph | None
    audit: Audit
    held: Any = None
    ready: bool = False

    def changed(self) -> str | None:
        """What has changed of what is compared at each use; None: nothing."""
        of_graph = self.graph.changed() if self.graph else None
        return of_graph or (self.held and self.held.changed())


class Graphs:
    """The graphs of a function.

    A signature has a graph until something changes, or an audit fails; then it gets another one. Where graphs come and
    go before they have paid for themselves, and where one cannot be made, there is none, and the function is to be run.

    Args:
        size: how many signatures are kept, of those used last.
        audit: uses of a graph between audits, as of :class:`~pyroflows.compile.audit.Audit`.
        say: is called with what an audit has found.
        refuse: is called with the reason where there is no graph.
    """

    def __init__(
        self,
        size: int,
        audit: int = EVERY,
        say: Callable[[str], None] = lambda message: None,
        refuse: Callable[[Untraceable], None] = lambda error: None,
    ) -> None:
        self._size, self._audit, self._say, self._refuse = size, audit, say, refuse
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._wasted, self._change = 0, ""

    def __len__(self) -> int:
        return len(self._kept)

    def find(
        self,
        key: Hashable,
        inputs: Sequence[Tensor],
        make: Callable[[], tuple[Graph, Any]],
        roots: Sequence[object],
    ) -> Kept | None:
        """What there is for a signature, or None where its graph is not to be used.

        Args:
            key: the signature.
            inputs: the tensors of the call.
            make: traces the function; returns the graph and what is held with it.
            roots: what the function reads, see :class:`~pyroflows.compile.changes.Watch`.
        """
        kept = self._kept.pop(key, None)
        change = kept and kept.changed()
        if kept is None or change or not self._sound(kept, inputs):
            kept = self._made(kept, change, make, roots)
        if kept is not None:
            self._kept[key] = kept
        if len(self._kept) > self._size:
            self._drop(self._kept.popitem(last=False)[1], "the signature")
        return kept if kept and kept.graph else None

    def _made(self, old: Kept | None, change: str | None, make: Callable, roots: Sequence[object]) -> Kept | None:
        """What stands in the place of an old one; None: nothing, as before long it would be dropped."""
        audit = Audit(self._audit, old.audit.failures if old else 0)
        if old:
            self._drop(old, change)
        if self._wasted >= SPARE:
            what = f"{self._change} changes again and again, and {SPARE} graphs were used less than {OFTEN} times"
            self._refuse(Untraceable(f"{what}: {ADVICE}"))
            return None
        watch = _look(roots)
        try:
            if audit.spent:
                raise Untraceable(f"{audit.failures} of its graphs have failed their audits")
            graph, held = make()
        except Untraceable as error:
            self._refuse(error)
            # Nothing is tried again that changes whenever it is tried.
            return Kept(None, audit, None if watch is None or watch.changed() else watch)
        return Kept(graph, audit, held)

    def _drop(self, old: Kept, change: str | None) -> None:
        self._wasted = 0 if old.audit.uses >= OFTEN else self._wasted + 1
        self._change = change or "what an audit finds"

    def _sound(self, kept: Kept, inputs: Sequence[Tensor]) -> bool:
        """Counts a use; whether the graph has passed its audit, where one is due."""
        message = kept.audit.judge(kept.graph.audit(inputs)) if kept.graph and kept.audit.due() else None
        if message:
            self._say(message)
        return message is None


def _look(roots: Sequence[object]) -> Watch | None:
    """Notes what a function reads, where that can be."""
    try:
        return Watch(*roots)
    except Untraceable:
        return None
