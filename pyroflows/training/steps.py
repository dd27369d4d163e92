"""Gradient ascent on an ELBO estimate, plain or as one graph, on parameters that lie in one vector."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..compile import Untraceable, capture, fuse, lay_flat
from ..compile.adam import Adam
from ..compile.cuda_graph import AUTOMATIC
from .history import History
from .safe_step import SafeStep


class Trainer:
    """Adam up an ELBO, by safe steps.

    Args:
        parameters: what is trained, in place.
        lr: learning rate after the warm-up.
        warmup: steps over which the rate rises from zero.
        clip: largest norm of the whole gradient.
        average: decay of the moving average of the parameters; 0 keeps the last iterate.
        history: where steps are recorded.

    Attributes:
        safe: the :class:`SafeStep`: schedule, average and counts.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        warmup: int = 100,
        clip: float = 100.0,
        average: float = 0.995,
        history: History | None = None,
    ) -> None:
        self._given = list(parameters)
        self.parameters = _flatten(self._given)
        self.safe = SafeStep(self.parameters, lr=lr, warmup=warmup, clip=clip, average=average, noun="ELBO")
        self.history = History() if history is None else history
        self._graph = None
        self._start()

    def restart(self, lr: float) -> None:
        """Starts anew from where the parameters are, with another learning rate; a graph is kept."""
        self.safe.restart(lr)
        self._start()

    def _start(self) -> None:
        # Not torch's Adam, whose first use imports TorchDynamo, a second of it.
        self.moments = [Adam().start(p.detach()) for p in self.parameters]
        self._tensors: list[Tensor] | None = None  # the state of a graph

    def trace(self, log_weights: Callable[[], Tensor], compile: bool = False) -> None:
        """Makes the gradient one graph: later steps replay it and do not call ``log_weights`` any more.

        Args:
            log_weights: as for :meth:`step`.
            compile: also compile the graph, which takes seconds to minutes.

        Raises:
            Untraceable: if a graph would not be right; the steps can go on without.
        """
        if len(self.parameters) != 1:
            raise Untraceable("the parameters differ in dtype or device")

        def loss() -> tuple[Tensor, Tensor]:
            weights = log_weights()
            return -weights.mean(), weights

        graph = fuse(capture(loss, parameters=self._given, has_aux=True), self._given, self._update, self._state())
        graph.mode = AUTOMATIC
        self._graph = graph.compile([]) if compile else graph

    def _state(self) -> list[Tensor]:
        """All that a traced step changes, and the step's rate and weight in the average."""
        flat = self.parameters[0].detach()
        control = flat.new_tensor([self.safe.rate, self.safe.weight])
        return [flat, *self.moments[0], self.safe.mean[0], control]

    def _update(self, value: tuple[Tensor, Tensor], slope: Tensor, state: list[Tensor]) -> list[Tensor]:
        """What :meth:`step` does after the gradient, as a function of tensors; a bad step leaves the state."""
        (_, weights), (flat, *moments, mean, control) = value, state
        elbo = weights.mean()
        good, scale = self.safe.judged(elbo, slope.norm())
        new = Adam()(flat, slope * scale, control[:1], moments)
        new.append(mean + (new[0] - mean) * control[1])
        kept = [torch.where(good, after, before) for after, before in zip(new, state, strict=False)]
        return [*kept, control, torch.stack([good.to(elbo), elbo, _spread(weights)])]

    @property
    def operations(self) -> int:
        """Operations of a traced step, 0 before :meth:`trace`."""
        return len(self._graph.module.graph.nodes) if self._graph else 0

    def step(self, log_weights: Callable[[], Tensor]) -> None:
        """One step up the mean of ``log_weights()``, the particles' ``log p - log q``."""
        good, value, spread = self._replay() if self._graph else self._plain(log_weights)
        self.history.note(*((value, spread) if good else (math.nan, math.nan)))
        self.history.bad_steps += not good
        self.safe.count(good, value)

    def _replay(self) -> list[float]:
        """A step of the graph; returns whether it was good, the ELBO, and the spread of the weights."""
        self.safe.done += 1
        if self._tensors is None:
            self._tensors = self._state()
        control = self._tensors[-1]
        control.copy_(control.new_tensor([self.safe.rate, self.safe.weight]))
        return self._graph.run(*self._tensors, *self._graph.closed)[0].tolist()

    def _plain(self, log_weights: Callable[[], Tensor]) -> list[float]:
        """The same without a graph."""
        for flat in self.parameters:
            flat.grad.zero_()
        weights = log_weights()
        elbo = weights.mean()
        (-elbo).backward()
        return self.safe.make(elbo, self._descend, _spread(weights))

    @torch.no_grad()
    def _descend(self) -> None:
        for flat, moments in zip(self.parameters, self.moments, strict=True):
            new = Adam()(flat, flat.grad, flat.new_tensor([self.safe.rate]), moments)
            for old, value in zip([flat, *moments], new, strict=True):
                old.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """All that a step changes but the history."""
        flats = [flat.detach() for flat in self.parameters]
        return {"parameters": flats, "moments": self.moments, "safe": self.safe.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; tensors keep their place in memory, where a graph finds them."""
        self.safe.load_state_dict(state["safe"])
        for own, saved in ((self.parameters, state["parameters"]), *zip(self.moments, state["moments"], strict=True)):
            for tensor, value in zip(own, saved, strict=True):
                tensor.copy_(value)

    @torch.no_grad()
    def settle(self) -> None:
        """Puts the averaged iterates into the parameters."""
        if self.safe.average:
            for flat, mean in zip(self.parameters, self.safe.mean, strict=True):
                flat.copy_(mean)

    @torch.no_grad()
    def finish(self) -> None:
        """Settles, and gives each parameter memory of its own again."""
        self.settle()
        for parameter in self._given:
            parameter.data, parameter.grad = parameter.detach().clone(), None


def _spread(weights: Tensor) -> Tensor:
    return weights.std() if len(weights) > 1 else weights.new_tensor(math.nan)


def _flatten(parameters: list[Tensor]) -> list[Tensor]:
    """Makes the parameters and their gradients views of one vector for each dtype and device, and returns these.

    An optimizer step is then a few operations however many parameters there are.
    """
    groups: dict[tuple, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    flats = []
    for group in groups.values():
        flat = lay_flat(group).requires_grad_()
        flat.grad = torch.zeros_like(flat)
        for p, grad in zip(group, flat.grad.split([p.numel() for p in group]), strict=True):
            p.grad = grad.view(p.shape)
        flats.append(flat)
    return flats
