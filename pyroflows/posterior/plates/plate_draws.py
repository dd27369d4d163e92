"""Draws of a guide of globals and rows, of all latents or of those that are named."""

import functools
from collections.abc import Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arguments import check_counts
from ...guides import AutoPlateFlow
from ...model import LogJoint
from ...model.rows import RowJoint, Structure, whole_space
from ...seeds import seed_of, seeded
from ...training import History
from ..draws import Draws
from .row_draws import drawn

# Draws that judge the posterior: data that were made from a seed of the user's own do not have the same numbers.
SEED = seed_of("draws of a posterior by plate")
# Numbers of draws of all latents, and of predictions, that are made unasked.
NUMBERS, PREDICTED = 50_000_000, 200_000_000


class PlateDraws(Draws):
    """What a :class:`~pyroflows.PlatePosterior` draws, with its log density.

    Args:
        guide: the guide.
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
            ValueError: if the model sees some rows only, and not those that its plate yields.
        """
        space = whole_space(self.joint) if self.structure.is_subsampled else None
        args, kwargs = self.joint.runs.args, self.joint.runs.kwargs
        made = LogJoint(self.guide.bare_model, args, kwargs, space, dtype=self.joint.dtype)
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

    def predict(
        self, *args: object, num_samples: int = 1000, seed: int | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        """Runs the model on new arguments at draws of the posterior, see :meth:`pyroflows.Posterior.predict`.

        Where the plate has as many rows with these arguments as in the fit, they are those of the fit. Where it has
        another number, all are new ones with latents from their prior at the drawn globals. See :meth:`predict_rows`
        for new rows that have data.

        Args:
            args: arguments of the model; without any, those of the fit.
            num_samples: how many draws.
            seed: draws from this seed and leaves torch's generator as it was; None draws from the generator.
            kwargs: keyword arguments of the model; use ``functools.partial`` for the two names above.

        Returns:
            Observed and ``pyro.deterministic`` sites, and the latents of new rows, ``(num_samples, *site.shape)``.

        Raises:
            ValueError: if a latent outside of the plate has another shape with these arguments, a site cannot be
                sampled, or that would be too many numbers.
        """
        check_counts(type(self).__name__, {}, num_samples=num_samples)
        call, structure = (args, kwargs) if args or kwargs else None, self.structure
        with torch.no_grad(), seeded(seed, self.guide.loc.device):
            posterior, first = self.guide.outer_posterior(), structure.inner[0]
            one = self._replay.simulate(structure.outer.constrain(posterior.sample((1,)))[0], 1, call)
            is_known = first.name not in one or one[first.name].shape[1 + first.axis] == structure.rows
            check_size(num_samples, structure.rows * structure.width if is_known else 0, one)
            g = posterior.sample((num_samples,))
            values = structure.outer.constrain(g)[0]
            if is_known:
                z = self._latents(g, None)
                values |= {site.name: site.place(z)[0] for site in structure.inner}
            return self._replay.simulate(values, num_samples, call)

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
                f"latents each: name rows=[...], at most {NUMBERS // (len(g) * structure.width)}, ask for fewer draws, "
                f"or take moments()"
            )
        wanted = torch.arange(structure.rows, device=g.device) if chosen is None else chosen
        return drawn(self.guide, self.joint, g, wanted, 1)

    def log_prob(self, samples: dict[str, Tensor]) -> Tensor:
        """The posterior's log density at values of all latent sites, of shape ``(S,)``."""
        with torch.no_grad():
            space = self.log_joint.space
            vectors, ladj = space.unconstrain(samples)
            g, z, more = self.structure.parted(space, vectors)
            total = self.guide.outer_posterior().log_prob(g) + ladj + more
            for some in self.joint.passes:
                rows = self.guide.form.at(self.guide.given(self.joint, g, some.index))
                own = rows.log_prob(z if some.index is None else z[:, some.index])
                total = total + (own * some.weight).sum(-1)
            return total

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


def check_size(draws: int, latents: int, one: Mapping[str, Tensor]) -> None:
    """Raises if so many draws of latents, and of what one draw of predictions has, are too many numbers."""
    predicted = sum(value.numel() for value in one.values())
    most = min(NUMBERS // max(latents, 1), PREDICTED // max(predicted, 1))
    if draws > most:
        raise ValueError(
            f"expected at most {NUMBERS:,} numbers of latents and {PREDICTED:,} of predictions, got {draws} draws of "
            f"{latents:,} and {predicted:,}: ask for num_samples={most}, and for fewer rows where that is too few"
        )
