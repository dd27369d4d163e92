"""Pyro's SVI whose step is one graph: loss, gradients and Adam."""

import warnings
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from ..compile import Graph, Untraceable, fuse
from ..compile.audit import Audit
from .compiled_elbo import CompiledTrace_ELBO
from .optimizer_state import FlatState
from .stored import checked


class CompiledSVI(SVI):
    """Pyro's ``SVI`` with the whole step in one graph: loss, gradients and optimizer.

    The parameters become views of one vector, and stay where model, guide and Pyro's store have them: between steps
    they can be read and changed as ever. The optimizer's own objects hold the moments, so its ``get_state`` and
    ``save`` work, and another ``SVI`` can go on with it. Several signatures, new data of the same shapes, modes and
    attributes that change are treated as by :class:`CompiledTrace_ELBO`.

    The optimizers are ``pyro.optim.Adam``, ``AdamW`` and ``ClippedAdam``, whose learning rate may change or differ
    between parameters; other options must be the same for all. With others, with hooks, where gradients lie in ``grad``
    already, and where the step cannot be traced, steps are those of ``SVI`` with the same loss, after one warning for
    each reason.

    Args:
        model: a Pyro model.
        guide: its guide.
        optim: one of the optimizers above.
        loss: a ``CompiledTrace_ELBO``, which says how many particles there are and whether to compile; one particle
            by default.

    Raises:
        TypeError: if the loss is of another kind.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        >>> pyro.clear_param_store()
        >>> elbo = CompiledTrace_ELBO(num_particles=8, compile=False)
        >>> svi = CompiledSVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), elbo)
        >>> losses = svi.run(200, torch.tensor(1.0))
        >>> losses.shape, bool(losses[0] > losses[-1])
        (torch.Size([200]), True)
    """

    def __init__(
        self, model: Callable, guide: Callable, optim: PyroOptim, loss: CompiledTrace_ELBO | None = None
    ) -> None:
        loss = CompiledTrace_ELBO() if loss is None else loss
        if not isinstance(loss, CompiledTrace_ELBO):
            raise TypeError(f"CompiledSVI expected a CompiledTrace_ELBO as loss, got {type(loss).__name__}: use SVI")
        super().__init__(model, guide, optim, loss)
        self.elbo, self._warned = loss, set()
        self._state: FlatState | None = None
        self._kept: WeakKeyDictionary[object, tuple[list[Tensor], list[Tensor], dict]] = WeakKeyDictionary()

    def step(self, *args: object, **kwargs: object) -> float:
        """One step; returns the estimate of the negative ELBO before it, in nats."""
        prepared = self._prepare(args, kwargs)
        if prepared is None:
            return super().step(*args, **kwargs)
        return checked(prepared[0]().item())

    def run(self, steps: int, *args: object, **kwargs: object) -> Tensor:
        """So many steps with the same arguments; returns their losses, which are waited for once, at the end.

        Faster than as many calls of :meth:`step`: whether the graph still fits is checked once, and when it
        is audited.
        """
        losses: list[Tensor] = []
        silent: list[Tensor] = []  # plain steps announce a loss that is not finite themselves
        while len(losses) < steps:
            prepared = self._prepare(args, kwargs)
            if prepared is None:
                losses.append(torch.tensor(super().step(*args, **kwargs)))
                continue
            step, audit = prepared
            made = [step() for _ in range(1 + audit.skip(steps - len(losses) - 1))]
            losses += made
            silent += made
        bad = int((~torch.stack(silent).isfinite()).sum()) if silent else 0
        if bad:
            warnings.warn(f"the loss was not finite in {bad} of {steps} steps", stacklevel=2)
        return torch.stack(losses) if losses else torch.empty(0)

    def _prepare(self, args: tuple, kwargs: dict) -> tuple[Callable[[], Tensor], Audit] | None:
        """What makes a step until anything changes but values and rates, and when it is audited; None: a plain step."""
        if self.loss_and_grads != self.elbo.loss_and_grads:
            return self._plain()
        step, inputs = self.elbo._step(self.model, self.guide, args, kwargs)
        if step is None or any(t.requires_grad for t in inputs):
            return self._plain()
        if step not in self._kept:
            self._kept[step] = *_sorted(step.held.leaves, step.graph), {}
        trained, idle, graphs = self._kept[step]
        # What has had a gradient in other steps has one of zeros in this one, and moves by its momentum.
        leaves = trained + [p for p in idle if p.grad is not None]
        try:
            state = self._state
            if state is None or not state.fits(self.optim, leaves):
                state = self._state = FlatState(self.optim, leaves)
            state.set_rates()
            graph = graphs.get(state.kind)
            if graph is None:
                graph = graphs[state.kind] = self._fuse(step.graph, state, inputs)
        except Untraceable as error:
            return self._refuse(error)
        return partial(_advance, state, graph, inputs), step.audit

    def _fuse(self, graph: Graph, state: FlatState, inputs: list[Tensor]) -> Graph:
        adam, owner = state.adam, state.owner

        def update(loss: Tensor, slope: Tensor, tensors: list[Tensor]) -> list[Tensor]:
            flat, *moments, lr = tensors
            return [*adam(flat, slope, lr, moments, owner), lr, loss]

        return self.elbo._compiled(fuse(graph, state.leaves, update, state.tensors, inputs), inputs)

    def _refuse(self, error: Untraceable) -> None:
        if self.elbo.strict:
            raise error
        if str(error) not in self._warned:
            self._warned.add(str(error))
            warnings.warn(f"CompiledSVI steps as SVI does, since {error}", stacklevel=4)
        self._plain()

    def _plain(self) -> None:
        """A plain step follows, after which the state has to be read anew."""
        self._state = None


def _sorted(leaves: list[Tensor], graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
    """The leaves that the loss depends on, and the others."""
    used = {id(p) for p, used in zip(graph.parameters, graph.used, strict=False) if used}
    apart = list({id(p): p for p in leaves}.values())
    return [p for p in apart if id(p) in used], [p for p in apart if id(p) not in used]


def _advance(state: FlatState, graph: Graph, inputs: list[Tensor]) -> Tensor:
    """One step; returns its loss."""
    state.decay()
    loss = graph.run(*state.tensors, *graph.closed, *inputs)[0]
    state.stepped()
    return loss
