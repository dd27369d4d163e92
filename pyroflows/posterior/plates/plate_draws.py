"""Draws of a guide of globals and rows, of all latents or of those that are named."""

import functools
from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arguments import check_counts
from ...guides import AutoPlateFlow
from ...model import LogJoint
from ...model.rows import RowJoint, Structure
from ...seeds import seed_of, seeded
from ...training import History
from ..draws import Draws
from .row_draws import drawn

# Draws that judge the posterior: data that were made from a seed of the user's own do not have the same numbers.
SEED = seed_of("draws of a posterior by plate")
# Numbers of draws of all latents that are made unasked.
NUMBERS = 50_000_000


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
            ValueError: if the model sees some rows only.
        """
        if self.structure.is_subsampled:
            raise ValueError(
                f"expected a model that sees all rows of plate {self.structure.plate!r} for this, got one that sees "
                f"{self.structure.seen} of {self.structure.rows}: take sample, summary or moments, or fit without "
                f"subsample_size"
            )
        made = LogJoint(self.guide.bare_model, self.joint.runs.args, self.joint.runs.kwargs, dtype=self.joint.dtype)
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
        return drawn(self.guide, self.joint, g, wanted, 1)

    def log_prob(self, samples: dict[str, Tensor]) -> Tensor:
        """The posterior's log density at values of all latent sites, of shape ``(S,)``."""
        with torch.no_grad():
            space = self.log_joint.space
            vectors, ladj = space.unconstrain(samples)
            g, z, more = self.structure.parted(space, vectors)
            rows = self.guide.form.at(self.guide.given(self.joint, g)).log_prob(z).sum(-1)
            return self.guide.outer_posterior().log_prob(g) + rows + ladj + more

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
