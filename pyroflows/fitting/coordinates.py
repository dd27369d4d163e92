"""The coordinates in which a flow is fitted."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..compile import TracedDensity, Untraceable
from ..infer import Anchored, Gaussian
from ..model import AllRows, Choice, LogJoint
from ..model.noncentered import noncentered as noncentered_map
from ..transforms import FlowTransform

Density = Callable[[Tensor], Tensor]
# Where plates are subsampled, so many rows, the same at each call, show where to start.
START_ROWS = 4096


@dataclass(frozen=True)
class Place:
    """The coordinates in which a flow is fitted.

    Args:
        fixed: the map from them to unconstrained space, None for unconstrained space itself.
        density: the log density in them.
        start: a Gaussian in them where the model starts.
        rows: how many vectors a graph of the density takes, 0 for none.
        whole: where plates are subsampled, the density over all rows.
        anchored: and its estimate from some at each call, once there is a Gaussian to expand it around.
    """

    fixed: FlowTransform | None
    density: Density
    start: Gaussian
    rows: int = 0
    whole: AllRows | None = None
    anchored: Anchored | None = None

    @classmethod
    def of(cls, log_joint: LogJoint, fixed: FlowTransform | None, around: Gaussian, rows: int) -> "Place":
        """The log joint in other coordinates, traced for so many rows where it can be and they are not 0."""
        start = around if fixed is None else Gaussian(fixed.inv(around.loc), around.scale_tril)

        def batch(u: Tensor, choice: Choice | None = None) -> Tensor:
            z, ladj = (u, 0.0) if fixed is None else fixed.call_and_ladj(u)
            return log_joint.batch(z, choice) + (ladj if choice is None else ladj * choice.prior)

        if rows and log_joint.plates is not None:
            whole = AllRows(batch, log_joint.plates, rows, traced=True)
            return cls(fixed, whole.some(START_ROWS), start, rows, whole)
        return cls(fixed, _traced(batch, start.loc, rows), start, rows)

    def at(self, gaussian: Gaussian) -> "Place":
        """The same with a density from some rows at each call, if there are more, expanded around a Gaussian."""
        if self.whole is None:
            return self
        if self.anchored is not None:
            self.anchored.move(gaussian)
            return self
        anchored = Anchored(self.whole, gaussian)
        return replace(self, density=_traced(anchored, gaussian.loc, self.rows), anchored=anchored)


def _traced(density: Density, example: Tensor, rows: int) -> Density:
    """A density as a graph for so many rows where it can be and they are not 0."""
    try:
        return TracedDensity(density, example, rows) if rows else density
    except Untraceable:
        return density


def places_of(plain: Place, density: LogJoint, noncentered: bool | None, rows: int) -> list[Place]:
    """The coordinates to choose from: as the model has them, non-centred, or both."""
    fixed = None if noncentered is False else noncentered_map(density)
    if fixed is None:
        if noncentered:
            raise ValueError(
                "fit expected a site with a prior like Normal(loc, scale) whose scale depends on other latents for "
                "noncentered=True, got none: leave noncentered out"
            )
        return [plain]
    return [*([] if noncentered else [plain]), Place.of(density, fixed, plain.start, rows)]
