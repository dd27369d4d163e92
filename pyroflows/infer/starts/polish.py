"""A full-rank Gaussian fitted by gradient steps on the ELBO, from a Gaussian that is roughly right."""

import math
from collections.abc import Callable
from functools import partial
from statistics import fmean, pstdev

from torch import Tensor

from ...distributions import FlowDistribution
from ...training import Trainer
from ...transforms import LowerTriangular
from ..objectives import log_weights
from .endless import improper
from .gaussian import Gaussian

# Steps between two whitenings, and how many blocks there are at most.
BLOCK, BLOCKS = 300, 10
# A scale that grew by this factor may have nothing that holds it.
RUNAWAY = 1e4


def polish(
    log_density: Callable[[Tensor], Tensor],
    start: Gaussian,
    *,
    num_particles: int = 32,
    tolerance: float = 0.05,
    progress: Callable[[float], object] = lambda elbo: None,
) -> Gaussian:
    """Raises the ELBO of a full-rank Gaussian with the path gradient, in blocks of 300 steps of Adam.

    Each block starts in the coordinates whitened by the one before, so that one learning rate suits every
    posterior; it ends with a decay and an average of the iterates. The last block is the first that gains less
    than ``tolerance`` beyond the noise.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, differentiable.
        start: where to start; its dtype is used throughout.
        num_particles: draws behind each gradient.
        tolerance: gain of a block, in nats, that still counts.
        progress: is told the ELBO after each block.

    Raises:
        ValueError: if a scale has grown without end and the posterior is improper.
        FloatingPointError: if too many steps had an ELBO or a gradient that was not finite.

    Example:
        >>> import torch
        >>> target = Gaussian(torch.ones(2), torch.tensor([[2.0, 0.0], [1.0, 0.5]]))
        >>> found = polish(target.log_prob, Gaussian(torch.zeros(2), torch.eye(2)))
        >>> (found.scale_tril - target.scale_tril).abs().max() < 0.02
        tensor(True)
    """
    affine = LowerTriangular(len(start.loc)).to(start.loc).frame_(start.loc, start.scale_tril)
    objective = partial(log_weights, FlowDistribution(transform=affine), log_density, num_particles, path=True)
    ascend(affine, objective, tolerance=tolerance, progress=progress)
    found = Gaussian(affine.center, affine.frame)
    _check_bounded(log_density, found, found.scale_tril.norm(dim=-1) / start.scale_tril.norm(dim=-1))
    return found


def ascend(
    affine: LowerTriangular,
    objective: Callable[[], Tensor],
    *,
    tolerance: float = 0.05,
    progress: Callable[[float], object] = lambda elbo: None,
) -> int:
    """The blocks of :func:`polish` for an affine layer wherever it stands, in place.

    Args:
        affine: the layer; other parameters of the objective stay as they are.
        objective: log weights at new draws.
        tolerance: gain of a block, in nats, that still counts.
        progress: is told the ELBO after each block.

    Returns:
        The number of dropped steps.

    Raises:
        FloatingPointError: as :func:`polish`.
    """
    trainer, last = Trainer(affine.parameters(), lr=0.02, warmup=20, average=0.98), -math.inf
    for _ in range(BLOCKS):
        _block(trainer, objective)
        affine.whiten_()
        trainer.restart(lr=0.01)
        seen = trainer.history.window(50)
        elbo, noise = fmean(seen), pstdev(seen) / len(seen) ** 0.5
        progress(elbo)
        if elbo - last < tolerance + 2 * noise:
            break
        last = elbo
    trainer.finish()
    return trainer.history.bad_steps


def _block(trainer: Trainer, objective: Callable[[], Tensor]) -> None:
    for done in range(BLOCK):
        if done == BLOCK // 2:
            trainer.safe.decay_over(BLOCK // 2)
        trainer.step(objective)
    trainer.settle()


def _check_bounded(log_density: Callable[[Tensor], Tensor], found: Gaussian, growth: Tensor) -> None:
    free = (growth > RUNAWAY).nonzero().flatten().tolist()
    if free and improper(log_density, found) is not None:
        raise ValueError(
            f"expected a proper posterior, got one whose ELBO still rises while the scale of the unconstrained "
            f"dimensions {free} has grown {growth.max():.0e} fold: give them a proper prior, or data"
        )
