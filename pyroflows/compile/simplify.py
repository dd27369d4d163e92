"""A traced graph made cheap to replay without a compiler: fewer operations, and each of them called directly."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from .compare import aten, copies, equal
from .record import record
from .settings import tracing

COPIES = (aten.clone.default, aten.lift_fresh_copy.default)
# Operations that give their input anew where shape, strides and dtype stay.
IDLE = (*COPIES, aten._to_copy.default)
RANDOM = torch.Tag.nondeterministic_seeded


def trace(function: Callable, tensors: Sequence[Tensor]) -> fx.GraphModule:
    """Traces a function of tensors, without gradients; it may change them in place.

    Products of matrices of one row or one column become sums, which a compiler merges with what is around them.
    """
    table = {aten.mm.default: _mm, aten.addmm.default: _addmm}
    with tracing(), torch.no_grad():
        return record(function, copies(tensors), table)


def functional(module: fx.GraphModule, tensors: Sequence[Tensor]) -> fx.GraphModule:
    """The same function of tensors that changes nothing in place, but perhaps its arguments at its end.

    vmap cannot run what fills memory that is one for all rows with what each row has of its own.

    Args:
        module: a graph of aten operations.
        tensors: its arguments, as examples.
    """
    with tracing(), torch.no_grad():
        return record(torch.func.functionalize(module.forward, remove="mutations"), copies(tensors), PLAIN)


def quick(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Callable:
    """The same function of tensors with fewer and cheaper calls.

    Changes in place are put off to the end, so that equal operations can be done once and those of constants before
    the first call; what changes neither shape, strides nor dtype is left out.

    Args:
        module: a graph of aten operations.
        tensors: its arguments, as examples.

    Returns:
        A function of the same arguments, to be called under ``torch.no_grad()``.
    """
    with tracing(), torch.no_grad():
        made = functional(module, tensors)
        _Notes(made).run(*copies(tensors))
        _skip_idle(made.graph)
        _fold_constants(made)
        _merge_equal(made.graph)
        made.graph.eliminate_dead_code()
        _call_directly(made.graph)
        made.recompile()
        return made.forward if equal(module.forward, made.forward, tensors) else module.forward


class _Notes(fx.Interpreter):
    """Notes the values of what depends on constants alone."""

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        fixed = node.op == "get_attr" or (_pure(node) and all("fixed" in i.meta for i in node.all_input_nodes))
        if fixed:
            node.meta["fixed"] = value
        return value


def _pure(node: fx.Node) -> bool:
    """Whether equal arguments mean equal results."""
    if isinstance(node.target, OpOverload):
        return not node.target._schema.is_mutable and RANDOM not in node.target.tags
    return node.op == "call_function"  # getitem


def _skip_idle(graph: fx.Graph) -> None:
    for node in [n for n in graph.nodes if n.target in IDLE or n.target is aten.copy.default]:
        source = node.args[1 if node.target is aten.copy.default else 0]
        if not isinstance(source, fx.Node):
            continue
        kept = node.target in COPIES and source.op == "placeholder"  # it may change before the copy is read
        if not kept and node.meta["kind"] == source.meta.get("kind"):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _fold_constants(module: fx.GraphModule) -> None:
    """Puts values in the place of what depends on constants alone."""
    for index, node in enumerate(list(module.graph.nodes)):
        value = node.meta.get("fixed")
        if node.op == "get_attr" or not isinstance(value, Tensor):
            continue
        module.register_buffer(f"fixed_{index}", value, persistent=False)
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(f"fixed_{index}"))
        module.graph.erase_node(node)


def _merge_equal(graph: fx.Graph) -> None:
    """Does once what is done twice."""
    seen: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or (not _pure(node) and node.op == "call_function"):
            continue
        first = seen.setdefault((node.op, node.target, _key(node.args), _key(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _key(value: Any) -> Hashable:
    """Equal for equal arguments; 1, 1.0 and True are not."""
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(part)) for name, part in value.items())
    return value if isinstance(value, fx.Node) else (type(value), repr(value))


def _call_directly(graph: fx.Graph) -> None:
    """Calls torch's own functions and methods, which find their operation faster than ``torch.ops`` does."""
    for node in graph.nodes:
        holes = any(isinstance(value, list | tuple) and None in value for value in node.args)
        if isinstance(node.target, OpOverload) and not holes:  # torch.index_put takes no None among its indices
            name = node.target._schema.name.removeprefix("aten::")
            homes = torch._C._VariableFunctions, torch._C._nn, torch._C.TensorBase
            node.target = next((getattr(home, name) for home in homes if hasattr(home, name)), node.target)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[1] == 1:
        return a * b
    if a.shape[0] == 1:
        return (a.t() * b).sum(0, True)
    return (a * b.t()).sum(1, True) if b.shape[1] == 1 else NotImplemented


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _mm(a, b) if beta == alpha == 1 else NotImplemented
    return product if product is NotImplemented else c + product


def _filled(value: float | None = None) -> Callable:
    """A tensor like another one but of one value, as a constant."""

    def make(like: Tensor, *given: Any, dtype: torch.dtype | None = None, **rest: Any) -> Tensor:
        fill = given[-1] if value is None else value
        return torch.full(like.shape, fill, dtype=dtype or like.dtype, device=like.device)

    return make


def _new_zeros(like: Tensor, size: list[int], *, dtype: torch.dtype | None = None, **rest: Any) -> Tensor:
    return torch.zeros(size, dtype=dtype or like.dtype, device=like.device)


def _copy(like: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    """What a copy leaves in memory of its own; vmap has no rule for ``aten::copy``."""
    return value.to(like.dtype).expand(like.shape).contiguous()


PLAIN = {
    aten.copy.default: _copy,
    aten.zeros_like.default: _filled(0),
    aten.ones_like.default: _filled(1),
    aten.full_like.default: _filled(),
    aten.new_zeros.default: _new_zeros,
}
