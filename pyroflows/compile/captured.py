"""Captures a function of tensors and its gradients as one graph: Python runs once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..seeds import seeded
from .audit import fresh
from .changes import Watch
from .errors import Untraceable, reason
from .graph import Graph
from .record import noted
from .refuse import LIFTS
from .settings import tracing
from .tracer import Tracer


def capture(
    function: Callable[..., Any],
    inputs: Sequence[Tensor] = (),
    *,
    parameters: Sequence[Tensor] | None = None,
    has_aux: bool = False,
    grad: bool = True,
    roots: Sequence[object] | None = None,
) -> Graph:
    """Traces a function of tensors, together with its gradients, to one graph without Python.

    Parameters are found by identity among the tensors that the function closes over. All other tensors that it
    closes over stay live: changed in place, they change the next replay. Random numbers are drawn anew at each
    replay from torch's generator. Everything else (numbers, shapes, branches, attributes) is as it was when
    traced. The validation of torch's distributions is off while tracing; the generator's state is left as it was.

    Args:
        function: maps tensors to a scalar loss, or to ``(loss, aux)`` with ``has_aux``, where ``aux`` is a tensor
            or a structure of tensors.
        inputs: tensors to trace with; a replay takes others of the same shapes and dtypes.
        parameters: leaves to differentiate by; None finds all that the function uses.
        has_aux: the function returns ``(loss, aux)``.
        grad: also trace the gradients.
        roots: what the function reads, where that is not to be found from the function, see
            :class:`~pyroflows.compile.changes.Watch`.

    Returns:
        A callable: ``graph(*inputs) -> (loss, gradients)``, or ``((loss, aux), gradients)``.

    Raises:
        Untraceable: if the function branches on values, changes what it reads, such as a counter or tensors that it
            did not make, draws other random numbers than torch's, or gives another answer when replayed.

    Example:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> graph = capture(lambda x: (weight * x).sum(), [torch.ones(2)])
        >>> graph(torch.tensor([3.0, 4.0]))
        (tensor(11.), [tensor([3., 4.])])
    """
    tracer, roots = Tracer(function, parameters, has_aux, grad), (function,) if roots is None else roots
    watch = Watch(*roots, states=True)
    with tracing():
        try:
            made, own, closed = _lift(*noted(tracer, fresh(inputs)), tracer.leaves)
            after = Watch(*roots, read=(*own, *closed))
            graph = Graph(made, own, closed, tracer.spec, tracer.used, tracer, after)
            if what := watch.rewritten([*own, *closed], after):
                raise Untraceable(
                    f"{what} changes whenever the function runs: pass it as a tensor argument, and draw with torch"
                )
            _verify(graph, inputs)
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(reason(error)) from error
    return graph


def _lift(
    module: nn.Module, graph: fx.Graph, leaves: list[Tensor]
) -> tuple[fx.GraphModule, list[Tensor], list[Tensor]]:
    """Makes every tensor that the graph closes over an argument: first the leaves, then the others."""
    slots = {id(leaf): [] for leaf in leaves}
    closed: dict[int, Tensor] = {}
    for node in graph.find_nodes(op="get_attr"):
        tensor = getattr(module, node.target)
        if all(user.target in LIFTS for user in node.users):
            continue  # a number in the code
        if tensor.requires_grad and not tensor.is_leaf:
            raise Untraceable(
                f"a tensor from outside, of shape {tuple(tensor.shape)}, has a history of its own: compute it inside "
                f"the function, or detach it"
            )
        if id(tensor) not in slots:
            closed[id(tensor)] = tensor
        slots.setdefault(id(tensor), []).append(node)
    with graph.inserting_before(next(iter(graph.nodes))):
        made = [graph.placeholder(f"outside_{index}") for index in range(len(slots))]
    for placeholder, nodes in zip(made, slots.values(), strict=True):
        for node in nodes:
            placeholder.meta.update(node.meta)
            node.replace_all_uses_with(placeholder)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(module, graph), leaves, list(closed.values())  # only constants that are still used are kept


def _verify(graph: Graph, inputs: Sequence[Tensor]) -> None:
    """Raises unless a replay equals the function run anew, from a seed that the function cannot have set."""
    with seeded(int(torch.randint(2**62, (), device="cpu"))):
        found = graph.difference(inputs)
    if found:
        raise Untraceable(
            f"a replay of the function differs from the function ({found}): it uses other random numbers than torch's, "
            f"or depends on something that changes from call to call; use torch's random numbers and pass what changes "
            f"as tensors"
        )
