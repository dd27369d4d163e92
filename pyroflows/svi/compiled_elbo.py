"""An ELBO for any Pyro model and guide whose steps are one graph: traced once, then replayed or compiled."""

import math
import warnings
from collections.abc import Callable, Hashable
from types import MethodType

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from ..arguments import check_counts
from ..compile import Graph, Untraceable, capture
from ..compile.audit import EVERY
from ..compile.cuda_graph import CUDA_GRAPHS
from ..compile.kept import Graphs, Kept
from ..compile.signature import functions_in, signature
from .particles import Particles
from .stored import Stored, accumulate, check_handlers, checked

# Of torch.compile, which takes seconds to import the names.
MODES = "default", *CUDA_GRAPHS, "max-autotune-no-cudagraphs", "lite"


class CompiledTrace_ELBO(Trace_ELBO):
    """``Trace_ELBO`` without Python's and Pyro's overhead: the same estimate, as one graph that is reused.

    Loss and gradients are traced once for each signature (shapes, dtypes and devices of tensors, values of other
    arguments, gradients on or off), then replayed; with ``compile`` they are also compiled. Particles are batched
    by ``torch.func.vmap``, so a model need not be vectorised; they share the indices of subsampled plates, which
    are drawn anew at every step. Pass data that changes as tensor arguments: other values of the same shapes need
    no new trace. The first step runs the model several times, under Pyro's validation; later ones run no Python, so
    that they validate nothing. What may change between steps:

    - Tensors among arguments, parameters and buffers are read anew at each step.
    - Modes, identities of parameters and buffers, ``requires_grad``, hooks, and plain numbers, strings and enums that
      the user's own code names are compared at each step; a change means a new trace.
    - All else is audited: at uses 2, 4, 8, ..., 256 of a graph, and then at every 256th, model and guide themselves are
      run on the step's own noise as well. Where loss or gradients differ, a warning says since when the graph may have
      been wrong, and the step is traced anew; after the third time it is that of the plain ELBO.
    - :meth:`retrace` forgets all graphs by hand.

    What cannot be traced (branches on values, latents that are not reparameterised, statistics and counters updated
    in place, random numbers of Python or NumPy) runs as plain ``Trace_ELBO``, after one warning.

    Args:
        num_particles: draws behind each estimate.
        max_plate_nesting: as in ``Trace_ELBO``, for steps that run as that does; so are all others up to ``compile``,
            in the same order.
        max_iarange_nesting: its old name.
        vectorize_particles: batch the particles in such plain steps, too; traced ones always are.
        strict_enumeration_warning: has no meaning here, as in ``Trace_ELBO``.
        ignore_jit_warnings: likewise.
        jit_options: likewise.
        retain_graph: keep the graph of the arguments, and that of plain steps, after ``loss_and_grads``.
        tail_adaptive_beta: has no meaning here.
        compile: compile with inductor, which takes seconds to minutes once; otherwise replay the traced graph.
        strict: raise where the plain ELBO would be used instead.
        mode: as in ``torch.compile``; ``"reduce-overhead"`` uses CUDA graphs on a GPU, compiled or not.
        cache_size: how many signatures are kept.
        audit: uses of a graph between audits, once there were some at 2, 4, 8, ...; 0: none.

    Raises:
        Untraceable: at a step, if ``strict`` and the model or guide cannot be traced.
        ValueError: if ``mode`` is not one of torch's.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        >>> elbo = CompiledTrace_ELBO(num_particles=8, compile=False)
        >>> svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), elbo)
        >>> svi.step(torch.tensor(1.0)) > 0
        True
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        max_iarange_nesting: float | None = None,
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        ignore_jit_warnings: bool = False,
        jit_options: dict | None = None,
        retain_graph: bool | None = None,
        tail_adaptive_beta: float = -1.0,
        *,
        compile: bool = True,
        strict: bool = False,
        mode: str | None = None,
        cache_size: int = 8,
        audit: int = EVERY,
    ) -> None:
        counts = {"num_particles": num_particles, "cache_size": cache_size, "audit": audit}
        check_counts("CompiledTrace_ELBO", {"audit": 0}, **counts)
        if mode not in (None, *MODES):
            raise ValueError(f"CompiledTrace_ELBO expected mode to be None or one of {', '.join(MODES)}, got {mode!r}")
        super().__init__(
            num_particles,
            max_plate_nesting,
            max_iarange_nesting,
            vectorize_particles,
            strict_enumeration_warning,
            ignore_jit_warnings,
            jit_options,
            retain_graph,
            tail_adaptive_beta,
        )
        self.compile, self.strict, self.mode, self.cache_size, self.audit = compile, strict, mode, cache_size, audit
        self._start()

    def _start(self) -> None:
        self._warned: set[str] = set()
        self.traces = 0
        self.retrace()

    def retrace(self) -> None:
        """Forgets all graphs, so that the next step of each signature is traced anew."""
        self._graphs = Graphs(self.cache_size, self.audit, self._found, self._refuse)

    def __getstate__(self) -> dict:
        """Without the graphs."""
        kept = vars(self).keys() - {"_graphs", "_warned", "traces"}
        return {key: getattr(self, key) for key in kept}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()

    def loss(self, model: Callable, guide: Callable, *args: object, **kwargs: object) -> float:
        """The estimate of the negative ELBO, in nats."""
        with torch.inference_mode(False), torch.no_grad():
            step, inputs = self._step(model, guide, args, kwargs)
            if step is None:
                return super().loss(model, guide, *args, **kwargs)
            return checked(self._ready(step, inputs)(*inputs)[0].item())

    def loss_and_grads(self, model: Callable, guide: Callable, *args: object, **kwargs: object) -> float:
        """The estimate of the negative ELBO, in nats; adds its gradients to the parameters' ``grad``."""
        step, inputs = self._step(model, guide, args, kwargs)
        if step is None:
            return super().loss_and_grads(model, guide, *args, **kwargs)
        graph = self._ready(step, inputs)
        if any(t.requires_grad for t in inputs):
            loss = graph.loss(*inputs)
            loss.backward(retain_graph=self.retain_graph)
        else:
            loss, gradients = graph(*inputs)
            accumulate(graph.parameters, gradients)
        return checked(loss.item())

    def differentiable_loss(self, model: Callable, guide: Callable, *args: object, **kwargs: object) -> Tensor:
        """The estimate as a scalar tensor, differentiable once by parameters and arguments."""
        step, inputs = self._step(model, guide, args, kwargs)
        if step is None:
            return super().differentiable_loss(model, guide, *args, **kwargs)
        return self._ready(step, inputs).loss(*inputs)

    def _step(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Kept | None, list[Tensor]]:
        """The step for this signature, made where there is none, and its inputs; None means the plain ELBO."""
        inputs: list[Tensor] = []
        try:
            check_handlers()
            settings = self.num_particles, torch.is_grad_enabled(), torch.get_default_dtype(), _autocast_types()
            key = (_identity(model), _identity(guide), settings, signature((args, kwargs), inputs))
        except Untraceable as error:
            return self._refuse(error), inputs
        roots = (model, guide, *functions_in((args, kwargs)))

        def make() -> tuple[Graph, Stored]:
            particles = Particles(model, guide, args, kwargs, self.num_particles)
            self.traces += 1
            graph = capture(particles, inputs, grad=torch.is_grad_enabled(), roots=roots)
            particles.forget_tensors()
            return graph, Stored(particles.params)

        step = self._graphs.find(key, inputs, make, roots)
        if step is not None:
            step.held.announce()
        return step, inputs

    def _ready(self, step: Kept, inputs: list[Tensor]) -> Graph:
        """The graph of a step, compiled if need be; what only a larger graph uses is never compiled."""
        if not step.ready:
            step.ready = True
            self._compiled(step.graph, inputs)
        return step.graph

    def _compiled(self, graph: Graph, inputs: list[Tensor]) -> Graph:
        graph.mode = self.mode
        if not self.compile:
            return graph
        try:
            return graph.compile(inputs)
        except Exception as error:  # whatever a compiler raises, the graph itself is right
            self._warn(f"CompiledTrace_ELBO replays its graph uncompiled, since the compiler failed: {error}")
            return graph

    def _refuse(self, error: Untraceable) -> None:
        if self.strict:
            raise error
        self._warn(f"CompiledTrace_ELBO runs as plain Trace_ELBO, since it cannot be traced: {error}")

    def _found(self, message: str) -> None:
        self._warn(f"CompiledTrace_ELBO: {message}")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=7)


def _identity(function: Callable) -> Hashable:
    """The same for the same function or module, which graphs keep alive; a method is made anew at each access."""
    if isinstance(function, MethodType):
        return function.__func__, id(function.__self__)
    return id(function)


def _autocast_types() -> tuple:
    """The types that autocast uses now."""
    if not torch._C._is_any_autocast_enabled():
        return ()
    return tuple(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) for d in ("cpu", "cuda"))
