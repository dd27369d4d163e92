"""A function of tensors and its gradients as one graph: Python runs once, the graph is replayed or compiled."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..seeds import seeded
from .audit import difference, fresh, trained
from .changes import Watch
from .compare import close, coarsest, copies
from .cuda_graph import launched
from .errors import Untraceable, reason
from .inductor import compiled
from .record import noted
from .refuse import LIFTS
from .settings import tracing
from .signature import kind_of
from .simplify import quick
from .tracer import Tracer


class Graph:
    """A captured function, made by :func:`capture` or :func:`~pyroflows.compile.fuse`.

    Args:
        module: the graph, a function of the parameters, then the closed-over tensors, then the inputs.
        parameters: what gradients are taken of.
        closed: other tensors that the function closes over; read anew at each replay.
        spec: structure of the function's output.
        used: for each parameter whether the loss depends on it.
        function: what the graph was made of, for audits.

    Attributes:
        mode: as in ``torch.compile``, and read at the first call. With ``"reduce-overhead"`` all kernels on a GPU are
            launched at once, as a CUDA graph, with a warning where that cannot be; with ``"automatic"`` without.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        parameters: list[Tensor],
        closed: list[Tensor],
        spec: pytree.TreeSpec,
        used: list[bool],
        function: Tracer | None = None,
    ) -> None:
        self.module, self.parameters, self.closed = module, parameters, closed
        self.spec, self.used, self._function = spec, used, function
        self.mode: str | None = None
        self._facts = self._read()
        self._run: Callable | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Any, list[Tensor | None]]:
        """What the function returns, and the gradients of its loss (None: the loss does not depend on it).

        Gradients are by each parameter, then by each input that required them when traced.
        """
        return self.replay(self.parameters, inputs)

    def replay(self, parameters: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Any, list[Tensor | None]]:
        """The same with other tensors in the place of the parameters."""
        found = self.run(*parameters, *self.closed, *inputs)
        count = self.spec.num_leaves
        gradients = iter(found[count:])
        value = pytree.tree_unflatten(list(found[:count]), self.spec)
        return value, [next(gradients) if used else None for used in self.used]

    def run(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The graph itself, a function of all that it reads; what is None above is left out."""
        with torch.no_grad():
            if self._run is None:
                self._run = launched(quick(self.module, tensors), self.module, tensors, self.mode)
            if not torch._C._is_any_autocast_enabled():
                return self._run(*tensors)
            with torch._C._DisableAutocast():  # what autocast does was traced
                return self._run(*tensors)

    def audit(self, inputs: Sequence[Tensor]) -> str | None:
        """What the function would do otherwise now, run on the noise that comes next; None if nothing.

        It is run as it is, and under guard only where that run has found something.
        """
        found = None
        with tracing():
            for function in (self._function.bare, self._function):
                try:
                    found = self.difference(inputs, function)
                except Exception as error:  # the function may raise whatever it likes
                    found = f"the function raises {type(error).__name__}: {reason(error)}"
                if found is None:
                    break
        return found

    def difference(self, inputs: Sequence[Tensor], function: Callable | None = None) -> str | None:
        """The same while tracing, of a run under guard or of another one."""
        tracer, own = self._function, [*self.parameters, *self.closed]
        before = copies(own)
        # What is used is looked at; but a CUDA graph draws from a state of its own.
        used = self._run is not None and not any(t.is_cuda for t in (*own, *inputs))
        replay, tolerance = torch.no_grad()(self._run if used else self.module.forward), coarsest(self.module) ** 0.5
        found = difference(
            function or tracer, lambda *given: replay(*before, *given), inputs, self.spec.num_leaves, tolerance
        )
        if not all(close(then, now, 0.0) for then, now in zip(before, own, strict=True)):
            return "it changes a tensor from outside"
        if trained(tracer.leaves, tracer.used) != trained(self.parameters, self.used):
            return "the loss depends on other parameters"
        return found if tracer.spec == self.spec else "it returns another structure"

    @property
    def current(self) -> bool:
        """Whether the tensors that it reads are still of the kind that it was traced with."""
        return self._facts == self._read()

    def _read(self) -> list:
        hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters)
        return [hooked, *map(kind_of, self.parameters), *map(kind_of, self.closed)]

    def compile(self, inputs: Sequence[Tensor], mode: str | None = None) -> "Graph":
        """Compiles the graph with inductor, at once, and returns it.

        Args:
            inputs: tensors of the shapes that it was traced with.
            mode: as in ``torch.compile``; None keeps :attr:`mode`.

        Raises:
            RuntimeError: if no compiler works here.
        """
        self.mode = mode or self.mode
        self._run = compiled(self.module, [*self.parameters, *self.closed, *inputs], self.mode)
        return self


def capture(
    function: Callable[..., Any],
    inputs: Sequence[Tensor] = (),
    *,
    parameters: Sequence[Tensor] | None = None,
    has_aux: bool = False,
    grad: bool = True,
    verify: bool = True,
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
        verify: run the function once more and compare it with a replay from the same seed.

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
    tracer, watch = Tracer(function, parameters, has_aux, grad), Watch(function)
    with tracing():
        try:
            made = _lift(*noted(tracer, fresh(inputs)), tracer.leaves)
            graph = Graph(*made, tracer.spec, tracer.used, tracer)
            if what := watch.rewritten([*graph.parameters, *graph.closed]):
                raise Untraceable(
                    f"{what} changes whenever the function runs: pass it as a tensor argument, and draw with torch"
                )
            if verify:
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
