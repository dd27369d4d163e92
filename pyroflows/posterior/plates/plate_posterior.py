"""The posterior of a model's globals and of the latents of each row of a plate."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import files
from ...arguments import check_counts
from ...guides import AutoPlateFlow
from ...model import LogJoint
from ...model.row_joint import RowJoint
from ...model.structure import Structure
from ...seeds import seed_of, seeded
from ...training import History
from .. import plots, summary
from ..draws import Draws
from ..refine import Refined
from ..refine.weights import systematic, weight_stats
from ..scalars import as_numpy
from . import plate_archive
from .moments import Moments, row_moments, weighted_moments
from .plate_diagnostics import PlateDiagnostics, diagnose
from .row_weights import AT_ONCE, RowWeights, scored

# Draws that judge the posterior: data that were made from a seed of the user's own do not have the same numbers.
SEED = seed_of("draws of a posterior by plate")
# Numbers of draws of all latents that are made unasked.
NUMBERS = 50_000_000
# Numbers of rows that a table goes through, about, with at least so many draws of the globals.
PASSED, LEAST = 3_000_000, 50
# Scalars of rows that a summary lists one by one.
LISTED = 100


class PlatePosterior(Draws):
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

    weighted = False

    def __init__(
        self, guide: AutoPlateFlow, joint: RowJoint, history: History, num_draws: int = 4000, seed: int = SEED
    ) -> None:
        self.guide, self.joint, self.history = guide, joint, history
        self.num_draws, self.seed = num_draws, seed

    @property
    def structure(self) -> Structure:
        """Which latents are global and which belong to rows."""
        return self.joint.structure

    @functools.cached_property
    def log_joint(self) -> LogJoint:
        """The log joint density of all latents.

        Raises:
            ValueError: if the model sees some rows only.
        """
        if self.structure.is_subsampled:
            raise ValueError(
                f"expected a model that sees all rows of plate {self.structure.plate!r} for this, got one that sees "
                f"{self.structure.seen} of {self.structure.rows}: take sample, summary or moments, or fit without "
                f"subsample_size"
            )
        made = LogJoint(self.guide.bare_model, self.joint.args, self.joint.kwargs, dtype=self.joint.dtype)
        return made.holding(made.parameters())

    def sample(
        self,
        num_samples: int = 1000,
        *,
        seed: int | None = None,
        sites: Sequence[str] | None = None,
        rows: Sequence[int] | Tensor | None = None,
        deterministic: bool = False,
    ) -> dict[str, Tensor]:
        """Draws by site, equally weighted, of shape ``(num_samples, *site.shape)``.

        Args:
            num_samples: how many draws.
            seed: draws from this seed and leaves torch's generator as it was; None draws from the generator.
            sites: which sites; None for all.
            rows: which rows of the plate, as numbers; None for all. Sites of the plate have as many rows then.
            deterministic: give ``pyro.deterministic`` sites too; not with ``rows``.

        Raises:
            ValueError: if a site or row is none of the model's, or all rows would be more than 50 million numbers.
        """
        check_counts("PlatePosterior", {}, num_samples=num_samples)
        if deterministic:
            if rows is not None or sites is not None:
                raise ValueError("expected deterministic=True without sites and rows, which say what is wanted")
            return super().sample(num_samples, seed=seed, deterministic=True)
        wanted = self._checked(sites)
        chosen = None if rows is None else self._rows(rows)
        inner = any(site.name in wanted for site in self.structure.inner)
        with torch.no_grad(), seeded(seed, self.guide.loc.device):
            g = self.guide.outer_posterior().sample((num_samples,))
            z = self._latents(g, chosen) if inner else g.new_zeros(num_samples, 0, self.structure.width)
            values = self.structure.outer.constrain(g)[0]
            if inner:
                values |= {site.name: site.place(z)[0] for site in self.structure.inner}
            return {name: values[name] for name in wanted}

    def new(self, num_samples: int) -> Tensor:
        """Draws of the guide in unconstrained space, of shape ``(num_samples, D)``."""
        g = self.guide.outer_posterior().sample((num_samples,))
        return self.structure.joined(self.log_joint.space, g, self._latents(g, None))

    def _latents(self, g: Tensor, chosen: Tensor | None) -> Tensor:
        """Draws ``(S, R, d)`` of all rows, or of those that are chosen, at globals."""
        structure = self.structure
        count = structure.rows if chosen is None else len(chosen)
        if len(g) * count * structure.width > NUMBERS:
            raise ValueError(
                f"expected at most {NUMBERS:,} numbers, got {len(g)} draws of {count} rows with {structure.width} "
                f"latents each: name rows=[...], ask for fewer draws, or take moments()"
            )
        wanted = torch.arange(structure.rows, device=g.device) if chosen is None else chosen
        return self._drawn(g, wanted, 1)

    def _drawn(self, g: Tensor, rows: Tensor, each: int) -> Tensor:
        """Draws of rows, so many for each of the globals one after the other, ``(S each, rows, d)``."""
        structure = self.structure
        found = g.new_empty(len(g), each, len(rows), structure.width)
        size = max(1, AT_ONCE // self.joint.numbers)
        for some in self.joint.passes:
            inside = torch.arange(structure.rows, device=g.device) if some.index is None else some.index
            here, there = (rows[:, None] == inside).nonzero().unbind(1) if some.index is not None else (None, rows)
            for first in range(0, len(g) if len(there) else 0, size):
                part = slice(first, first + size)
                form = self.guide.form.at(self.guide.given(self.joint, g[part], some.index)).of(there).many()
                noise = torch.randn(len(g[part]), each, *form.mean.shape[2:]).to(form.mean)
                found[part, :, slice(None) if here is None else here] = form.draw(noise)
        return found.flatten(0, 1)

    def log_prob(self, samples: dict[str, Tensor]) -> Tensor:
        """The posterior's log density at values of all latent sites, of shape ``(S,)``."""
        with torch.no_grad():
            space = self.log_joint.space
            vectors, ladj = space.unconstrain(samples)
            g, z = self.structure.parted(space, vectors)
            rows = self.guide.form.at(self.guide.given(self.joint, g)).log_prob(z).sum(-1)
            return self.guide.outer_posterior().log_prob(g) + rows + ladj

    @functools.cached_property
    def vectors(self) -> Tensor:
        """The fixed draws in unconstrained space, of shape ``(1, draws, D)``; fewer where they are very long."""
        count = max(min(self.num_draws, NUMBERS // self.structure.size), 1)
        with torch.no_grad(), seeded(self.seed, self.guide.loc.device):
            return self.new(count)[None]

    @functools.cached_property
    def weights(self) -> NDArray:
        """Equal weights of the fixed draws: those by importance are of :meth:`refine`."""
        count = self.vectors.shape[1]
        return torch.full((count,), 1 / count, dtype=torch.float64).numpy()

    @property
    def stats(self) -> dict[str, NDArray]:
        """Nothing is known of single draws."""
        return {}

    @functools.cached_property
    def _judged(self) -> tuple[PlateDiagnostics, RowWeights, NDArray]:
        with seeded(self.seed, self.guide.loc.device):
            return diagnose(self.guide, self.joint, self.num_draws)

    @property
    def diagnostics(self) -> PlateDiagnostics:
        """How far the draws can be trusted, from weights of the globals and of each row."""
        return self._judged[0]

    @property
    def log_weights(self) -> NDArray:
        """``log p - log q`` of draws of the globals, with each row averaged over ``diagnostics.each`` draws, in nats."""
        return self._judged[1].log_weights

    @property
    def khat(self) -> float:
        """The k-hat of PSIS of these weights; below 0.7 they can be relied on."""
        return self.diagnostics.khat

    @property
    def row_spread(self) -> Tensor:
        """The standard deviation of each row's own log weights, ``(R,)``: small where its draws are good as they are."""
        return self._judged[1].spread

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
                f"for fewer draws, or take moments(weighted=True)"
            )
        found, weighed, smoothed = self._judged
        with torch.no_grad(), seeded(seed_of("refined draws by plate"), self.guide.loc.device):
            if method == "resample":
                g, weights = self._resampled(num_draws), None
            else:
                picked = torch.randint(len(weighed.g), (num_draws,)) if num_draws > len(weighed.g) else slice(num_draws)
                g, weights = weighed.g[picked], _normalised(smoothed[picked])
            z = self._picked(g)
            vectors = self.structure.joined(self.log_joint.space, g, z)[None]
        stats = {} if weights is None else weight_stats(weighed.log_weights[picked], weights, found.khat)
        return Refined(method, self.log_joint, vectors, found.corrected, stats, weights)

    def _resampled(self, count: int) -> Tensor:
        """Globals picked by their weights, ``(count, Dg)``."""
        _, weighed, smoothed = self._judged
        picked = systematic(_normalised(smoothed), count, float(torch.rand(())))
        return weighed.g[torch.as_tensor(picked, device=weighed.g.device)]

    def _picked(self, g: Tensor) -> Tensor:
        """Of each row one of several draws by its weight, at globals ``(S, Dg)``; ``(S, R, d)``."""
        each, parts = max(self.diagnostics.each, 8), []
        for part in g.split(32):
            found = part.new_empty(len(part), self.structure.rows, self.structure.width)
            for some, z, log_w, _ in scored(self.guide, self.joint, part, each):
                noise = -torch.empty_like(log_w).exponential_().log()
                best = (log_w + noise).argmax(1)[:, None, :, None].expand(-1, 1, -1, z.shape[-1])
                rows = slice(None) if some.index is None else some.index
                found[:, rows] = z.gather(1, best)[:, 0]
            parts.append(found)
        return torch.cat(parts)

    def moments(self, *, weighted: bool | None = None) -> Moments:
        """Mean and standard deviation of each row by site, both ``(R, *shape)``; no draws of all rows are kept.

        Args:
            weighted: correct them by importance weights; None where the verdict is "usable with weights".
        """
        weighted = self.diagnostics.grade == "usable with weights" if weighted is None else weighted
        with torch.no_grad(), seeded(self.seed, self.guide.loc.device):
            if weighted:
                each = max(self.diagnostics.each, 8)
                return weighted_moments(self.guide, self.joint, self._resampled(self._few), each)
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
        table = summary.summarize(outer, None, mass, str(found))
        moments = self.moments(weighted=weighted)
        for label, values in self._labelled(z, named):
            table.rows[label] = summary.describe(values, None, ((1 - mass) / 2, (1 + mass) / 2))
        for site in structure.inner if named is not None and rows is None else ():
            mean, sd = (part.double().reshape(len(part), -1) for part in moments[site.name])
            table.rows[f"{site.name} of {structure.rows} rows"] = _of_rows(mean, sd, mass)
        return table

    def _listed(self, named: Tensor | None, weighted: bool) -> Tensor:
        """Draws of the rows that are listed."""
        rows = torch.arange(self.structure.rows, device=self.guide.loc.device) if named is None else named
        count = self._few
        if weighted:
            return self._picked(self._resampled(count))[:, rows]
        return self._drawn(self.guide.outer_posterior().sample((count,)), rows, -(-self.num_draws // count))

    @property
    def _few(self) -> int:
        """Draws of the globals for what goes through all rows."""
        return min(max(PASSED // (self.joint.numbers * len(self.joint.passes)), LEAST), self.num_draws)

    def _labelled(self, z: Tensor, named: Tensor | None) -> list[tuple[str, NDArray]]:
        """Draws of each number of some rows by label, as ``theta[3]``, in the numbering of the site's values."""
        found = []
        for site in self.structure.inner:
            values = as_numpy({site.name: site.place(z)[0]})
            for label, draws in summary.labelled(values):
                if named is not None:
                    places = label[len(site.name) + 1 : -1].split(",")
                    places[site.axis] = str(int(named[int(places[site.axis])]))
                    label = f"{site.name}[{','.join(places)}]"
                found.append((label, draws))
        return found

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

    def _checked(self, sites: Sequence[str] | None) -> list[str]:
        known = [site.name for site in (*self.structure.outer.sites, *self.structure.inner)]
        wrong = [name for name in sites or () if name not in known]
        if wrong:
            raise ValueError(f"expected some of the sites {known}, got {wrong[0]!r}")
        return known if sites is None else list(sites)

    def _rows(self, rows: Sequence[int] | Tensor) -> Tensor:
        found = torch.as_tensor(rows, device=self.guide.loc.device)
        if found.dim() != 1 or found.is_floating_point() or ((found < 0) | (found >= self.structure.rows)).any():
            raise ValueError(
                f"expected numbers of rows of plate {self.structure.plate!r}, from 0 to {self.structure.rows - 1}, "
                f"got {rows}"
            )
        return found.long()

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{self.structure}\n{self.diagnostics}"


def _normalised(log_weights: NDArray) -> NDArray:
    weights = torch.softmax(torch.as_tensor(log_weights, dtype=torch.float64), 0)
    return weights.numpy()


def _of_rows(mean: Tensor, sd: Tensor, mass: float) -> dict[str, float]:
    """One line for many rows: how their means spread."""
    low, high = ((1 - mass) / 2, (1 + mass) / 2)
    ends = {
        f"{100 * level:.4g}%": float(mean.flatten().sort().values[int(level * (mean.numel() - 1))])
        for level in (low, high)
    }
    return {"mean": float(mean.mean()), "sd": float(mean.std()), **ends}
