"""The rows' conditional as a Pyro distribution, for the plate of the rows."""

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor
from torch.distributions import constraints

from .row_form import Given, RowForm


class RowDistribution(TorchDistribution):
    """Latents of rows given globals: events ``(d,)`` in a batch with the rows in the dimension of their plate.

    Args:
        form: the conditional.
        given: what it is given, for ``S`` draws of the globals.
        outer: batch shape of these draws, of ``S`` in all.
        nesting: how many dimensions the model's plates take.
        dim: the dimension of the rows' plate, from the right.
        path: leave the score out of the gradient of the ELBO, see :class:`~pyroflows.FlowDistribution`.
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, form: RowForm, given: Given, outer: Size, nesting: int, dim: int, *, path: bool = True) -> None:
        self.form, self.given, self.path = form, given, path
        self._rows = given.pull.shape[1]
        inner = [1] * nesting
        inner[dim] = self._rows
        super().__init__(torch.Size([*outer, *inner]), torch.Size([form.width]), validate_args=False)

    def expand(self, batch_shape: Size, _instance: object = None) -> "RowDistribution":
        """The same distribution; a row is drawn once for each draw of the globals.

        Raises:
            ValueError: if the batch is another one.
        """
        missing = len(batch_shape) - len(self.batch_shape)
        if missing < 0 or Size([1] * missing) + self.batch_shape != Size(batch_shape):
            raise ValueError(f"RowDistribution expected the batch {tuple(self.batch_shape)}, got {tuple(batch_shape)}")
        return self

    def rsample(self, sample_shape: Size | tuple = ()) -> Tensor:
        """Draws ``batch_shape + (d,)`` with gradients."""
        if Size(sample_shape):
            raise ValueError(f"RowDistribution expected no sample_shape, got {tuple(sample_shape)}: draw more globals")
        drawn = self.form.at(self.given).draw(torch.randn_like(self.given.pull))
        return drawn.view(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each row, ``batch_shape``."""
        return self._score(value, fixed=False)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """What Pyro's ELBOs take of a guide's site."""
        return ScoreParts(self.log_prob(value), 0, self._score(value, fixed=self.path))

    def _score(self, value: Tensor, fixed: bool) -> Tensor:
        rows = value.reshape(self.given.pull.shape)
        return self.form.at(self.given, fixed).log_prob(rows).view(self.batch_shape)


def particles(batch: Size, nesting: int) -> Size:
    """The shape of particles left of the dimensions of the model's plates; the empty one for a single draw."""
    if math.prod(batch) == 1 and len(batch) <= nesting:
        return Size()
    if len(batch) <= nesting or any(size != 1 for size in batch[len(batch) - nesting :]):
        raise ValueError(
            f"expected particles in dimensions left of the model's {nesting} plates, got a batch {tuple(batch)}: set "
            f"max_plate_nesting={nesting}, or leave it out"
        )
    return batch[: len(batch) - nesting]
