"""The log joint in the base space of a flow as a potential energy whose gradient costs no Python."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from torch import Tensor

from ...compile import TracedDensity, Untraceable
from ...guides import AutoFlow
from ...model import AllRows, LogJoint
from ...training.work import work_of

# Compiling takes some 15 to 40 seconds, and makes a gradient about ten times as fast. Replays take half as long as
# their operations are priced at.
COMPILE_FROM = 60.0


class Potential:
    """Minus the log density of the posterior, up to a constant, as a function of base vectors ``{"x": (D,)}``.

    Value and gradient are traced to one graph, which is replayed or compiled; where that cannot be they are computed
    anew.

    Args:
        guide: its transform maps the base space to the unconstrained latents.
        log_joint: the model's log joint density.
        calls: how many gradients will be taken, about.
        compile: None compiles where so many replays would take long, by their operations; True and False as they say.
    """

    def __init__(self, guide: AutoFlow, log_joint: LogJoint, calls: int = 0, compile: bool | None = None) -> None:
        self.guide, self.log_joint = guide, log_joint
        self._joint: Callable[[Tensor], Tensor] = log_joint
        #: How gradients are taken: ``"plain"``, ``"traced"`` or ``"compiled"``.
        self.speed = "plain"
        self._density: Callable[[Tensor], Tensor] = self.log_density
        start = guide.get_posterior().base.sample()
        self._dtype = start.dtype
        if log_joint.plates is not None:  # one graph of all batches would be endless: that of one is replayed
            rows = AllRows(log_joint.batch, log_joint.plates, rows=1, traced=True)
            self._joint = lambda z: rows(z.reshape(-1, z.shape[-1]).to(log_joint.space.start)).reshape(z.shape[:-1])
            return
        try:
            self._density = traced = TracedDensity(self.log_density, start, rows=1)
        except Untraceable:
            return
        self.speed = "traced"
        if compile or (compile is None and calls * work_of(partial(traced.value_and_score, start)) > COMPILE_FROM):
            # Compilers fail in many ways, for one where none is installed; a replay is as right.
            with suppress(Exception):
                traced.graph.compile([start[None]])
                self.speed = "compiled"

    def log_density(self, x: Tensor) -> Tensor:
        """The log joint at base vectors ``(..., D)`` with what the flow does to volume, ``(...)`` in nats."""
        z, ladj = self.guide.transform.call_and_ladj(x)
        return self._joint(z) + ladj

    def __call__(self, state: dict[str, Tensor]) -> Tensor:
        """The potential energy, for Pyro's HMC and NUTS."""
        return -self._density(state["x"].to(self._dtype))
