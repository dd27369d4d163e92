"""Several modes: finding them, a base with a component at each, their masses, and those that a flow missed."""

import math
import time
import warnings

import torch
from torch import Tensor

from ..bases import MixtureBase
from ..distributions import FlowDistribution
from .batch_and_match import batch_and_match
from .gaussian import Gaussian, LogDensity, elbo, values
from .lbfgs import climb
from .pathfinder import candidates

# Means closer than this many nats down from a Gaussian's top, about four standard deviations, are of one mode.
APART = 8.0
# A mode is missed if it holds at least exp(-5), or 0.7 %, of the mass, and the flow there less than exp(-3) of its own.
FAINT, BLIND = 5.0, 3.0
# Updates of a Gaussian that stands at a mode already.
MATCHES = 60


def find_modes(
    log_density: LogDensity, start: Gaussian, *, paths: int = 16, seconds: float = 6.0
) -> list[tuple[float, Gaussian]]:
    """Gaussians at the ends of L-BFGS paths that lie apart, with their ELBOs, best first.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, each row by itself; differentiable.
        start: paths begin at draws from it, widened to twice its scale.
        paths: how many paths.
        seconds: when to stop, about; half of it is for the paths.

    Returns:
        The ELBO in nats, a lower bound of the log mass around the mode, and the Gaussian, of each. Empty if no path
        ends where a Gaussian has a finite ELBO.

    Example:
        >>> two = lambda z: torch.logaddexp(-8 * (z[:, 0] - 3) ** 2, -8 * (z[:, 0] + 3) ** 2 - 1)
        >>> found = find_modes(two, Gaussian(torch.zeros(1).double(), torch.eye(1).double()))
        >>> [round(gaussian.loc.item(), 1) for _, gaussian in found]
        [3.0, -3.0]
    """
    deadline = time.monotonic() + seconds
    starts = start.loc + 2 * (start.sample(paths) - start.loc)
    starts = starts[values(log_density, starts).isfinite()]
    ends = climb(log_density, starts, seconds=seconds / 2) if len(starts) else []
    found: list[tuple[float, Gaussian]] = []
    for path in sorted(ends, key=lambda path: -path.values[-1]):
        if found and time.monotonic() > deadline:
            break
        if all(_apart(path.points[-1], other) for _, other in found):
            level, loc, root = candidates(log_density, [path], deadline)[0]
            if level > -math.inf:
                found.append(_refined(log_density, Gaussian.from_root(loc, root), deadline))
    apart: list[tuple[float, Gaussian]] = []
    for level, gaussian in sorted(found, key=lambda pair: -pair[0]):
        if level > -math.inf and all(_apart(gaussian.loc, other) for _, other in apart):
            apart.append((level, gaussian))
    return apart


def _refined(log_density: LogDensity, gaussian: Gaussian, deadline: float) -> tuple[float, Gaussian]:
    """The better by ELBO of a Gaussian and its match."""
    seconds = deadline - time.monotonic()
    matched = batch_and_match(log_density, gaussian, iterations=MATCHES, seconds=seconds)
    return max(((elbo(log_density, g), g) for g in (gaussian, matched)), key=lambda pair: pair[0])


def _apart(z: Tensor, gaussian: Gaussian) -> bool:
    top, here = gaussian.log_prob(torch.stack([gaussian.loc, z])).tolist()
    return top - here > APART


def mixture_at(modes: list[tuple[float, Gaussian]]) -> tuple[Gaussian, MixtureBase]:
    """The Gaussian with the moments of a mixture, and the mixture in the coordinates that this Gaussian whitens.

    Args:
        modes: log masses and Gaussians, as :func:`find_modes` returns them.
    """
    logits = torch.stack([g.loc.new_tensor(level) for level, g in modes]).log_softmax(0)
    locs, roots = torch.stack([g.loc for _, g in modes]), torch.stack([g.scale_tril for _, g in modes])
    masses = logits.exp()[:, None]
    center = (masses * locs).sum(0)
    off = locs - center
    covariance = (masses[..., None] * (roots @ roots.mT + off[:, :, None] * off[:, None])).sum(0)
    overall = Gaussian(center, torch.linalg.cholesky(covariance))
    to_base = torch.linalg.inv(overall.scale_tril)
    return overall, MixtureBase(logits, off @ to_base.mT, to_base @ roots)


@torch.no_grad()
def balance(posterior: FlowDistribution, log_density: LogDensity, num: int = 1024) -> None:
    """Moves the masses of a flow's :class:`~pyroflows.bases.MixtureBase` halfway to what importance weights ask for.

    The new mass of a component is its share of the weights of all draws. Repeated, this climbs to the masses that
    minimise the forward KL divergence, which has no trap in which a mode is lost.

    Args:
        posterior: a flow over a mixture, whose ``logits`` are changed in place.
        log_density: maps ``(B, D)`` to ``(B,)``.
        num: how many draws.

    References:
        Adaptive importance sampling in general mixture classes. Cappé, Douc, Guillin, Marin, Robert, 2008.
        https://arxiv.org/abs/0710.4242
    """
    base = posterior.base
    # As many draws of each component, so that chance does not decide on the masses.
    chosen = torch.arange(num, device=base.logits.device) % len(base.logits)
    x = base.draw(chosen)
    z, ladj = posterior.transform.call_and_ladj(x)
    weights = (values(log_density, z) - base.log_prob(x) + ladj + base.logits.log_softmax(0)[chosen]).softmax(0)
    asked = weights.to(x) @ base.shares(x)
    if asked.isfinite().all():
        # No component is given up for good while the flow still learns.
        base.logits.copy_((0.5 * base.logits.softmax(0) + 0.5 * asked).clamp_min(1e-4).log())


@torch.no_grad()
def missed_modes(
    posterior: FlowDistribution, log_density: LogDensity, modes: list[tuple[float, Gaussian]], level: float
) -> list[Gaussian]:
    """Modes that hold mass of which a flow has no idea.

    Args:
        posterior: the flow.
        log_density: maps ``(B, D)`` to ``(B,)``.
        modes: what :func:`find_modes` found.
        level: the flow's ELBO. A mode counts if its own is at most 5 nats lower, and if half of the draws around it
            have log weights under the flow that are 3 nats higher than this.
    """
    missed = []
    for own, gaussian in modes:
        z = gaussian.sample(64)
        log_q = posterior.log_prob(z.to(posterior.sample()))
        if own > level - FAINT and (values(log_density, z) - log_q).median() > level + BLIND:
            missed.append(gaussian)
    return missed


def warn_of_modes(
    posterior: FlowDistribution, log_density: LogDensity, start: Gaussian, level: float, finished: bool = True
) -> None:
    """Searches for modes, for about a second at most, and warns of those that a flow missed.

    Args:
        posterior: the flow.
        log_density: maps ``(B, D)`` to ``(B,)``; differentiable.
        start: where to search, see :func:`find_modes`.
        level: the flow's ELBO.
        finished: whether it had stopped rising; else more steps may be all that it takes.
    """
    try:
        found = find_modes(log_density, start, paths=8, seconds=1.0)
        missed = missed_modes(posterior, log_density, found, level)
    except torch.linalg.LinAlgError:  # a matrix far out, which must not take the fit with it
        return
    if missed:
        places = ", ".join(str([round(x, 2) for x in mode.loc[:6].tolist()]) for mode in missed[:4])
        cause, first = (
            ("several modes", "") if finished else ("several modes, or a fit that is not done", "more steps, ")
        )
        warnings.warn(
            f"{cause}: there is mass around {len(missed)} where the flow has next to none (in unconstrained "
            f"space, {places}): try {first}fit(..., modes={max(4, 2 * len(found))}), or objective=infer.Annealed()",
            stacklevel=3,
        )
