"""What weights of the globals say, with each row averaged: diagnostics of a posterior by plate, and rows left out."""

import functools
from dataclasses import replace

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...infer import Gaussian
from ...seeds import seeded
from ..refine.weights import systematic
from . import plate_diagnostics
from .loo import Loo, leave_rows_out
from .plate_diagnostics import FEW, PlateDiagnostics, diagnose
from .plate_draws import NUMBERS, PlateDraws
from .row_weights import RowWeights

# Numbers of rows that a table goes through, about, with at least so many draws of the globals.
PASSED, LEAST = 3_000_000, 50
# Draws of a row, at least, of which one is picked by its weight.
PICKED = 8


class PlateWeighed(PlateDraws):
    """The diagnostics of a :class:`~pyroflows.PlatePosterior`, and what else comes from weights of its globals."""

    @functools.cached_property
    def _judged(self) -> tuple[PlateDiagnostics, RowWeights, NDArray]:
        with seeded(self.seed, self.guide.loc.device):
            found, weighed, smoothed = diagnose(self.guide, self.joint, self.num_draws)
        return replace(found, missed=self.history.missed), weighed, smoothed

    @property
    def diagnostics(self) -> PlateDiagnostics:
        """How far the draws can be trusted, from weights of the globals and of each row."""
        return self._judged[0]

    @property
    def log_weights(self) -> NDArray:
        """``log p - log q`` of draws of the globals, each row averaged over ``diagnostics.each`` draws, in nats."""
        return self._judged[1].log_weights

    @property
    def khat(self) -> float:
        """The k-hat of PSIS of these weights; below 0.7 they can be relied on."""
        return self.diagnostics.khat

    @property
    def row_spread(self) -> Tensor:
        """The standard deviation of each row's log weights, ``(R,)``: small where its draws are good as they are."""
        return self._judged[1].spread

    def _resampled(self, count: int) -> Tensor:
        """Globals picked by their weights, ``(count, Dg)``."""
        _, weighed, smoothed = self._judged
        places = systematic(smoothed, count, float(torch.rand(())))
        return weighed.g[torch.as_tensor(places, device=weighed.g.device)]

    def globals_moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(Dg,)`` and lower root of the covariance of the globals, unconstrained, by their weighted draws."""
        _, weighed, smoothed = self._judged
        weights = torch.as_tensor(smoothed).to(weighed.g)
        mean = weights @ weighed.g
        found = Gaussian.from_root(mean, ((weighed.g - mean) * weights.sqrt()[:, None]).mT)
        return found.loc, found.scale_tril

    @functools.cached_property
    def _left_out(self) -> Loo:
        rows, each = self.structure.rows, max(self.diagnostics.each, FEW)
        count = plate_diagnostics.NUMBERS // (each * self.joint.numbers * len(self.joint.passes))
        count = min(self.num_draws, max(count, plate_diagnostics.LEAST), max(NUMBERS // rows, LEAST))
        with seeded(self.seed, self.guide.loc.device):
            return leave_rows_out(self.guide, self.joint, count, each)

    def loo(self) -> Loo:
        """Leave-one-row-out: the log predictive density of each row's data given those of all other rows.

        A row's latents are integrated out, which ``arviz.loo`` of draws of all latents cannot do: it leaves out data
        of a row whose effect was fitted to them. Of a model with one datum in each row it is leave-one-out.

        Returns:
            ``elpd``, ``se`` and ``p_loo``, ``pointwise`` densities and k-hats by row; the rows that move the globals
            too far to be left out by weights are named. Of two models of the same rows, compare ``pointwise``.
        """
        return self._left_out

    @property
    def _each(self) -> int:
        """Draws of a row of which one is picked by its weight."""
        return max(self.diagnostics.each, PICKED)

    @property
    def _few(self) -> int:
        """Draws of the globals for what goes through all rows."""
        return min(max(PASSED // (self.joint.numbers * len(self.joint.passes)), LEAST), self.num_draws)
