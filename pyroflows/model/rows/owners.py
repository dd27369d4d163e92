"""Which row of a plate each datum outside of it is of, from what moves its density."""

from collections.abc import Callable, Sequence

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from .structure import Structure

Values = Callable[[Tensor, Tensor], dict[str, Tensor]]
# A quotient of two derivatives is a row's number but for rounding, by this much in double and in single precision.
DOUBLE, SINGLE = 1e-3, 0.2


def owners_of(values: Values, points: Sequence[tuple[Tensor, Tensor]], structure: Structure) -> dict[str, Tensor]:
    """The row of each datum, by site, for sites that depend on rows; those of no row have the number after the last.

    Two derivatives of each log density are taken, one as all rows move alike and one as each moves by its number from 1
    on: the quotient is the number of the one row that moves it.

    Args:
        values: maps globals ``(Dg,)`` and rows ``(R, d)`` to log densities ``(N,)`` by site.
        points: where it is looked at.
        structure: the rows.

    Raises:
        ValueError: if a datum depends on several rows, or data reach across a plate of which a run sees some rows.
    """
    found: dict[str, Tensor] = {}
    for g, z in points:
        ones = torch.ones_like(z)
        numbers = torch.arange(1, 1 + len(z), device=z.device).to(z)[:, None].expand_as(z)
        for column in range(z.shape[-1]):
            only = torch.zeros_like(z)
            only[:, column] = 1
            alike, numbered = (_moved(values, g, z, only * by) for by in (ones, numbers))
            for name in alike:
                rows = _rows(name, alike[name], numbered[name], structure)
                if name not in found:
                    found[name] = torch.full_like(rows, len(z))
                found[name] = _joined(name, found[name], rows, len(z), structure)
    found = {name: rows for name, rows in found.items() if (rows < structure.seen).any()}
    if found and structure.is_subsampled:
        raise ValueError(
            f"expected data inside of the plate {structure.plate!r}, of which a run sees {structure.seen} of "
            f"{structure.rows} rows, got the site {next(iter(found))!r} outside that depends on them: put it inside "
            f"and index its data by the plate's rows, y[rows]"
        )
    return found


def elements(node: dict) -> Tensor:
    """The log densities of a site's data, one by one where several that are independent are one event.

    Args:
        node: the site, in a trace.
    """
    fn, inner = node["fn"], 0
    while isinstance(fn, Independent):
        fn, inner = fn.base_dist, inner + fn.reinterpreted_batch_ndims
    by_datum = (
        part[(..., *[None] * inner)] if isinstance(part, Tensor) and part.dim() else part
        for part in (node["scale"], node["mask"])
    )
    return scale_and_mask(fn.log_prob(node["value"], *node["args"], **node["kwargs"]), *by_datum)


def _moved(values: Values, g: Tensor, z: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """The derivatives of log densities as rows move in a direction, by two passes backward."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        found = {name: value for name, value in values(g.detach(), at).items() if value.requires_grad}
        moved = {}
        for name, value in found.items():
            weights = torch.zeros_like(value).requires_grad_()
            (slope,) = torch.autograd.grad(value, at, weights, create_graph=True)
            (along,) = torch.autograd.grad((slope * direction).sum(), weights, materialize_grads=True)
            moved[name] = along.detach()
    return moved


def _rows(name: str, alike: Tensor, numbered: Tensor, structure: Structure) -> Tensor:
    """Numbers of rows from 0 on, or that after the last where nothing moves."""
    moves = (alike != 0) | (numbered != 0)
    number = torch.where(moves, numbered / torch.where(alike != 0, alike, 1.0), 1.0)
    rows = number.round()
    off = (number - rows).abs() > (DOUBLE if alike.dtype == torch.float64 else SINGLE)
    if (moves & (off | (rows < 1) | (rows > structure.seen))).any():
        raise _several(name, structure)
    return torch.where(moves, rows - 1, structure.seen).long()


def _joined(name: str, old: Tensor, new: Tensor, none: int, structure: Structure) -> Tensor:
    if ((old != none) & (new != none) & (old != new)).any():
        raise _several(name, structure)
    return torch.minimum(old, new)


def _several(name: str, structure: Structure) -> ValueError:
    return ValueError(
        f"expected data that depend on one row of plate {structure.plate!r} each, got the site {name!r} with data that "
        f"depend on several: rows are not independent given the latents outside, or data of several are one event, in "
        f"the place of which a plate of data takes them apart. Or name another plate, or take AutoFlow or fit(..., "
        f"plates=False)"
    )
