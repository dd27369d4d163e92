"""Layers that recur in a graph as calls of one function, so that a compiler works once on what is there many times."""

import operator
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import fx
from torch._ops import OpOverload

from .simplify import key, pure

# A call costs some microseconds a step, and what is in it is compiled apart from what is around: so many operations
# must be spared in all, once so many are taken off for each call.
LEAST, CALL = 50, 10


def outline(module: fx.GraphModule) -> fx.GraphModule:
    """Makes sequences of operations that recur functions of their own, which the graph calls.

    The layers of a flow do the same with other parameters, and so do their gradients. Random operations, and those
    that change a tensor, stay where they are.

    Args:
        module: a graph made by :func:`~pyroflows.compile.record.record`, which stays as it is.

    Returns:
        A graph that does the same; the one given where nothing recurs that is long enough.
    """
    if not hasattr(torch.ops.higher_order, "invoke_subgraph"):  # before torch 2.6
        return module
    order = {"placeholder": 0, "get_attr": 1}
    nodes = sorted(module.graph.nodes, key=lambda node: order.get(node.op, 2))
    numbers: dict[Hashable, int] = {}
    codes = np.array([numbers.setdefault(_code(node), len(numbers)) for node in nodes])
    work = np.cumsum([0, *(pure(node) and not _is_view(node) for node in nodes)])
    parts = []
    while part := _longest(nodes, codes, work):
        parts.append([nodes[span] for span in part])
        for span in part:
            codes[span] = -1 - np.arange(span.start, span.stop)  # unlike all others
    return _rewrite(module, nodes, parts) if parts else module


def _code(node: fx.Node) -> Hashable:
    """Equal for operations that do the same with tensors of the same kind; no other equals one that must stay."""
    several = "kind" not in node.meta or node.target is operator.getitem
    if not pure(node) or (several and not _is_view(node)):
        return node

    def kind(given: fx.Node) -> Hashable:
        return fx.Node, given.meta.get("kind")

    return node.target, key(node.args, kind), key(node.kwargs, kind), node.meta.get("kind")


def _is_view(node: fx.Node) -> bool:
    """Whether a node only looks at its first argument in another way."""
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    return isinstance(node.target, OpOverload) and node.target.is_view


def _longest(nodes: Sequence[fx.Node], codes: np.ndarray, work: np.ndarray) -> list[slice]:
    """Where those sequences are that it spares most operations to compile once, empty if none spares enough."""
    best, most = [], LEAST - 1
    for start, length in _candidates(codes):
        spared = int(work[start + length] - work[start])
        if spared > CALL:
            spans = _alike(nodes, _occurrences(codes, start, length))
            gain = spared * (len(spans) - 1) - CALL * len(spans)
            best, most = (spans, gain) if gain > most else (best, most)
    while best and _is_view(nodes[best[0].start]):  # of one is all that a call could be given
        best = [slice(span.start + 1, span.stop) for span in best]
    return best


def _candidates(codes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Sequences that occur at least twice, each as long as it can be; start and length of the first of them."""
    seen = set()
    for shift in range(CALL + 1, len(codes) - CALL):
        unequal = np.flatnonzero(codes[shift:] != codes[:-shift])
        edges = np.concatenate([[-1], unequal, [len(codes) - shift]])
        lengths = np.minimum(np.diff(edges) - 1, shift)
        for index in np.flatnonzero(lengths > CALL):
            start, length = int(edges[index]) + 1, int(lengths[index])
            content = codes[start : start + length].tobytes()
            if content not in seen:
                seen.add(content)
                yield start, length


def _occurrences(codes: np.ndarray, start: int, length: int) -> list[slice]:
    """Where a sequence is, again and again, without overlaps."""
    windows = np.lib.stride_tricks.sliding_window_view(codes, length)
    spans: list[slice] = []
    for found in np.flatnonzero((windows == codes[start : start + length]).all(1)).tolist():
        if not spans or found >= spans[-1].stop:
            spans.append(slice(found, found + length))
    return spans


def _alike(nodes: Sequence[fx.Node], spans: list[slice]) -> list[slice]:
    """Those whose operations also take what is made among them from the same places."""
    groups = defaultdict(list)
    for span in spans:
        place = {node: index for index, node in enumerate(nodes[span])}
        groups[tuple(place.get(given) for node in place for given in _arguments(node))].append(span)
    return max(groups.values(), key=len)


def _arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, in order, each as often as it is there."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


class _Function:
    """A part as a function of what its nodes take from outside.

    Args:
        calls: the nodes of each sequence.
    """

    def __init__(self, calls: Sequence[Sequence[fx.Node]]) -> None:
        graph, made = fx.Graph(), {}
        # What stands at the same place in all calls: nodes of theirs, or what they are given from outside.
        columns = list(zip(*calls, strict=True))
        taken = [list(zip(*map(_arguments, column), strict=True)) for column in columns]
        own = set(columns)
        self.inputs = [column for column in dict.fromkeys(chain(*taken)) if column not in own]
        for index, column in enumerate(self.inputs):
            made[column] = graph.placeholder(f"given_{index}")
        for column, arguments in zip(columns, taken, strict=True):
            rest = iter(arguments)
            made[column] = graph.node_copy(column[0], lambda _, rest=rest: made[next(rest)])
        self.outputs = sorted({place for call in calls for place in _outputs(call)})
        graph.output([made[columns[place]] for place in self.outputs])
        self.module = fx.GraphModule({}, graph)

    def call(self, graph: fx.Graph, name: str, given: Sequence[fx.Node]) -> list[fx.Node]:
        """Calls it by its name in a graph; returns its outputs there."""
        found = graph.call_function(torch.ops.higher_order.invoke_subgraph, (graph.get_attr(name), name, *given))
        return [graph.call_function(operator.getitem, (found, index)) for index in range(len(self.outputs))]


def _outputs(call: Sequence[fx.Node]) -> Iterator[int]:
    """Places of what is used elsewhere; of a view, the place of what it looks at."""
    place = {node: index for index, node in enumerate(call)}
    for node in call:
        if any(user not in place for user in node.users):
            while node in place and _is_view(node):
                node = node.args[0]
            if node in place:
                yield place[node]


def _rewrite(module: fx.GraphModule, nodes: Sequence[fx.Node], parts: Sequence[list]) -> fx.GraphModule:
    """The graph with calls in the places of the parts."""
    graph, made = fx.Graph(), {}
    root = {node.target: getattr(module, node.target) for node in nodes if node.op == "get_attr"}
    first, inside = {}, {node for calls in parts for call in calls for node in call}

    def copy(node: fx.Node) -> fx.Node:
        if node not in made:  # a node from outside, or a view of what a call returns
            made[node] = graph.node_copy(node, copy)
        return made[node]

    for number, calls in enumerate(parts):
        name, function = f"part_{number}", _Function(calls)
        root[name] = function.module
        first.update({call[0]: (name, function, index, call) for index, call in enumerate(calls)})
    for node in nodes:
        if node in first:
            name, function, index, call = first[node]
            found = function.call(graph, name, [copy(column[index]) for column in function.inputs])
            made.update(zip((call[place] for place in function.outputs), found, strict=True))
        elif node not in inside:
            copy(node)
    return fx.GraphModule(root, graph)
