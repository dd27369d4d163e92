"""The posterior of a model's globals and of the latents of each row of a plate."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import files
from ...arguments import check_counts
from ...model.rows.relations import related
from ...seeds import seed_of, seeded
from .. import plots, summary
from ..refine import Refined
from ..refine.weights import weight_stats
from ..report import write_report
from ..scalars import as_numpy
from . import plate_archive
from .moments import Moments, row_moments, weighted_moments
from .plate_draws import NUMBERS
from .plate_summary import by_plate
from .plate_weighed import PlateWeighed
from .row_arviz import of_rows
from .row_draws import drawn, picked
from .structure_plot import plot_structure

# Scalars of rows that a summary lists one by one.
LISTED = 100


class PlatePosterior(PlateWeighed):
    """A posterior with the structure of a plate; made by :func:`pyroflows.fit`.

    It is read like any other: ``sample``, ``draws``, ``summary``, ``to_arviz``, ``predict``. What would be very many
    numbers, of all rows and draws, is made only where it is asked for: :meth:`moments` go through the draws and keep
    none, ``sample(rows=...)`` gives the rows that are named, and ``summary`` lists the worst rows where there are many.

    Args:
        guide: the guide, an :class:`~pyroflows.AutoPlateFlow`; use it wherever Pyro takes one.
        joint: the model as terms of its rows.
        history: what the fit recorded.
        num_draws: draws behind diagnostics, ArviZ and plots.
        seed: seed of these draws.
    """

    def refine(self, method: str, *, num_draws: int = 1000) -> Refined:
        """Draws corrected by importance weights: globals by theirs, and of each row one of several by its own.

        Args:
            method: ``"resample"`` for draws that need no weights any more, ``"importance"`` for globals with weights.
            num_draws: how many.

        Returns:
            Draws that are read in the same way: ``sample``, ``draws``, ``summary``, ``to_arviz``, ``plot_pairs``.

        Raises:
            ValueError: if the method is another one, or all draws would be more than 50 million numbers.
        """
        check_counts("refine", {}, num_draws=num_draws)
        if method not in ("importance", "resample"):
            raise ValueError(
                f'refine expected "importance" or "resample" for a posterior by plate, got {method!r}: chains over all '
                f"latents are those of fit(..., plates=False)"
            )
        if num_draws * self.structure.size > NUMBERS:
            raise ValueError(
                f"expected at most {NUMBERS:,} numbers, got {num_draws} draws of {self.structure.size:,} latents: ask "
                f"for num_draws={NUMBERS // self.structure.size}, or take moments(weighted=True) of all rows and "
                f"summary(weighted=True, rows=[...]) of some"
            )
        found, weighed, smoothed = self._judged
        with torch.no_grad(), seeded(seed_of("refined draws by plate"), self.guide.loc.device):
            if method == "resample":
                g, weights = self._resampled(num_draws), None
            else:
                chosen = torch.randint(len(weighed.g), (num_draws,)) if num_draws > len(weighed.g) else slice(num_draws)
                g, weights = weighed.g[chosen], smoothed[chosen] / smoothed[chosen].sum()
            z = picked(self.guide, self.joint, g, self._each)
            vectors = self.structure.joined(self.log_joint.space, g, z)[None]
        stats = {} if weights is None else weight_stats(weighed.log_weights[chosen], weights, found.khat)
        return Refined(method, self.log_joint, vectors, found.corrected, stats, weights)

    def moments(self, *, weighted: bool | None = None) -> Moments:
        """Mean and standard deviation of each row by site, both ``(R, *shape)``; no draws of all rows are kept.

        Args:
            weighted: correct them by importance weights; None where the verdict is "usable with weights".
        """
        weighted = self.diagnostics.grade == "usable with weights" if weighted is None else weighted
        with torch.no_grad(), seeded(self.seed, self.guide.loc.device):
            if weighted:
                return weighted_moments(self.guide, self.joint, self._resampled(self._few), self._each)
            return row_moments(self.guide, self.joint, self.guide.outer_posterior().sample((self._few,)))

    def summary(
        self, *, weighted: bool | None = None, mass: float = 0.9, rows: Sequence[int] | None = None
    ) -> summary.Summary:
        """Mean, sd and central interval of the globals and of rows, and a sentence on how far to trust them.

        Args:
            weighted: correct by importance weights; None where the verdict is "usable with weights".
            mass: probability inside the interval.
            rows: which rows; None for all up to 100 numbers, and beyond for one line of each site of the plate, its
                mean and sd those of the rows' means, and the rows whose weights spread most.

        Raises:
            ValueError: if ``mass`` is not between 0 and 1, or a row is none of the plate's.
        """
        if not 0 < mass < 1:
            raise ValueError(f"expected a mass between 0 and 1, got {mass}")
        structure, found = self.structure, self.diagnostics
        weighted = found.grade == "usable with weights" if weighted is None else weighted
        few = structure.rows * structure.width <= LISTED
        named = None if few and rows is None else self._rows(list(found.worst) if rows is None else rows)
        with torch.no_grad(), seeded(self.seed, self.guide.loc.device):
            g = self._resampled(self.num_draws) if weighted else self.guide.outer_posterior().sample((self.num_draws,))
            outer = as_numpy(structure.outer.constrain(g)[0])
            z = self._listed(named, weighted)
        moments = self.moments(weighted=weighted) if named is not None and rows is None else {}
        return by_plate(structure, outer, z, named, moments, mass, str(found))

    def _listed(self, named: Tensor | None, weighted: bool) -> Tensor:
        """Draws of the rows that are listed."""
        rows = torch.arange(self.structure.rows, device=self.guide.loc.device) if named is None else named
        count = self._few
        if weighted:
            return picked(self.guide, self.joint, self._resampled(count), self._each)[:, rows]
        g = self.guide.outer_posterior().sample((count,))
        return drawn(self.guide, self.joint, g, rows, -(-self.num_draws // count))

    def to_arviz(
        self,
        *,
        rows: Sequence[int] | None = None,
        coords: Mapping[str, Sequence] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> Any:
        """The draws as an ArviZ object, see :meth:`pyroflows.Posterior.to_arviz`.

        Where all rows are so many that ``num_draws`` of them would be more than 50 million numbers, there are fewer.

        Args:
            rows: globals and the latents and data of these rows alone, the labels of the plate; None for all rows.
            coords: labels by dimension name, of all rows for the plate.
            dims: names of a site's dimensions by site, in the place of the plates'.
            options: ``predictive``, ``prior`` and ``log_likelihood``, which are of all rows.

        Raises:
            ValueError: if a row is none of the plate's, or ``rows`` and options are given.
        """
        if rows is None:
            return super().to_arviz(coords=coords, dims=dims, **options)
        if any(options.values()):
            given = next(name for name, value in options.items() if value)
            raise ValueError(f"expected rows without {given}, which is of all rows: leave one of them out")
        draws = as_numpy(self.sample(self.num_draws, seed=self.seed, rows=rows))
        return of_rows(draws, self.log_joint, self.structure, self._rows(rows).tolist(), coords, dims)

    def plot_rows(self, site: str | None = None, *, most: int = 60) -> Any:
        """A caterpillar plot: means and 90 % intervals of rows in order, and the line of their mean; a Figure.

        Args:
            site: a site of the plate, the first by default.
            most: rows that are shown, at equal distances in the order, if there are more.
        """
        names = [inner.name for inner in self.structure.inner]
        if site is not None and site not in names:
            raise ValueError(f"expected one of the plate's sites {names}, got {site!r}")
        mean, sd = self.moments()[site or names[0]]
        return plots.plot_rows(
            *(part.reshape(len(part), -1).cpu().numpy() for part in (mean, sd)), site or names[0], most
        )

    def plot_structure(self) -> Any:
        """Globals, the plate with its latents, data, and arrows from each site to those that depend on it; a Figure.

        Latents are white, with how many numbers they have where that is more than one, of a row inside of the plate.
        """
        return plot_structure(*related(self.joint), self.structure.plate)

    def report(self, path: str | Path | None = None) -> str:
        """One page: the verdict, the table and how the fit went; written as HTML with pictures if given a path.

        Args:
            path: a file to write, for example ``"fit.html"``.
        """
        return write_report(self, self.history, path)

    def plot_loss(self) -> Any:
        """The ELBO over the steps of training; returns a matplotlib Figure.

        Raises:
            ValueError: if there was no training, as the start was good.
        """
        if not self.history.elbo:
            raise ValueError(f"expected a fit with steps, got one without ({self.history.stopped}): there is no loss")
        return plots.plot_elbo(self.history.elbo)

    def save(self, path: str | Path) -> None:
        """Writes the guide's numbers, those of all rows too, and what tells the model apart; no code and no data.

        Args:
            path: where the file goes.

        Raises:
            ValueError, OSError: if it cannot be written there.
        """
        packed = plate_archive.pack(self.guide, self.joint, self.history, self.num_draws, self.seed)
        files.write(packed, path)

    @classmethod
    def load(cls, path: str | Path, model: Callable, *args: object, **kwargs: object) -> "PlatePosterior":
        """Reads what :meth:`save` wrote, for the same model and arguments.

        Raises:
            ValueError: if the file is damaged, of something else, or of another model or other data.
        """
        return cls(*plate_archive.unpack(plate_archive.read(path), model, args, kwargs))

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{self.structure}\n{self.diagnostics}"
