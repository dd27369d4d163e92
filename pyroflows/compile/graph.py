"""A graph of a function of tensors and its gradients: replayed, compiled, audited."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from .audit import difference, trained
from .changes import Watch
from .compare import close, coarsest, copies
from .cuda_graph import launched
from .errors import reason
from .inductor import compiled
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
        watch: what that reads, compared at each use.

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
        watch: Watch | None = None,
    ) -> None:
        self.module, self.parameters, self.closed = module, parameters, closed
        self.spec, self.used, self._function, self._watch = spec, used, function, watch
        self.mode: str | None = None
        self._facts = self._read()
        self._run: Callable | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Any, list[Tensor | None]]:
        """What the function returns, and the gradients of its loss (None: the loss does not depend on it).

        Gradients are by each parameter, then by each input that required them when traced.
        """
        found = self.run(*self.parameters, *self.closed, *inputs)
        count = self.spec.num_leaves
        gradients = iter(found[count:])
        value = pytree.tree_unflatten(list(found[:count]), self.spec)
        return value, [next(gradients) if used else None for used in self.used]

    def loss(self, *inputs: Tensor) -> Tensor:
        """The loss as a tensor that is differentiable once, by parameters and inputs."""
        return _Loss.apply(self, len(inputs), *inputs, *self.parameters)

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

    def changed(self) -> str | None:
        """What is not as it was when traced, of what is compared at each use; None: nothing."""
        if self._facts != self._read():
            return "the shape, dtype, device or hooks of a tensor"
        return self._watch and self._watch.changed()

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


class _Loss(torch.autograd.Function):
    """The loss of a graph forward; backward the gradients that came with it."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, count: int, *tensors: Tensor) -> Tensor:
        loss, gradients = graph(*tensors[:count])
        own, rest = gradients[: len(graph.parameters)], iter(gradients[len(graph.parameters) :])
        ctx.gradients = [*(next(rest) if t.requires_grad else None for t in tensors[:count]), *own]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple:
        return None, None, *(g if g is None else g * slope for g in ctx.gradients)
