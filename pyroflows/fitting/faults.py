"""What is wrong with a log joint where a guide stands: no end, no value, no slope, or slopes that miss changes."""

from collections.abc import Iterator

import numpy as np
import pyro
import torch
from torch import Tensor

from ..guides import AutoFlow
from ..infer import Gaussian
from ..model import LogJoint
from ..model.noncentered import noncentered
from ..model.simulate import ROWS
from .improper import endless, told

# Draws whose values and whose slopes are looked at, pairs between which slopes are summed up, places between them.
VALUES, SLOPES, PAIRS, NODES = 4000, 256, 8, 16
# How often, and at how many places of each way, the distance of two places is halved; where it is parted at last.
HALVINGS, WORST, GOLDEN = 24, 6, 0.382
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
        direction = _endless(density, z, start)
        found = [told(direction, density.space) + "."] if direction is not None else []
        return "".join(f" {sentence}" for sentence in [*found, *_holes(density, z), *misses(density, z)])
    except (RuntimeError, ValueError, ArithmeticError):  # an explanation must not take the place of what it explains
        return ""


def _endless(density: LogJoint, z: Tensor, start: Gaussian) -> Tensor | None:
    """A direction without an end, non-centred where that can be: a funnel, which no straight line stays in, is none."""
    fixed = noncentered(density)
    if fixed is None:
        return endless(density, _spread(z), start)

    def inner(u: Tensor) -> Tensor:
        z, ladj = fixed.call_and_ladj(u)
        return density(z) + ladj

    with torch.no_grad():
        return endless(inner, _spread(fixed.inv(z)), Gaussian(fixed.inv(start.loc), start.scale_tril))


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


def misses(density: LogJoint, z: Tensor) -> Iterator[str]:
    """Sites whose gradient, summed up on the way from draw to draw, does not give the change of the log density.

    Two looks, at other draws each, have to find the same.
    """
    if density.minibatch:  # no two calls see the same data
        return
    looks = [_Ways(density, ends) for ends in z[: 2 * PAIRS + 2].split(PAIRS + 1)]
    for name in looks[0].terms:
        found = [look.missed(name) for look in looks]
        if all(missed > NATS + SHARE * moved for missed, moved in found):
            missed, moved = (sum(numbers) / len(found) for numbers in zip(*found, strict=True))
            yield (
                f"The gradient of {name} misses {missed:.2g} of {moved:.2g} nats by which it changes between draws: "
                f"values pass through .detach(), .item(), rounding or a step, which training cannot see."
            )


class _Ways:
    """Straight ways from row to row, at whose places the log density and its slope are known.

    Args:
        density: the log joint.
        ends: from where to where they lead, ``(W + 1, D)``.
    """

    def __init__(self, density: LogJoint, ends: Tensor) -> None:
        self.density, self.start, self.steps = density, ends[:-1, None], ends.diff(dim=0)[:, None]
        self.places = torch.linspace(0, 1, NODES + 1).to(ends).expand(len(ends) - 1, -1)
        self.terms = self._at(self.places)

    def _at(self, places: Tensor, only: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Log density of each site and its slope along the way, ``(W, n)`` both, at places of that shape."""
        way = self.start + places[..., None] * self.steps
        found = _terms(self.density, way.flatten(0, 1), only).items()
        return {name: (v.view(places.shape), (s.view(way.shape) * self.steps).sum(-1)) for name, (v, s) in found}

    def missed(self, name: str) -> tuple[float, float]:
        """What a site's slopes miss on a way, and what the site changes, in nats.

        Where slopes do not add up to the change, the places come closer and closer together. A smooth density, however
        steep, is straight then, and its slopes say what they cannot miss; a step stays one. At last all places are
        doubled: what that changes is not sure.
        """
        known = torch.stack([self.places, *self.terms[name]])
        for _ in range(HALVINGS):
            gap = _gaps(known)[0].abs()
            if not (gap > NATS / NODES).any():
                break
            known = self._with(known, gap.nan_to_num(posinf=0.0).topk(WORST).indices, 0.5, name)
        gap, value = _gaps(known)[0], known[1]
        again, sure = _gaps(self._with(known, torch.arange(gap.shape[1]).expand_as(gap), GOLDEN, name))
        doubt = (gap - again.unflatten(-1, (-1, 2)).sum(-1)).abs().sum(-1)
        missed, moved = (again.sign() * sure).sum(-1).abs() - doubt, (value[:, -1] - value[:, 0]).abs()
        whole = value.isfinite().all(-1) & missed.isfinite()
        if not whole.any():
            return 0.0, 0.0
        rounding = 100 * torch.finfo(value.dtype).eps * value[whole].abs().amax().item()
        return missed[whole].mean().item() - rounding, moved[whole].mean().item()

    def _with(self, known: Tensor, gaps: Tensor, share: float, name: str) -> Tensor:
        """What is known ``(3, W, n)`` with one more place in each of these gaps ``(W, m)``, at this share of it."""
        places = (known[0, :, :-1] + share * known[0].diff()).gather(1, gaps)
        known = torch.cat([known, torch.stack([places, *self._at(places, name)[name]])], dim=-1)
        return known.gather(-1, known[0].argsort(dim=-1, stable=True).expand_as(known))


def _gaps(known: Tensor) -> tuple[Tensor, Tensor]:
    """What slopes miss of the change from each place to the next, and how much of that is no matter of their number.

    Args:
        known: places, log densities and slopes, ``(3, W, n)``.
    """
    places, value, slope = known
    apart = places.diff()
    gap = value.diff() - (slope[:, 1:] + slope[:, :-1]) / 2 * apart
    return gap, (gap.abs() - slope.diff().abs() * apart).clamp_min(0)


def _terms(density: LogJoint, z: Tensor, only: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Log density ``(S,)`` and gradient ``(S, D)`` of each site, or of one, at vectors ``(S, D)``."""
    z, found = z.detach().requires_grad_(), {}
    with torch.enable_grad():
        for name, value in density.terms(z).items():
            if only not in (None, name):
                continue
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
