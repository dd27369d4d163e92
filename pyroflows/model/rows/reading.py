"""What is found out about a model's rows before they are used: whose data are whose, and that rows are independent."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...seeds import seed_of, seeded
from .owners import owners_of
from .row_runs import RowRuns

# Log densities that differ by less, relative to their size and one, are the same but for rounding.
DOUBLE, SINGLE = 1e-6, 1e-3
# Points at which rows are tried, as far from the start as this.
POINTS, AWAY = 2, 0.5

Point = tuple[Tensor, Tensor]


class Reading(NamedTuple):
    """What is found out.

    Args:
        gaussian: sites of the rows whose density is that of a Gaussian, given the globals.
        follows: whether the rows of a subsampled plate can be chosen; not so where the caller passes data of some.
        numbers: how many numbers a run computes, about.
    """

    gaussian: set[str]
    follows: bool
    numbers: int


def read(runs: RowRuns) -> Reading:
    """Finds the row of each datum, which is noted in ``runs``, and tries the rows at random points.

    Raises:
        ValueError: if rows are not independent given the globals.
    """
    structure, plate = runs.structure, runs.structure.plate
    g, z = structure.outer.start, structure.start
    index = runs.first.nodes[structure.plate]["value"] if structure.is_subsampled else None
    with seeded(seed_of("independence of rows"), g.device), runs.settings():
        points = [(g + AWAY * torch.randn_like(g), z + AWAY * torch.randn_like(z)) for _ in range(POINTS)]
        outer = {site.name for site in structure.outer.sites}
        loose = [k for k, v in runs.by_site(*points[0], index)[1].items() if not v.dim() and k not in outer]
        runs.owners = owners_of(partial(runs.elements, loose, index), points, structure)
        for point in points:
            _check(runs, point, index)
        _check_outer(runs, points, index)
        follows = not structure.is_subsampled or _is_followed(runs, points[0], index)
        with torch.no_grad():
            nodes = runs.trace(g, z, index)[0].nodes.values()
            numbers = sum(node["value"].numel() for node in nodes if node["type"] == "sample" and node["name"] != plate)
        rows = {site.name for site in structure.inner}
        return Reading({name for name in rows if _is_quadratic(runs, name, points, index)}, follows, numbers)


@torch.no_grad()
def _check(runs: RowRuns, point: Point, index: Tensor | None) -> None:
    """Moves some rows, and raises if the terms of others, or of none, move with them."""
    g, z = point
    still = torch.rand(len(z), device=z.device) < 0.5
    other = torch.where(still[:, None], z, z + AWAY * torch.randn_like(z))
    (own, before), (moved, after) = runs.by_site(g, z, index), runs.by_site(g, other, index)
    for name, old in {**before, "": own}.items():
        new = moved if name == "" else after[name]
        if not _same(*((old[still], new[still]) if old.dim() else (old, new))):
            raise ValueError(
                f"expected rows of plate {runs.structure.plate!r} that are independent given the latents outside, got "
                f"{f'the site {name!r}' if name else 'data'} with terms that other rows move: a chain, a sum over "
                f"rows, or a plate across them. Name another plate, or take AutoFlow or fit(..., plates=False)"
            )


def _check_outer(runs: RowRuns, points: list[Point], index: Tensor | None) -> None:
    """Raises if others set the scale of a prior outside of the plate: such globals have a mode at a scale of zero."""
    (g, z), (other, _) = points
    for site in runs.structure.outer.sites:
        moved = other.clone()
        moved[site.start : site.stop] = g[site.start : site.stop]
        bends = [_bend(lambda at: runs.by_site(at, z, index)[1][site.name], at) for at in (g, moved)]  # noqa: B023
        if not _same(*(bend[site.start : site.stop] for bend in bends)):
            raise ValueError(
                f"expected latents outside of the plate {runs.structure.plate!r} with priors of a fixed scale, got the "
                f"site {site.name!r} whose prior other latents make narrow or wide: sample standard normals and "
                f"multiply them by the scale, or take AutoFlow or fit(..., plates=False)"
            )


@torch.no_grad()
def _is_followed(runs: RowRuns, point: Point, index: Tensor) -> bool:
    """Whether the model sees the rows that are chosen: turned around, and others in place of half, none changes."""
    (g, z), half = point, (len(index) + 1) // 2
    other = torch.cat([index.flip(0)[:half], ((index + 1) % runs.structure.rows)[half:]])
    before, after = (runs.by_site(g, *at)[1] for at in ((z, index), (z.flip(0), other)))
    return all(_same(value.flip(0)[:half], after[name][:half]) for name, value in before.items() if value.dim())


def _is_quadratic(runs: RowRuns, name: str, points: list[Point], index: Tensor | None) -> bool:
    """Whether the density of a site of the rows bends alike wherever they are."""
    for g, z in points:
        bends = [_bend(lambda at: runs.by_site(g, at, index)[1][name], z + by) for by in (0.0, 1.0)]  # noqa: B023
        if not _same(*bends):
            return False
    return True


def _bend(density: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The curvature of a density along one direction, of the shape of ``at``."""
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        value = density(at).sum()
        if not value.requires_grad:
            return torch.zeros_like(at)
        (slope,) = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:
            return torch.zeros_like(at)
        weights = torch.linspace(1.0, 2.0, at.shape[-1]).to(at)
        return torch.autograd.grad((slope * weights).sum(), at, materialize_grads=True)[0]


def _same(first: Tensor, second: Tensor) -> bool:
    close = DOUBLE if first.dtype == torch.float64 else SINGLE
    return torch.allclose(first, second, rtol=close, atol=close, equal_nan=True)
