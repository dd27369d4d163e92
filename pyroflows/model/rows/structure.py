"""Which latents of a model are global and which belong to the rows of a plate, read off a run of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from torch import Tensor

from ..latent_space import LatentSpace
from ..sites import latent_nodes
from .relative_space import RelativeSpace
from .row_site import RowSite

# More latents in a row than this are not held: each costs a pass backward, and a row a matrix of all of them.
WIDEST = 64


@dataclass(frozen=True)
class Structure:
    """The latents of a model as a vector of globals and the rows of one plate.

    Args:
        plate: name of the plate.
        rows: how many rows it has.
        seen: how many of them a run sees.
        dim: the plate's dimension, from the right.
        outer: the latents outside of the plate; those with a learnt scale relative to it.
        inner: those inside, in the order of the model.
        start: where they start, of shape ``(seen, d)``.
    """

    plate: str
    rows: int
    seen: int
    dim: int
    outer: RelativeSpace
    inner: tuple[RowSite, ...]
    start: Tensor

    @classmethod
    def of(cls, trace: poutine.Trace, plate: str | None = None) -> "Structure":
        """Reads it off a run of the model; without a name the plate that leaves the fewest numbers together.

        Raises:
            ValueError: if there is no such plate with latents inside, or what is inside cannot be held.
        """
        nodes = dict(latent_nodes(trace))
        plates = _sizes(nodes.values(), plate)
        if plate is not None and plate not in plates:
            raise ValueError(
                f"expected the name of a plate with latents inside, got {plate!r}: the model has "
                f"{', '.join(map(repr, plates)) or 'none'}; rows are those of a with statement, with pyro.plate(...)"
            )
        if not plates:
            raise ValueError(
                "expected a model with latents inside of a plate, got none: put those of each row into "
                "with pyro.plate(name, rows), or take AutoFlow"
            )
        space = LatentSpace.of(trace)
        if space.held:
            raise ValueError(
                f"expected latents without obs_mask in a guide of rows, got {', '.join(map(repr, space.held))}: take "
                f"AutoFlow, or fit(..., plates=False)"
            )
        plate = plate or min(plates, key=lambda name: _together(name, nodes.values(), space))
        return cls._at(plate, trace, space)

    @classmethod
    def _at(cls, plate: str, trace: poutine.Trace, space: LatentSpace) -> "Structure":
        inner, parts, outer, start = [], [], [], 0
        for site in space.sites:
            node = trace.nodes[site.name]
            frame = _frame(node, plate)
            if frame is None:
                outer.append(replace(site, start=outer[-1].stop if outer else 0))
                continue
            axis = len(site.shape) - site.event_dim + frame.dim
            row = RowSite(site.name, site.support, site.shape, axis, site.plates, site.event_dim, start, site.dtype)
            inner.append(row)
            parts.append(row.rows(node["value"].detach()))
            start += row.size
        if start > WIDEST:
            raise ValueError(
                f"expected at most {WIDEST} latents in a row of plate {plate!r}, got {start}: name another plate, or "
                f"take AutoFlow"
            )
        frame = _frame(trace.nodes[inner[0].name], plate)
        rows = int(frame.size if frame.full_size is None else frame.full_size)
        values = {site.name: trace.nodes[site.name]["value"].detach() for site in outer}
        if not outer:
            raise ValueError(
                f"expected latents outside of the plate {plate!r}, got none: its rows are independent, one model each"
            )
        space = RelativeSpace(LatentSpace(outer, values))
        return cls(plate, rows, int(frame.size), frame.dim, space, tuple(inner), torch.cat(parts, -1))

    @property
    def width(self) -> int:
        """How many latents a row has."""
        return sum(site.size for site in self.inner)

    @property
    def is_subsampled(self) -> bool:
        """Whether a run of the model sees some rows only."""
        return self.seen < self.rows

    @property
    def size(self) -> int:
        """How many latents there are."""
        return self.outer.size + self.rows * self.width

    def values(self, g: Tensor, z: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Values by name, given globals ``(..., Dg)`` and rows ``(..., R, d)``.

        Returns:
            The values; the log-det of the globals ``(...)``; those of the rows' sites, ``(..., R)`` by name.
        """
        values, ladj = self.outer.constrain(g)
        ladjs = {}
        for site in self.inner:
            values[site.name], ladjs[site.name] = site.place(z)
        return values, ladj, ladjs

    def vectors(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse: globals ``(..., Dg)`` and rows ``(..., R, d)`` of values by name."""
        return self.outer.unconstrain(values)[0], torch.cat([site.rows(values[site.name]) for site in self.inner], -1)

    def joined(self, space: LatentSpace, g: Tensor, z: Tensor) -> Tensor:
        """Vectors ``(..., D)`` of all latents in the order of the model, of which ``space`` is one."""
        u = self.outer.settled(g)[0]
        own = {site.name: u[..., site.start : site.stop] for site in self.outer.sites}
        own |= {site.name: site.spread(z).flatten(z.dim() - 2) for site in self.inner}
        return torch.cat([own[site.name] for site in space.sites], -1)

    def parted(self, space: LatentSpace, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse: globals ``(..., Dg)``, rows ``(..., R, d)``, and the log-det ``(...)``, of vectors."""
        found = {site.name: vectors[..., site.start : site.stop] for site in space.sites}
        shapes = {site.name: site.unconstrained_shape for site in space.sites}
        rows = []
        for site in self.inner:
            lead = vectors.dim() - 1
            u = found[site.name].reshape((*vectors.shape[:-1], *shapes[site.name]))
            u = u.movedim(lead + site.axis, lead)
            rows.append(u.reshape((*u.shape[: lead + 1], site.size)))
        g, ladj = self.outer.unsettled(torch.cat([found[site.name] for site in self.outer.sites], -1))
        return g, torch.cat(rows, -1), ladj

    def __str__(self) -> str:
        seen = f", {self.seen} of them in a run" if self.is_subsampled else ""
        outer = ", ".join(f"{site.name} ({site.size})" for site in self.outer.sites)
        inner = ", ".join(f"{site.name} ({site.size})" for site in self.inner)
        return (
            f"globals: {outer}; {self.outer.size} numbers\n"
            f"rows of plate {self.plate!r}: {self.rows}{seen}; in each {inner}; {self.width} numbers"
        )


def _frame(node: dict, plate: str) -> object | None:
    """The plate around a site, if it is a dimension of its values."""
    return next((f for f in node["cond_indep_stack"] if f.name == plate and f.vectorized), None)


def _sizes(nodes: Iterable[dict], named: str | None) -> dict[str, int]:
    """The plates around latents by name, with their sizes; of one row that which is named alone."""
    frames = (f for node in nodes for f in node["cond_indep_stack"] if f.vectorized)
    return {f.name: int(f.size) for f in frames if f.size > 1 or f.name == named}


def _together(plate: str, nodes: Iterable[dict], space: LatentSpace) -> float:
    """About how many numbers have to be seen at once if a plate's rows are taken one by one; subsampled ones first."""
    frames = {node["name"]: _frame(node, plate) for node in nodes}
    inside = sum(site.size for site in space.sites if frames[site.name] is not None)
    frame = next(frame for frame in frames.values() if frame is not None)
    if frame.full_size not in (None, frame.size):
        return -math.inf
    return space.size - inside + inside / frame.size
