"""Whether a posterior has a finite integral: directions in which a density has no end."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .guides import FULL_RANK_LIMIT
from .infer import Gaussian
from .infer.gaussian import values
from .latents import LatentSpace
from .replay import ROWS

# Doublings of the distance along a direction, and those at its start and at its end that are compared.
DOUBLINGS, NEAR, FAR = 20, 3, 3
# How many of the widest axes and coordinates are followed; how far from the start, or how much wider, is suspicious.
AXES, RUNAWAY = 50, 100.0
IMPROPER = "The posterior seems improper"


def check_proper(log_density: Callable[[Tensor], Tensor], space: LatentSpace, found: Gaussian, start: Gaussian) -> None:
    """Raises if a Gaussian is far from its start, or far wider, and there is a direction without an end."""
    moved = torch.stack([found.loc - start.loc, found.scale_tril.norm(dim=1)]).abs() / start.scale_tril.norm(dim=1)
    direction = endless(log_density, found, start) if (moved > RUNAWAY).any() else None
    if direction is not None:
        raise ValueError(f"expected a proper posterior. {told(direction, space)}")


def improper(log_density: Callable[[Tensor], Tensor], around: Gaussian) -> Tensor | None:
    """A direction in which a density does not fall as fast as 1 / distance, so that its integral cannot be finite.

    Followed are the widest principal axes and coordinates of a Gaussian, from its mean out, to 500,000 of its
    standard deviations or to where the log density is no longer finite. There is no end where shells, each twice as
    far as the one before, hold more and more of the mass. (That a transform saturates far out does not count.)

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``.
        around: a Gaussian around the mass, or where a search began.

    Returns:
        A direction ``(D,)`` whose largest number is 1 or -1, or None.

    Example:
        >>> flat = lambda z: -z[:, 0].square()  # nothing holds the second dimension
        >>> improper(flat, Gaussian(torch.zeros(2).double(), torch.eye(2).double())).abs()
        tensor([0., 1.], dtype=torch.float64)
    """
    own = around.scale_tril.norm(dim=1)
    lines = own.diag()[own.argsort(descending=True)[:AXES]]
    if len(own) <= FULL_RANK_LIMIT:
        axes, sizes, _ = torch.linalg.svd(around.scale_tril)
        lines = torch.cat([(axes * sizes).mT[:AXES], lines])
    lines = torch.cat([lines, -lines])
    far = 2.0 ** torch.arange(DOUBLINGS).to(lines)
    points = around.loc + far[:, None, None] * lines
    found = torch.cat([values(log_density, rows) for rows in points.flatten(0, 1).split(ROWS)]).reshape(DOUBLINGS, -1)
    mass = found - found[0] + far.log()[:, None]
    count = mass.isfinite().long().cumprod(0).sum(0)
    last, before = (mass.gather(0, (count - back).clamp_min(0)[None])[0] for back in (1, 1 + FAR))
    unending = (count > NEAR) & (last > mass[:NEAR].amax(0)) & (last > before - 0.1 * FAR * math.log(2.0))
    if not unending.any():
        return None
    line = lines[unending.long().argmax()]
    return line / line.abs().max()


def endless(log_density: Callable[[Tensor], Tensor], found: Gaussian, start: Gaussian) -> Tensor | None:
    """A direction without an end from what was found, or, where that is too far out for rounding, halfway there."""
    growth = found.scale_tril.norm(dim=1).max() / start.scale_tril.norm(dim=1).max()
    for around in (found, Gaussian(start.loc, found.scale_tril / growth.sqrt())):
        direction = improper(log_density, around)
        if direction is not None:
            return direction
    return None


def told(direction: Tensor, space: LatentSpace) -> str:
    """The sentence on a direction without an end."""
    large = (direction.abs() > 0.2).nonzero().flatten().tolist()
    terms = [f"{'+' if direction[i] > 0 else '-'} {_label(space, i)}" for i in large[:4]] + ["..."] * (len(large) > 4)
    return (
        f"{IMPROPER}: the ELBO grows without bound, as the density does not fall along {' '.join(terms)} (in "
        f"unconstrained space): give it a proper prior, or data that say something about it"
    )


def _label(space: LatentSpace, i: int) -> str:
    """The name of an unconstrained number."""
    site = next(site for site in space.sites if i < site.stop)
    place = i - site.start if site.held is None else site.held.free[i - site.start]
    return repr(site.name) + (f"[{place}]" if math.prod(site.unconstrained_shape) > 1 else "")
