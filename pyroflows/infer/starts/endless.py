"""Whether a density has a finite integral: directions in which its mass has no end."""

import math

import torch
from torch import Tensor

from ...flows.linear import FULL_RANK_LIMIT
from ...seeds import seed_of, seeded
from .gaussian import Gaussian, LogDensity, score, values

# Doublings of the distance along a line, and those at its start and at its end that are compared.
DOUBLINGS, NEAR, FAR = 20, 3, 3
# How many of the widest axes and coordinates are followed; how many of them that seem to have no end are looked at.
AXES, SUSPECTS = 50, 8
# There, doublings of the distance, parallel lines at random places, and how often these are drawn.
FURTHER, BESIDE, LOOKS = 80, 32, 2
# Along what is no coordinate, so many of the narrowest scales, where the digits of double precision end.
DIGITS = 2.0**50
# Up to so many latents directions are sought in which the log density bends by less than this share of the most;
# these are corrected at so many standard deviations.
CURVED, LEVEL, OUT = 200, 1e-6, 2.0**20
# Rows that are evaluated at once.
ROWS = 1000


def improper(log_density: LogDensity, around: Gaussian) -> Tensor | None:
    """A direction in which the mass of a density has no end, so that its integral cannot be finite.

    Followed are the widest principal axes and coordinates of a Gaussian, from its mean out, to 500,000 of its
    standard deviations or to where the log density is no longer finite. There is no end where shells, each twice as
    far as the one before, hold more and more of the mass. (That a transform saturates far out does not count.)

    A density that grows on a line proves nothing: a line has no mass. In a hierarchy all effects can stand at their
    prior's mean as its scale goes to zero, which is a spike of no volume. And a wide prior has its end further out. So
    what seems to have no end is followed to 1e24 standard deviations, or to the last digits, on parallel lines
    through random places of the Gaussian; twice, by other places.

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
    lines, narrowest = _lines(around), torch.linalg.svdvals(around.scale_tril).min()
    if len(around.loc) <= CURVED:
        sizes, axes = _bends(log_density, around)
        lines = torch.cat([lines, _flattest(log_density, around, sizes, axes)])
        narrowest = narrowest.maximum(sizes.abs().max().rsqrt())
    lines = torch.cat([lines, -lines])
    lines = lines[lines.isfinite().all(-1) & lines.any(-1)]
    if not len(lines):
        return None
    far = 2.0 ** torch.arange(DOUBLINGS).to(around.loc)
    points = around.loc + far[:, None, None] * lines
    rise = _rise(_values(log_density, points), far)
    for i in rise.argsort(descending=True)[:SUSPECTS].tolist():
        if rise[i] > -math.inf and _has_mass(log_density, around, lines[i], narrowest):
            return lines[i] / lines[i].abs().max()
    return None


def _lines(around: Gaussian) -> Tensor:
    """One standard deviation along the widest coordinates and axes: ``(L, D)``."""
    own = around.scale_tril.norm(dim=1)
    lines = own.diag()[own.argsort(descending=True)[:AXES]]
    if len(own) <= FULL_RANK_LIMIT:
        axes, sizes, _ = torch.linalg.svd(around.scale_tril)
        lines = torch.cat([(axes * sizes).mT[:AXES], lines])
    return lines


def _bends(log_density: LogDensity, around: Gaussian) -> tuple[Tensor, Tensor]:
    """Second derivatives of the log density at the mean, ``(D,)``, along the columns of ``(D, D)``, smallest first."""
    steps, size = around.scale_tril.norm(dim=1), len(around.loc)
    places = torch.cat([around.loc + steps.diag(), around.loc - steps.diag()])
    above, below = score(log_density, places)[1].split(size)
    bends = (above - below) / 2 / steps[:, None]
    return torch.linalg.eigh((bends + bends.mT).nan_to_num(posinf=0.0, neginf=0.0) / 2)


def _flattest(log_density: LogDensity, around: Gaussian, sizes: Tensor, axes: Tensor) -> Tensor:
    """Directions ``(L, D)`` in which the log density bends least at the mean, as exact as digits allow.

    The axes of a Gaussian that was fitted leave a ridge after as many of its widths as they are exact to digits.
    """
    level = sizes.abs() < LEVEL * sizes.abs().max()
    if not level.any():
        return axes[:0]
    lines = (axes * (axes.mT @ around.scale_tril).norm(dim=1)).mT[level]
    # As Newton's method: from far out back to where the slope is none.
    slope = score(log_density, around.loc + OUT * lines)[1] - score(log_density, around.loc[None])[1]
    steep, rates = axes[:, ~level], sizes[~level]
    return lines - (slope @ steep / rates) @ steep.mT / OUT


def _has_mass(log_density: LogDensity, around: Gaussian, line: Tensor, narrowest: Tensor) -> bool:
    """Whether the average over parallel lines has no end either.

    Along what is no coordinate a ridge that is level is lost where digits end, which are those of its width.
    """
    far = 2.0 ** torch.arange(FURTHER).to(line)
    exact = int((far * line.norm() < DIGITS * narrowest).sum()) if line.count_nonzero() > 1 else 0
    for look in range(LOOKS):
        with seeded(seed_of(f"lines beside a line, {look}"), line.device):
            beside = around.sample(BESIDE)
        found = _values(log_density, beside + far[:, None, None] * line).logsumexp(-1, keepdim=True)
        level = exact > NEAR + FAR and -math.inf < _rise(found[:exact], far[:exact]).item() < far[exact - 1].log() + 1
        if not level and _rise(found, far).item() == -math.inf:
            return False
    return True


def _values(log_density: LogDensity, points: Tensor) -> Tensor:
    """The log density at points ``(..., D)``, of shape ``(...)``."""
    rows = points.flatten(0, -2).split(ROWS)
    return torch.cat([values(log_density, part) for part in rows]).reshape(points.shape[:-1])


def _rise(found: Tensor, far: Tensor) -> Tensor:
    """By how much the mass of shells is larger far out than nearby, -inf where it has an end.

    Args:
        found: log densities ``(doublings, L)`` on lines.
        far: the distances ``(doublings,)``.
    """
    mass = found - found[0] + far.log()[:, None]
    count = mass.isfinite().long().cumprod(0).sum(0)
    last, before = (mass.gather(0, (count - back).clamp_min(0)[None])[0] for back in (1, 1 + FAR))
    near, flat = mass[:NEAR].amax(0), 0.1 * FAR * math.log(2.0)
    most = torch.where(mass.isfinite(), mass, -math.inf).cummax(0).values.gather(0, (count - 1).clamp_min(0)[None])[0]
    unending = (count > NEAR) & (last > near) & (last >= before - flat) & (last >= most - flat)
    # A density whose digits are larger than what is looked for says nothing.
    digits = torch.finfo(found.dtype).eps * torch.where(mass.isfinite(), found, 0.0).abs().amax(0)
    return torch.where(unending & (digits < 0.1 + 0.01 * (last - near)), last - near, -math.inf)
