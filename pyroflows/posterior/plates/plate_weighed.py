"""What weights of the globals say, with each row averaged: diagnostics of a posterior by plate, and rows left out."""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arguments import check_counts
from ...infer import Gaussian
from ...infer.nested.quadrature import Rule
from ...model.rows import RowJoint
from ...seeds import seeded
from ..importance_diagnostics import Diagnostics
from ..refine.weights import systematic
from . import plate_diagnostics
from .loo import Loo, leave_rows_out
from .new_rows import NewRows, log_mean
from .plate_diagnostics import FEW, PlateDiagnostics, diagnose
from .plate_draws import NUMBERS, PlateDraws, check_size
from .row_draws import picked
from .row_weights import Each, RowWeights, row_levels

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
        count = min(self._count(self.joint), max(NUMBERS // self.structure.rows, LEAST))
        with seeded(self.seed, self.guide.loc.device):
            return leave_rows_out(self.guide, self.joint, count, self._inner)

    def loo(self) -> Loo:
        """Leave-one-row-out: the log predictive density of each row's data given those of all other rows.

        A row's latents are integrated out, which ``arviz.loo`` of draws of all latents cannot do: it leaves out data
        of a row whose effect was fitted to them. Of a model with one datum in each row it is leave-one-out.

        Returns:
            ``elpd``, ``se`` and ``p_loo``, ``pointwise`` densities and k-hats by row; the rows that move the globals
            too far to be left out by weights are named. Of two models of the same rows, compare ``pointwise``.
        """
        return self._left_out

    def log_predictive(self, *args: object, **kwargs: object) -> Tensor:
        """The log density of the data of new rows given the fit's, of each row by itself: ``(rows,)``, in nats.

        Args:
            args: arguments of the model with the data of new rows, as many as there are.
            kwargs: keyword arguments of the model.

        Raises:
            ValueError: if the model has other latents with these arguments.
        """
        with torch.no_grad(), seeded(self.seed, self.guide.loc.device):
            return log_mean(self._levels(self._new_rows(args, kwargs)))

    def predict_rows(
        self, *args: object, num_samples: int = 1000, seed: int | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        """Draws of new rows given their own data and the fit's: their latents, the globals, and further data.

        Globals are picked by what the new rows say of them, and of each row one of several draws by its weight. Data
        that these arguments lack, as by ``obs=None``, are not known; without any the rows have their prior.

        Args:
            args: arguments of the model with the data of new rows.
            num_samples: how many draws.
            seed: draws from this seed and leaves torch's generator as it was; None draws from the generator.
            kwargs: keyword arguments of the model; use ``functools.partial`` for the two names above.

        Returns:
            All latents, observed sites drawn anew, and ``pyro.deterministic`` sites, ``(num_samples, *site.shape)``.

        Raises:
            ValueError: if the model has other latents with these arguments, or that would be too many numbers.
        """
        check_counts(type(self).__name__, {}, num_samples=num_samples)
        weighed = self._judged[1]
        with torch.no_grad(), seeded(seed, self.guide.loc.device):
            new = self._new_rows(args, kwargs)
            check_size(num_samples, new.joint.structure.rows * new.joint.structure.width, {})
            weights = torch.cat([log_w + level.sum(-1) for log_w, level in self._levels(new)])
            found, smoothed = Diagnostics.of(weights.double().cpu().numpy(), weighted=True)
            if found.grade == "do not trust":
                warnings.warn(
                    f"the new rows of {self.structure.plate!r} move the globals farther than draws of the fit can be "
                    f"weighed by (k-hat {found.khat:.2f}, {found.efficiency * found.draws:.0f} effective draws): fit "
                    f"them together with the others, or pass fewer of them",
                    stacklevel=2,
                )
            places = systematic(smoothed, num_samples, float(torch.rand(())))
            g = weighed.g[torch.as_tensor(places, device=weighed.g.device)]
            z = picked(self.guide, new.joint, g, self._each, new.form)
            values = new.joint.structure.values(g, z)[0]
            return values | self._replay.simulate(values, num_samples, (args, kwargs))

    def _new_rows(self, args: tuple, kwargs: dict) -> NewRows:
        return NewRows.of(self.guide, self.joint, self._replay.data, args, kwargs)

    def _levels(self, new: NewRows) -> Iterator[tuple[Tensor, Tensor]]:
        """In parts, log weights ``(S,)`` of draws of the globals, and what new rows say at these, ``(S, rows)``."""
        _, weighed, smoothed = self._judged
        count, each = self._count(new.joint), self._inner
        log_w = torch.as_tensor(smoothed).to(weighed.g)[:count].log().log_softmax(0)
        for _, level in row_levels(self.guide, new.joint, weighed.g[:count], each, form=new.form):
            own, log_w = log_w[: len(level)], log_w[len(level) :]
            yield own, level

    def _count(self, joint: RowJoint) -> int:
        """Draws of the globals for the densities of rows, each averaged."""
        cost = max(self.diagnostics.each, FEW) * joint.numbers * len(joint.passes)
        return min(self.num_draws, max(plate_diagnostics.NUMBERS // cost, plate_diagnostics.LEAST))

    @property
    def _inner(self) -> Each:
        """How a row is averaged for one of the globals."""
        rule = Rule.of(self.structure.width, self.guide.loc) if self.diagnostics.by_nodes else None
        return rule or max(self.diagnostics.each, FEW)

    @property
    def _each(self) -> int:
        """Draws of a row of which one is picked by its weight."""
        return max(self.diagnostics.each, PICKED)

    @property
    def _few(self) -> int:
        """Draws of the globals for what goes through all rows."""
        return min(max(PASSED // (self.joint.numbers * len(self.joint.passes)), LEAST), self.num_draws)
