"""The parameters that a model declares itself, held at values of their own whatever becomes of them elsewhere."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


def parameters_of(trace: poutine.Trace) -> dict[str, Tensor]:
    """Copies of the values of ``pyro.param``, ``pyro.module`` and PyroModules in a run of a model, by name."""
    nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "param"}
    return {name: node["value"].detach().clone() for name, node in nodes.items()}


class Holding(Messenger):
    """Runs a model with its parameters at given values; the parameter store and modules are left as they are.

    A ``pyro.param`` returns the value. Of a module Pyro only hears the names of its parameters, and the module goes on
    with its own tensors: these are replaced in all that torch is called with.

    Args:
        values: by the name of the parameter; others are the current ones.

    Example:
        >>> import pyro, torch
        >>> def model():
        ...     return pyro.param("scale", torch.tensor(1.0)).item()
        >>> model(), Holding({"scale": torch.tensor(2.0)})(model)(), model()
        (1.0, 2.0, 1.0)
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = {name: _as_parameter(value) for name, value in values.items()}
        self._modes: list[_Replacing] = []

    def __enter__(self) -> "Holding":
        super().__enter__()
        self._modes.append(_Replacing())
        self._modes[-1].__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._modes.pop().__exit__(*error)
        return super().__exit__(*error)

    def _pyro_param(self, msg: dict) -> None:
        if msg["name"] in self.values and msg["value"] is None:
            msg["value"] = self.values[msg["name"]]
            for own in msg["args"][1:2]:
                if isinstance(own, nn.Parameter):
                    self._modes[-1].replaced[id(own)] = own, msg["value"]


def _as_parameter(value: Tensor) -> Tensor:
    """A copy that a subsampled plate takes for a parameter of Pyro: it asks for what is behind."""
    made = value.detach().clone()
    made.unconstrained = weakref.ref(made)
    return made


class _Replacing(TorchFunctionMode):
    """Calls of torch with some tensors replaced by others."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: dict[int, tuple[Tensor, Tensor]] = {}  # the first of each is kept alive, and with it its id

    def _other(self, tensor: Tensor) -> Tensor:
        return self.replaced.get(id(tensor), (None, tensor))[1]

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, self._other, (args, kwargs or {}))
        return func(*args, **kwargs)
