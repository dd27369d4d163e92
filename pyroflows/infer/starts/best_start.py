"""Where a variational fit starts: the best of several Gaussians."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from .batch_and_match import batch_and_match
from .counted import Counted
from .gaussian import Gaussian, LogDensity, elbo
from .pathfinder import pathfinder


@dataclass(frozen=True)
class Attempt:
    """One Gaussian that was tried.

    Args:
        name: how it was found.
        elbo: its ELBO in nats, ``-inf`` if the log density was not finite at a draw.
        work: what it took, in seconds by counted operations.
        gaussian: what was found, None if nothing.
    """

    name: str
    elbo: float
    work: float
    gaussian: Gaussian | None = field(repr=False)


def best_start(
    log_density: LogDensity,
    start: Gaussian,
    *,
    work: float = 6.0,
    note: Callable[[Attempt], object] = lambda attempt: None,
) -> Gaussian:
    """The best, by ELBO over 512 draws, of a plain start, a path, and batch and match from both.

    Neither start alone will do: scores at draws far from a sharp posterior lead nowhere, and paths can end in a trap
    where density is high and volume small.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, each row by itself; differentiable.
        start: the plain start; a path begins at its mean, too. Its dtype (float64 is safe) and device are used.
        work: most for the path and for each match, in seconds by counted operations, see
            :class:`~pyroflows.infer.Counted`; small smooth models need far less.
        note: is told of each attempt.

    Raises:
        FloatingPointError: if no ELBO is finite.

    Example:
        >>> import torch
        >>> target = Gaussian(torch.tensor([3.0, -1.0]).double(), torch.tensor([[2.0, 0.0], [1.0, 0.1]]).double())
        >>> start = Gaussian(torch.zeros(2).double(), torch.eye(2).double())
        >>> tried = []
        >>> best = best_start(target.log_prob, start, note=tried.append)
        >>> [attempt.name for attempt in tried]
        ['start', 'path', 'start, matched', 'path, matched']
        >>> best.loc.allclose(target.loc)
        True
    """
    log_density = Counted.of(log_density, start.loc)
    tried = [
        _attempt("start", log_density, lambda: start),
        _attempt("path", log_density, partial(pathfinder, log_density, start.loc, work=work)),
    ]
    for attempt in tried[:]:
        if attempt.gaussian is not None:
            make = partial(batch_and_match, log_density, attempt.gaussian, work=work)
            tried.append(_attempt(f"{attempt.name}, matched", log_density, make))
    for attempt in tried:
        note(attempt)
    best = max(tried, key=lambda attempt: attempt.elbo)
    if best.elbo == -math.inf:
        raise FloatingPointError(
            "no start has a finite ELBO: pass a narrow Gaussian as start (to fit by init_loc_fn and a smaller "
            "init_scale), around a point at which the log density is finite, and see that it neither overflows nor "
            "takes logarithms or roots of negative numbers nearby"
        )
    return best.gaussian


def _attempt(name: str, log_density: Counted, make: Callable[[], Gaussian]) -> Attempt:
    before, gaussian = log_density.done, None
    with contextlib.suppress(FloatingPointError):
        gaussian = make()
    reached = -math.inf if gaussian is None else elbo(log_density, gaussian)
    return Attempt(name, reached, log_density.done - before, gaussian)
