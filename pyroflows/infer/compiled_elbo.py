"""An ELBO for any Pyro model and guide whose steps are one graph: traced once, then replayed or compiled."""

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK, apply_stack
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints, transform_to

from ..numeric import check_counts
from .cuda_graph import CUDA_GRAPHS
from .graph import Graph, capture
from .guard import Untraceable
from .particles import Particles
from .signature import signature
from .watch import Watch

# A graph is traced anew when what it closed over changes; after so many times the plain ELBO is cheaper.
RETRACES = 5
# Of torch.compile, which takes seconds to import the names.
MODES = "default", *CUDA_GRAPHS, "max-autotune-no-cudagraphs", "lite"


class CompiledTrace_ELBO(Trace_ELBO):
    """``Trace_ELBO`` without Python's and Pyro's overhead: the same estimate, as one graph that is reused.

    Loss and gradients are traced once for each signature (shapes, dtypes and devices of tensors, values of other
    arguments, gradients on or off), then replayed; with ``compile`` they are also compiled. Particles are batched
    by ``torch.func.vmap``, so a model need not be vectorised; they share the indices of subsampled plates, which
    are drawn anew at every step. Pass data that changes as tensor arguments: other values of the same shapes need
    no new trace. Tensors that the model closes over are read anew at each step; modes, attributes and closures
    are watched, and a change means a new trace.

    What cannot be traced (branches on values, latents that are not reparameterised, statistics updated in place)
    runs as plain ``Trace_ELBO``, after one warning.

    Args:
        num_particles: draws behind each estimate.
        compile: compile with inductor, which takes seconds to minutes once; otherwise replay the traced graph.
        strict: raise where the plain ELBO would be used instead.
        mode: as in ``torch.compile``; ``"reduce-overhead"`` uses CUDA graphs on a GPU, compiled or not.
        cache_size: how many signatures are kept.

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
        *,
        compile: bool = True,
        strict: bool = False,
        mode: str | None = None,
        cache_size: int = 8,
    ) -> None:
        check_counts("CompiledTrace_ELBO", {}, num_particles=num_particles, cache_size=cache_size)
        if mode not in (None, *MODES):
            raise ValueError(f"CompiledTrace_ELBO expected mode to be None or one of {', '.join(MODES)}, got {mode!r}")
        super().__init__(num_particles=num_particles)
        self.compile, self.strict, self.mode, self.cache_size = compile, strict, mode, cache_size
        self._forget()

    def _forget(self) -> None:
        self._cache: OrderedDict[tuple, _Step | _Plain] = OrderedDict()
        self._warned: set[str] = set()
        self.traces = 0

    def __getstate__(self) -> dict:
        """Without the graphs."""
        kept = vars(self).keys() - {"_cache", "_warned", "traces"}
        return {key: getattr(self, key) for key in kept}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._forget()

    def loss(self, model: Callable, guide: Callable, *args: object, **kwargs: object) -> float:
        """The estimate of the negative ELBO, in nats."""
        with torch.no_grad():
            step, inputs = self._step(model, guide, args, kwargs)
            if step is None:
                return super().loss(model, guide, *args, **kwargs)
            return _checked(self._ready(step, inputs)(*inputs)[0].item())

    def loss_and_grads(self, model: Callable, guide: Callable, *args: object, **kwargs: object) -> float:
        """The estimate of the negative ELBO, in nats; adds its gradients to the parameters' ``grad``."""
        step, inputs = self._step(model, guide, args, kwargs)
        if step is None:
            return super().loss_and_grads(model, guide, *args, **kwargs)
        self._ready(step, inputs)
        if any(t.requires_grad for t in inputs):
            loss = _Replay.apply(step, len(inputs), *inputs, *step.graph.parameters)
            loss.backward()
        else:
            loss, gradients = step.graph(*inputs)
            _accumulate(step.graph.parameters, gradients)
        return _checked(loss.item())

    def differentiable_loss(self, model: Callable, guide: Callable, *args: object, **kwargs: object) -> Tensor:
        """The estimate as a scalar tensor, differentiable once by parameters and arguments."""
        step, inputs = self._step(model, guide, args, kwargs)
        if step is None:
            return super().differentiable_loss(model, guide, *args, **kwargs)
        self._ready(step, inputs)
        return _Replay.apply(step, len(inputs), *inputs, *step.graph.parameters)

    def _step(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple["_Step | None", list[Tensor]]:
        """The step for this signature, made where there is none, and its inputs; None means the plain ELBO."""
        inputs: list[Tensor] = []
        try:
            _check_context()
            settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled()
            key = (_Same(model), _Same(guide), settings, signature((args, kwargs), inputs))
        except Untraceable as error:
            return self._refuse(error), inputs
        kept = self._cache.get(key)
        if kept is None or not kept.current:
            kept = self._cache[key] = self._make(model, guide, args, kwargs, inputs, kept)
        self._cache.move_to_end(key)
        if len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return (kept.announce() if isinstance(kept, _Step) else None), inputs

    def _make(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict, inputs: list[Tensor], old: "_Step | None"
    ) -> "_Step | _Plain":
        """Traces a step in the place of an old one."""
        retraces, change = (old.retraces + 1, old.watch.changed()) if old and old.watch.changed() else (0, None)
        try:
            if retraces > RETRACES:
                raise Untraceable(f"{change} changes from step to step: pass it as a tensor argument")
            particles = Particles(model, guide, args, kwargs, self.num_particles)
            self.traces += 1
            graph = capture(particles, inputs, grad=torch.is_grad_enabled())
            return _Step(graph, particles.params, Watch(model, guide), retraces)
        except Untraceable as error:
            self._refuse(error)
            return _Plain()

    def _ready(self, step: "_Step", inputs: list[Tensor]) -> Graph:
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

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=6)


@dataclass(eq=False)
class _Step:
    """A graph with what decides whether it is still right.

    Args:
        graph: of the loss and its gradients.
        params: Pyro's messages of the parameters.
        watch: what model and guide reach.
        retraces: how often a change of that has made a new trace.
        ready: whether the graph has been compiled, if it is to be.
    """

    graph: Graph
    params: list[dict]
    watch: Watch
    retraces: int
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

    def announce(self) -> "_Step":
        """Shows the parameters to the handlers around, as model and guide would."""
        for node, leaf in zip(self.params, self.leaves, strict=True) if _PYRO_STACK else ():
            with torch.no_grad():
                value = transform_to(node["kwargs"].get("constraint", constraints.real))(leaf)
            value.unconstrained = weakref.ref(leaf)
            apply_stack({**node, "value": value, "done": True, "stop": False, "continuation": None})
        return self


class _Plain:
    """Stands where a signature cannot be traced."""

    current = True


class _Same:
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


class _Replay(torch.autograd.Function):
    """The loss of a step, with the gradients that its graph has already computed."""

    @staticmethod
    def forward(ctx: Any, step: _Step, count: int, *tensors: Tensor) -> Tensor:
        loss, gradients = step.graph(*tensors[:count])
        rest = iter(gradients[len(step.graph.parameters) :])
        by_input = [next(rest) if t.requires_grad else None for t in tensors[:count]]
        ctx.gradients = [g if g is None else g.clone() for g in (*by_input, *gradients[: len(step.graph.parameters)])]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple:
        return None, None, *(g if g is None else g * slope for g in ctx.gradients)


def _accumulate(leaves: list[Tensor], gradients: list[Tensor | None]) -> None:
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


def _check_context() -> None:
    """Handlers around a step change the sites within, unless they only look."""
    for handler in _PYRO_STACK:
        if not isinstance(handler, TraceMessenger | BlockMessenger):
            raise Untraceable(f"the step runs inside {type(handler).__name__}: apply it to the model and the guide")


def _checked(loss: float) -> float:
    warn_if_nan(loss, "loss")
    return loss
