"""Operations of a function noted one by one in a graph, in a ninth of the time of ``make_fx``, which notes shapes."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .refuse import LIFTS

LIFT, LIFT_COPY = LIFTS
EMPTY, NORMAL, RANDN = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.normal_.default,
    torch.ops.aten.randn.default,
)
# Views that are the tensor itself where shape and strides stay.
IDLE = (
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
)

# They return nothing and raise.
CHECKS = (
    torch.ops.aten._linalg_check_errors.default,
    torch.ops.aten._assert_async.default,
    torch.ops.aten._assert_async.msg,
)
for check in CHECKS:
    fx.node.has_side_effect(check)


def record(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], table: Mapping[Any, Callable] | None = None
) -> fx.GraphModule:
    """Runs a function of tensors once and returns the operations that it did, gradients included, as a graph.

    Args:
        function: maps tensors to a list of tensors.
        tensors: what it is run with; the graph's arguments.
        table: what to do in the place of an operation; NotImplemented leaves it as it is.

    Returns:
        A function of the same arguments. Tensors that the function closes over are attributes.

    Example:
        >>> module = record(lambda x: [x.exp() + 1], [torch.zeros(2)])
        >>> module(torch.ones(2))[0]
        tensor([3.7183, 3.7183])
        >>> [node.name for node in module.graph.nodes]
        ['input_0', 'exp_default', 'add_tensor', 'output']
    """
    return fx.GraphModule(*noted(function, tensors, table))


def noted(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], table: Mapping[Any, Callable] | None = None
) -> tuple[nn.Module, fx.Graph]:
    """The same as a module with the attributes, and the graph, of which no code is made yet."""
    recorder = _Recorder(table or {})
    for index, tensor in enumerate(tensors):
        recorder.keep(tensor, recorder.graph.placeholder(f"input_{index}"))
    with recorder:
        found = function(*tensors)
    recorder.graph.output([recorder.node(t) for t in found])
    return recorder.root, recorder.graph


class _Recorder(TorchDispatchMode):
    """Sees every operation below autograd and vmap, and notes it unless it changes nothing."""

    def __init__(self, table: Mapping[Any, Callable]) -> None:
        super().__init__()
        self.table, self.graph, self.root = table, fx.Graph(), nn.Module()
        self.nodes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._closed = 0

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that made a tensor, or holds one from outside."""
        if tensor not in self.nodes:
            name = f"closed_{self._closed}"
            self._closed += 1
            setattr(self.root, name, tensor)
            self.keep(tensor, self.graph.get_attr(name))
        return self.nodes[tensor]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports TorchDynamo, a second of it, to keep out what never gets here

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.table:
            with self:
                out = self.table[func](*args, **kwargs)
            if out is not NotImplemented:
                return out
        func = LIFT_COPY if func is LIFT else func  # what is lifted may be changed in place later
        noted = pytree.tree_map_only(Tensor, self.node, (args, kwargs))
        out = func(*args, **kwargs)
        if func in IDLE and kind(out) == noted[0][0].meta["kind"]:
            self.nodes[out] = noted[0][0]
        elif func._schema.is_mutable or func in CHECKS or any(isinstance(o, Tensor) for o in (out, *_items(out))):
            self._note(self._call(func, *noted), func, out)
        return out

    def _call(self, func: Any, args: tuple, kwargs: dict) -> fx.Node:
        """The call, but new memory filled with normal numbers, as distributions draw, as one that makes them."""
        if torch.Tag.inplace_view in func.tags:  # a new view in the place of the tensor says the same
            packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"))
            func = getattr(packet, func._overloadname, None) or packet.int  # of transpose
        memory = args[0] if func is NORMAL and len(args) == 1 and not kwargs else None
        if memory is not None and memory.target is EMPTY and "memory_format" not in memory.kwargs:
            func, args, kwargs = RANDN, memory.args, memory.kwargs
        return self.graph.call_function(func, args, kwargs)

    def _note(self, node: fx.Node, func: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            if not node.all_input_nodes and any(argument.name == "dtype" for argument in func._schema.arguments):
                node.update_kwarg("dtype", out.dtype)  # the default may be another one at a replay
            self.keep(out, node)
            return
        for index, part in enumerate(_items(out)):
            if isinstance(part, Tensor):
                self.keep(part, self.graph.call_function(operator.getitem, (node, index)))

    def keep(self, tensor: Tensor, node: fx.Node) -> None:
        """Notes the node of a tensor."""
        node.meta["kind"] = kind(tensor)
        self.nodes[tensor] = node


def kind(tensor: Tensor) -> tuple:
    """All of a tensor but its values and its place, noted of each node as ``meta["kind"]``."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _items(out: Any) -> Sequence[Any]:
    return out if isinstance(out, list | tuple) else ()
