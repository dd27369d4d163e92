"""The parameters of a step, where Pyro's store and the handlers around look for them."""

import weakref

import pyro
import torch
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK, apply_stack
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_inf, warn_if_nan
from torch import Tensor
from torch.distributions import constraints, transform_to

from ..compile import Untraceable


class Stored:
    """The parameters that model and guide asked for when they were traced.

    Args:
        messages: Pyro's messages of them.

    Attributes:
        leaves: the unconstrained tensors.
    """

    def __init__(self, messages: list[dict]) -> None:
        # Within a module's own store, Pyro leaves a parameter that needs no transform as it is.
        found = [(message["value"], vars(message["value"]).get("unconstrained")) for message in messages]
        self.leaves: list[Tensor] = [value if leaf is None else leaf() for value, leaf in found]
        self._both, store = list(zip(messages, self.leaves, strict=True)), pyro.get_param_store()
        self._stored = {message["name"]: leaf for message, leaf in self._both if message["name"] in store}

    def changed(self) -> str | None:
        """What is another parameter in Pyro's store now, or None."""
        now = pyro.get_param_store()._params
        return next((f"the parameter {name}" for name, leaf in self._stored.items() if now.get(name) is not leaf), None)

    def announce(self) -> None:
        """Shows the parameters to the handlers around, as model and guide would."""
        for message, leaf in self._both if _PYRO_STACK else ():
            with torch.no_grad():
                value = transform_to(message["kwargs"].get("constraint", constraints.real))(leaf)
            value.unconstrained = weakref.ref(leaf)
            apply_stack({**message, "value": value, "done": True, "stop": False, "continuation": None})


def check_handlers() -> None:
    """Handlers around a step change the sites within, unless they only look."""
    for handler in _PYRO_STACK:
        if not isinstance(handler, TraceMessenger | BlockMessenger):
            raise Untraceable(f"the step runs inside {type(handler).__name__}: apply it to the model and the guide")


def accumulate(leaves: list[Tensor], gradients: list[Tensor | None]) -> None:
    """Adds gradients to ``grad`` as ``backward`` does."""
    old, new = [], []
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None and leaf.grad is None:
            leaf.grad = gradient.clone(memory_format=torch.contiguous_format)
        elif gradient is not None:
            old.append(leaf.grad)
            new.append(gradient)
    if old:
        torch._foreach_add_(old, new)


def checked(loss: float) -> float:
    """The loss, announced as Pyro does where it is NaN, and also where it is infinite."""
    return warn_if_inf(warn_if_nan(loss, "loss"), "loss")
