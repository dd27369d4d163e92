"""Gradient ascent on an ELBO estimate that does not break: schedule, clipping, averaging, bad steps dropped."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..compile import Untraceable, capture, fuse, lay_flat
from ..compile.adam import Adam
from ..compile.cuda_graph import AUTOMATIC
from .average import averaging_weight
from .history import History

# A step is bad when its loss or gradient is not finite; so many in a row, or this share of all, is an error.
BAD_IN_A_ROW, BAD_SHARE = 50, 0.2


class Trainer:
    """Adam with warm-up and linear decay, clipped gradients, an average of the iterates, and dropped bad steps.

    Args:
        parameters: what is trained, in place.
        lr: learning rate after the warm-up.
        warmup: steps over which the rate rises from zero.
        clip: largest norm of the whole gradient.
        average: decay of the moving average of the parameters; 0 keeps the last iterate.
        history: where steps are recorded.
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
        self.warmup, self.clip, self.average = warmup, clip, average
        self.history = History() if history is None else history
        self._graph = None
        self.restart(lr)

    def restart(self, lr: float) -> None:
        """Starts anew from where the parameters are, with another learning rate; a graph is kept."""
        self.lr = lr
        # Not torch's Adam, whose first use imports TorchDynamo, a second of it.
        self.moments = [Adam().start(p.detach()) for p in self.parameters]
        self.mean = [p.detach().clone() for p in self.parameters]
        self.done, self._bad, self._bad_run, self._decay = 0, 0, 0, (math.inf, 1)
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
        control = flat.new_tensor([self.rate, self._weight()])
        return [flat, *self.moments[0], self.mean[0], control]

    def _update(self, value: tuple[Tensor, Tensor], slope: Tensor, state: list[Tensor]) -> list[Tensor]:
        """What :meth:`step` does after the gradient, as a function of tensors; a bad step leaves the state."""
        (_, weights), (flat, *moments, mean, control) = value, state
        elbo, norm = weights.mean(), slope.norm()
        slope = slope * (self.clip / (norm + 1e-6)).clamp(max=1)
        new = Adam()(flat, slope, control[:1], moments)
        new.append(mean + (new[0] - mean) * control[1])
        good = elbo.isfinite() & norm.isfinite()
        kept = [torch.where(good, after, before) for after, before in zip(new, state, strict=False)]
        return [*kept, control, torch.stack([elbo, _spread(weights), norm])]

    @property
    def operations(self) -> int:
        """Operations of a traced step, 0 before :meth:`trace`."""
        return len(self._graph.module.graph.nodes) if self._graph else 0

    def decay_over(self, steps: int) -> None:
        """Lowers the rate linearly to one percent over the next ``steps``, unless it is falling already."""
        if self._decay[0] == math.inf:
            self._decay = (self.done, steps)

    @property
    def left(self) -> float:
        """Steps until the rate has fallen, infinite before :meth:`decay_over`."""
        return sum(self._decay) - self.done

    @property
    def rate(self) -> float:
        """The learning rate of the step just done."""
        start, length = self._decay
        fall = 1 - 0.99 * min(max(self.done - start, 0) / length, 1)
        return self.lr * min(1.0, self.done / self.warmup) * fall

    def step(self, log_weights: Callable[[], Tensor]) -> None:
        """One step up the mean of ``log_weights()``, the particles' ``log p - log q``."""
        self.done += 1
        value, spread, norm = self._replay() if self._graph else self._plain(log_weights)
        if not (math.isfinite(value) and math.isfinite(norm)):
            return self._drop(value)
        self._bad_run = 0
        self.history.elbo.append(value)
        self.history.log_weight_sd.append(spread)

    def _replay(self) -> list[float]:
        """A step of the graph; returns the ELBO, the spread of the weights and the norm of the gradient."""
        if self._tensors is None:
            self._tensors = self._state()
        control = self._tensors[-1]
        control.copy_(control.new_tensor([self.rate, self._weight()]))
        return self._graph.run(*self._tensors, *self._graph.closed)[0].tolist()

    def _plain(self, log_weights: Callable[[], Tensor]) -> list[float]:
        """The same without a graph."""
        for flat in self.parameters:
            flat.grad.zero_()
        weights = log_weights()
        elbo = weights.mean()
        (-elbo).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        found = torch.stack([elbo, _spread(weights), norm]).detach().tolist()
        if math.isfinite(found[0]) and math.isfinite(found[2]):
            self._descend()
            self._average()
        return found

    @torch.no_grad()
    def _descend(self) -> None:
        for flat, moments in zip(self.parameters, self.moments, strict=True):
            new = Adam()(flat, flat.grad, flat.new_tensor([self.rate]), moments)
            for old, value in zip([flat, *moments], new, strict=True):
                old.copy_(value)

    @torch.no_grad()
    def settle(self) -> None:
        """Puts the averaged iterates into the parameters."""
        if self.average:
            for flat, mean in zip(self.parameters, self.mean, strict=True):
                flat.copy_(mean)

    @torch.no_grad()
    def finish(self) -> None:
        """Settles, and gives each parameter memory of its own again."""
        self.settle()
        for parameter in self._given:
            parameter.data, parameter.grad = parameter.detach().clone(), None

    @torch.no_grad()
    def _average(self) -> None:
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], self._weight())

    def _weight(self) -> float:
        return averaging_weight(self.average, self.done)

    def _drop(self, value: float) -> None:
        self.history.elbo.append(math.nan)
        self.history.log_weight_sd.append(math.nan)
        self.history.bad_steps += 1
        self._bad += 1
        self._bad_run += 1
        if self._bad_run >= BAD_IN_A_ROW or self._bad > max(BAD_IN_A_ROW, BAD_SHARE * self.done):
            raise FloatingPointError(
                f"expected finite ELBO and gradients, got {self._bad} bad steps of {self.done} (the last "
                f"ELBO was {value}): try a smaller lr, double precision, or look for a log density that is infinite or "
                f"NaN where the prior is not"
            )


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
