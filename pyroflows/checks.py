"""What is wrong with a fit: sites without value or slope, slopes that miss changes, directions without an end."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pyro
import torch
from torch import Tensor

from .guides import FULL_RANK_LIMIT, AutoFlow
from .infer import Gaussian, LogJoint, Trainer
from .infer.gaussian import values
from .latents import LatentSpace, Model, trace_of
from .replay import ROWS

# Doublings of the distance along a direction, and those at its start and at its end that are compared.
DOUBLINGS, NEAR, FAR = 20, 3, 3
# How many of the widest axes and coordinates are followed; how far from the start, or how much wider, is suspicious.
AXES, RUNAWAY = 50, 100.0
# Draws whose values and whose slopes are looked at, pairs between which slopes are summed up, places between them.
VALUES, SLOPES, PAIRS, NODES = 4000, 256, 8, 16
# The part of a change that slopes may miss, and nats beside it.
SHARE, NATS = 0.1, 0.05
IMPROPER, INTERRUPTED = "The posterior seems improper", "interrupted"


def check_options(
    precision: str, compile: bool | None, *, lr: float, tolerance: float, guide: object, objective: object
) -> None:
    """Raises unless what ``fit`` is given is of the kinds that it knows."""
    for name, value, known in (
        ("precision", precision, ("mixed", "single", "double")),
        ("compile", compile, (None, True, False)),
    ):
        if value not in known:
            raise ValueError(f"fit expected {name} to be one of {', '.join(map(repr, known))}, got {value!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"fit expected a learning rate lr > 0, got {lr!r}")
    if not tolerance >= 0:
        raise ValueError(f"fit expected tolerance >= 0, got {tolerance!r}")
    if not isinstance(guide, AutoFlow | None):
        raise TypeError(f"fit expected guide to be an AutoFlow, got {type(guide).__name__}: train others with SVI")
    if not (objective is None or callable(objective)):
        raise TypeError(f"fit expected objective to be None or one of pyroflows.infer.objectives, got {objective!r}")


def check_guide(guide: AutoFlow, model: Model, args: tuple, kwargs: dict) -> None:
    """Raises unless a guide was set up for the latents of this model."""
    with pyro.validation_enabled(False):  # only names and shapes matter here
        space = LatentSpace.of(trace_of(model, args, kwargs))
    own, wanted = ({s.name: tuple(s.shape) for s in found.sites} for found in (guide.space, space))
    if own != wanted:
        raise ValueError(f"fit expected a guide of the model's latents {wanted}, got one of {own}: use a new guide")


def check_slope(density: LogJoint) -> None:
    """Raises unless the log joint depends on the latents in a way that gradients can follow."""
    z = density.space.start.detach()[None].requires_grad_()
    with torch.enable_grad():
        moves = density(z).requires_grad
    if not moves:
        raise ValueError(
            "expected a log density with a gradient, got one that no latent moves: values pass through .detach(), "
            ".item(), NumPy or an integer"
        )


def check_proper(log_density: Callable[[Tensor], Tensor], space: LatentSpace, found: Gaussian, start: Gaussian) -> None:
    """Raises if a Gaussian is far from its start, or far wider, and there is a direction without an end."""
    moved = torch.stack([found.loc - start.loc, found.scale_tril.norm(dim=1)]).abs() / start.scale_tril.norm(dim=1)
    endless = _endless(log_density, found, start) if (moved > RUNAWAY).any() else None
    if endless is not None:
        raise ValueError(f"expected a proper posterior. {_improper(endless, space)}")


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
    endless = (count > NEAR) & (last > mass[:NEAR].amax(0)) & (last > before - 0.1 * FAR * math.log(2.0))
    if not endless.any():
        return None
    line = lines[endless.long().argmax()]
    return line / line.abs().max()


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
        endless = _endless(density, _spread(z), start)
        found = [_improper(endless, density.space) + "."] if endless is not None else []
        return "".join(f" {sentence}" for sentence in [*found, *_holes(density, z), *_misses(density, z)])
    except (RuntimeError, ValueError, ArithmeticError):  # an explanation must not take the place of what it explains
        return ""


@contextlib.contextmanager
def explained(density: LogJoint, guide: AutoFlow, start: Gaussian) -> Iterator[None]:
    """Adds to errors of numbers that are not finite what is wrong with the model."""
    try:
        yield
    except FloatingPointError as error:
        found = faults(density, guide, start)
        if IMPROPER in found:
            raise ValueError(f"expected a proper posterior.{found}") from error
        raise FloatingPointError(f"{error}.{found}") from error


@contextlib.contextmanager
def kept(trainer: Trainer) -> Iterator[None]:
    """Ends training with the average of the steps so far, and a warning, where the user or bad steps break it off."""
    try:
        yield
    except (KeyboardInterrupt, FloatingPointError) as error:
        trainer.finish()
        reason = str(error) or INTERRUPTED
        trainer.history.stopped = reason.split(":")[0]
        warnings.warn(
            f"fit: broken off after {trainer.done} steps of the flow: the posterior is that of the steps so far "
            f"({reason})",
            stacklevel=4,
        )


def _spread(z: Tensor) -> Gaussian:
    """The Gaussian with the moments of draws, or only their variances where there are too few."""
    off = (z - z.mean(0)) / len(z) ** 0.5
    if len(z) > 2 * z.shape[1]:
        return Gaussian.from_root(z.mean(0), torch.linalg.qr(off, mode="r").R.mT)
    return Gaussian(z.mean(0), off.norm(dim=0).diag())


def _endless(log_density: Callable[[Tensor], Tensor], found: Gaussian, start: Gaussian) -> Tensor | None:
    """A direction without an end from what was found, or, where that is too far out for rounding, halfway there."""
    growth = found.scale_tril.norm(dim=1).max() / start.scale_tril.norm(dim=1).max()
    for around in (found, Gaussian(start.loc, found.scale_tril / growth.sqrt())):
        direction = improper(log_density, around)
        if direction is not None:
            return direction
    return None


def _improper(direction: Tensor, space: LatentSpace) -> str:
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
    return repr(site.name) + (f"[{i - site.start}]" if site.size > 1 else "")


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
