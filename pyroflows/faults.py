"""What is wrong with a log joint where a guide stands: no end, no value, no slope, or slopes that miss changes."""

from collections.abc import Iterator

import numpy as np
import pyro
import torch
from torch import Tensor

from .guides import AutoFlow
from .improper import endless, told
from .infer import Gaussian, LogJoint
from .replay import ROWS

# Draws whose values and whose slopes are looked at, pairs between which slopes are summed up, places between them.
VALUES, SLOPES, PAIRS, NODES = 4000, 256, 8, 16
# The part of a change that slopes may miss, and nats beside it.
SHARE, NATS = 0.1, 0.05


def faults(density: LogJoint, guide: AutoFlow, start: Gaussian) -> str:
    """What is wrong with a log joint where a guide stands, in sentences that name sites and remedies.

    Args:
        density: the log joint.
        guide: whose draws are looked at, or, if it has run away, those from the start.
        start: where the search began.

    Returns:
        The sentences, each after a space; empty if there is nothing to say.
    """
    with torch.no_grad(), pyro.validation_enabled(False):
        z = guide.get_posterior().sample((VALUES,)).to(start.loc)
    if not z.isfinite().all():
        z = start.sample(VALUES)
    try:
        direction = endless(density, _spread(z), start)
        found = [told(direction, density.space) + "."] if direction is not None else []
        return "".join(f" {sentence}" for sentence in [*found, *_holes(density, z), *_misses(density, z)])
    except (RuntimeError, ValueError, ArithmeticError):  # an explanation must not take the place of what it explains
        return ""


def _spread(z: Tensor) -> Gaussian:
    """The Gaussian with the moments of draws, or only their variances where there are too few."""
    off = (z - z.mean(0)) / len(z) ** 0.5
    if len(z) > 2 * z.shape[1]:
        return Gaussian.from_root(z.mean(0), torch.linalg.qr(off, mode="r").R.mT)
    return Gaussian(z.mean(0), off.norm(dim=0).diag())


def _holes(density: LogJoint, z: Tensor) -> Iterator[str]:
    """Sites whose log density, or only its gradient, is not finite at some draws."""
    with torch.no_grad():
        parts = [density.terms(rows) for rows in z.split(ROWS)]
    slopes = _terms(density, z[:SLOPES])
    for name in parts[0]:
        value = torch.cat([part[name] for part in parts])
        bad = ~value.isfinite()
        blind = ~slopes[name][1].isfinite().all(-1) & ~bad[:SLOPES]
        if bad.any():
            yield (
                f"The log density of {name} is {value[bad][0].item()} at {int(bad.sum())} of {len(z)} draws, as at "
                f"{_place(density, z[bad][0])}: a flow has draws everywhere, so declare the support in the prior, or "
                f"keep the density finite."
            )
        if blind.any():
            yield (
                f"The log density of {name} is finite but its gradient is not at {int(blind.sum())} of {SLOPES} draws, "
                f"as at {_place(density, z[:SLOPES][blind][0])}: where torch.where drops a branch, that must be finite "
                f"too."
            )


def _misses(density: LogJoint, z: Tensor) -> Iterator[str]:
    """Sites whose gradient, summed up on the way from draw to draw, does not give the change of the log density."""
    if density.minibatch:  # no two calls see the same data
        return
    ends = z[: PAIRS + 1]
    coarse, fine = (_summed(density, ends, nodes) for nodes in (NODES, 2 * NODES))
    for name, (value, _) in _terms(density, ends).items():
        change = value.diff()
        summed, before = (found.get(name, torch.zeros_like(change)) for found in (fine, coarse))
        # What more nodes change is the error of the sum: between two modes a way leads over kinks and through chasms.
        gap = ((change - summed).abs() - (summed - before).abs()).clamp_min(0)
        whole = gap.isfinite()
        rounding = 100 * torch.finfo(value.dtype).eps * value[value.isfinite()].abs().sum()
        missed, moved = gap[whole].mean().item(), change[whole].abs().mean().item()
        if whole.any() and missed > NATS + SHARE * moved + rounding:
            yield (
                f"The gradient of {name} misses {missed:.2g} of {moved:.2g} nats by which it changes between draws: "
                f"values pass through .detach(), .item(), rounding or a step, which training cannot see."
            )


def _summed(density: LogJoint, ends: Tensor, count: int) -> dict[str, Tensor]:
    """Slopes of each site, summed up on the straight ways from row to row by so many nodes: ``(S - 1,)``."""
    nodes, shares = (torch.as_tensor(x).to(ends) / 2 for x in np.polynomial.legendre.leggauss(count))
    steps = ends.diff(dim=0)
    way = ends[:-1] + (nodes + 0.5)[:, None, None] * steps
    found = _terms(density, way.flatten(0, 1)).items()
    return {name: ((slope.view(way.shape) * steps).sum(-1) * shares[:, None]).sum(0) for name, (_, slope) in found}


def _terms(density: LogJoint, z: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Log density ``(S,)`` and gradient ``(S, D)`` of each site at vectors ``(S, D)``."""
    z, found = z.detach().requires_grad_(), {}
    with torch.enable_grad():
        for name, value in density.terms(z).items():
            slope = torch.zeros_like(z)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), z, retain_graph=True, materialize_grads=True)
            found[name] = value.detach(), slope
    return found


def _place(density: LogJoint, z: Tensor) -> str:
    """A point in the words of the model, of which a few numbers are shown."""
    shown = [
        f"{name}{list(np.unravel_index(i, value.shape)) if value.dim() else ''} = {number:.3g}".replace("np.int64", "")
        for name, value in density.constrain(z).items()
        for i, number in enumerate(value.flatten()[:2].tolist())
    ]
    return ", ".join(shown[:4])
