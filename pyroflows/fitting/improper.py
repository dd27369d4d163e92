"""What is said of a posterior whose integral is infinite, and when it is looked for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..infer import Gaussian, improper
from ..model import LatentSpace

# How far from the start, or how much wider, is suspicious.
RUNAWAY = 100.0
IMPROPER = "The posterior seems improper"


def check_proper(log_density: Callable[[Tensor], Tensor], space: LatentSpace, found: Gaussian, start: Gaussian) -> None:
    """Raises if a Gaussian is far from its start, or far wider, and there is a direction without an end."""
    moved = torch.stack([found.loc - start.loc, found.scale_tril.norm(dim=1)]).abs() / start.scale_tril.norm(dim=1)
    direction = endless(log_density, found, start) if (moved > RUNAWAY).any() else None
    if direction is not None:
        raise ValueError(f"expected a proper posterior. {told(direction, space)}")


def endless(log_density: Callable[[Tensor], Tensor], found: Gaussian, start: Gaussian) -> Tensor | None:
    """A direction without an end from what was found, or, where that is too far out for rounding, from nearer by."""
    growth = found.scale_tril.norm(dim=1).max() / start.scale_tril.norm(dim=1).max()
    axes, sizes, _ = torch.linalg.svd(found.scale_tril.nan_to_num())
    nearer = axes * sizes.clamp(sizes.max() * 1e-15, sizes.max() / growth.sqrt().clamp_min(1.0))
    for around in (found, Gaussian.from_root(start.loc, nearer), start):
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
