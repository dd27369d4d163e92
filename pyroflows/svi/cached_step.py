"""A traced step of SVI with what decides whether it is still right, and what stands where there is none."""

import weakref
from dataclasses import dataclass
from types import MethodType

import pyro
import torch
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK, apply_stack
from pyro.poutine.trace_messenger import TraceMessenger
from torch.distributions import constraints, transform_to

from ..compile import Graph, Untraceable
from ..compile.audit import Audit
from ..compile.changes import Watch

# A graph is traced anew when what it closed over changes; after so many times the plain ELBO is cheaper. A graph that
# has been used so often has paid for itself, and does not count.
RETRACES, OFTEN = 5, 20


@dataclass(eq=False)
class Step:
    """A graph with what decides whether it is still right.

    Args:
        graph: of the loss and its gradients.
        params: Pyro's messages of the parameters.
        watch: what model and guide reach.
        retraces: how often a change of that has made a new trace too soon.
        audit: counts uses, and what audits found.
        ready: whether the graph has been compiled, if it is to be.
    """

    graph: Graph
    params: list[dict]
    watch: Watch
    retraces: int
    audit: Audit
    ready: bool = False

    def __post_init__(self) -> None:
        store = pyro.get_param_store()
        # Within a module's own store, Pyro leaves a parameter that needs no transform as it is.
        found = [(node["value"], vars(node["value"]).get("unconstrained")) for node in self.params]
        self.leaves = [value if leaf is None else leaf() for value, leaf in found]
        self._stored = {n["name"]: leaf for n, leaf in zip(self.params, self.leaves, strict=True) if n["name"] in store}

    @property
    def current(self) -> bool:
        """Whether a replay gives what model and guide would give now."""
        stored = pyro.get_param_store()._params
        same = all(stored.get(name) is leaf for name, leaf in self._stored.items())
        return same and self.graph.current and self.watch.changed() is None

    def announce(self) -> "Step":
        """Shows the parameters to the handlers around, as model and guide would."""
        for node, leaf in zip(self.params, self.leaves, strict=True) if _PYRO_STACK else ():
            with torch.no_grad():
                value = transform_to(node["kwargs"].get("constraint", constraints.real))(leaf)
            value.unconstrained = weakref.ref(leaf)
            apply_stack({**node, "value": value, "done": True, "stop": False, "continuation": None})
        return self


@dataclass(eq=False)
class Plain:
    """Stands where a signature cannot be traced, until something changes.

    Args:
        watch: what model and guide reach; None if that is no matter.
        retraces: how often it was tried in vain.
        audit: what audits found of graphs before.
    """

    watch: Watch | None
    retraces: int
    audit: Audit

    @property
    def current(self) -> bool:
        """Whether trying again would be in vain."""
        return self.watch is None or self.retraces > RETRACES or self.watch.changed() is None


class Same:
    """A function or module as part of a key: by equality where it can be hashed, else by identity."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __hash__(self) -> int:
        return hash(getattr(self.thing, "__func__", None)) ^ id(getattr(self.thing, "__self__", self.thing))

    def __eq__(self, other: object) -> bool:
        mine, others = self.thing, other.thing
        if isinstance(mine, MethodType) and isinstance(others, MethodType):
            return mine.__self__ is others.__self__ and mine.__func__ is others.__func__
        return mine is others


def autocast_types() -> tuple:
    """The types that autocast uses now."""
    if not torch._C._is_any_autocast_enabled():
        return ()
    return tuple(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) for d in ("cpu", "cuda"))


def check_handlers() -> None:
    """Handlers around a step change the sites within, unless they only look."""
    for handler in _PYRO_STACK:
        if not isinstance(handler, TraceMessenger | BlockMessenger):
            raise Untraceable(f"the step runs inside {type(handler).__name__}: apply it to the model and the guide")
