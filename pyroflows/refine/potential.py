"""The log joint in the base space of a flow as a potential energy whose gradient costs no Python."""

import time
from typing import Any

import torch
from torch import Tensor

from ..guides import AutoFlow
from ..infer import Graph, LogJoint, Untraceable, capture

# Compiling takes some 15 to 40 seconds, and makes a gradient about ten times as fast.
COMPILE_FROM = 30.0


class Potential:
    """Minus the log density of the posterior, up to a constant, as a function of base vectors ``{"x": (D,)}``.

    Value and gradient are traced to one graph, which is replayed or compiled; where that cannot be they are computed
    anew.

    Args:
        guide: its transform maps the base space to the unconstrained latents.
        log_joint: the model's log joint density.
        calls: how many gradients will be taken, about.
        compile: None compiles where so many replays would take more than half a minute, True and False as they say.
    """

    def __init__(self, guide: AutoFlow, log_joint: LogJoint, calls: int = 0, compile: bool | None = None) -> None:
        self.guide, self.log_joint = guide, log_joint
        #: How gradients are taken: ``"plain"``, ``"traced"`` or ``"compiled"``.
        self.speed = "plain"
        start = guide.get_posterior().base.sample().requires_grad_()
        try:
            self.graph: Graph | None = capture(self.energy, [start], parameters=[])
        except Untraceable:
            self.graph = None
            return
        self.speed = "traced"
        if compile or (compile is None and calls * self._seconds(start) > COMPILE_FROM):
            self._compile(start)

    def _seconds(self, start: Tensor) -> float:
        begin = time.perf_counter()
        for _ in range(10):
            self.graph(start)
        return (time.perf_counter() - begin) / 10

    def _compile(self, start: Tensor) -> None:
        try:
            self.graph.compile([start])
        except Exception:  # compilers fail in many ways, for one where none is installed; a replay is as right
            return
        self.speed = "compiled"

    def energy(self, x: Tensor) -> Tensor:
        """The potential energy at ``x`` of shape ``(D,)``, run through the flow and the model."""
        z, ladj = self.guide.transform.call_and_ladj(x)
        return -(self.log_joint(z) + ladj)

    def __call__(self, state: dict[str, Tensor]) -> Tensor:
        """The same for Pyro's HMC and NUTS."""
        return self.energy(state["x"]) if self.graph is None else _Replayed.apply(state["x"], self.graph)


class _Replayed(torch.autograd.Function):
    """The energy by a graph that gives its gradient in the same run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Graph) -> Tensor:
        energy, (gradient,) = graph(x)
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope * ctx.saved_tensors[0], None
