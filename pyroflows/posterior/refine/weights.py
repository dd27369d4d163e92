"""Corrections by importance weights: weighted draws, and draws resampled by their weights."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arguments import check_counts
from ...guides import AutoFlow
from ...model import LogJoint
from ..importance_diagnostics import Diagnostics
from ..scalars import open_scalars
from .judge import look_again
from .refined import Refined, propose

# Fewer draws leave no tail for PSIS to be fitted to.
LEAST = 100


def importance(guide: AutoFlow, log_joint: LogJoint, *, num_draws: int = 4000) -> Refined:
    """New draws of the guide with Pareto-smoothed importance weights.

    Args:
        guide: proposes the draws.
        log_joint: the model's log joint density.
        num_draws: how many draws, 100 or more.

    Raises:
        ValueError: if there are too few draws, or none has a weight.

    References:
        Pareto Smoothed Importance Sampling. Vehtari, Simpson, Gelman, Yao, Gabry, 2024.
        https://arxiv.org/abs/1507.02646
    """
    check_counts("refine", {"num_draws": LEAST}, num_draws=num_draws)
    z, log_w, weights, found = _weigh(guide, log_joint, num_draws)
    return Refined("importance", log_joint, z[None], found, weight_stats(log_w, weights, found.khat), weights)


def resample(guide: AutoFlow, log_joint: LogJoint, *, num_draws: int = 4000, pool: int | None = None) -> Refined:
    """Draws picked from a pool by their Pareto-smoothed weights; they need no weights any more.

    Picking is systematic: a draw of weight ``w`` is taken ``num_draws * w`` times, rounded up or down. Copies stand
    next to each other.

    Args:
        guide: proposes the pool.
        log_joint: the model's log joint density.
        num_draws: how many draws to keep.
        pool: how many to pick from, 100 or more; by default five times ``num_draws``.

    Raises:
        ValueError: if the pool is too small, or no draw of it has a weight.

    References:
        Using the SIR Algorithm to Simulate Posterior Distributions. Rubin, 1988, Bayesian Statistics 3.
        Improved Particle Filter for Nonlinear Problems. Carpenter, Clifford, Fearnhead, 1999.
        https://doi.org/10.1049/ip-rsn:19990255
    """
    pool = max(5 * num_draws, LEAST) if pool is None and isinstance(num_draws, int) else pool
    check_counts("refine", {"pool": LEAST}, num_draws=num_draws, pool=pool)
    z, _, weights, found = _weigh(guide, log_joint, pool)
    picked = systematic(weights, num_draws, float(torch.rand(())))
    stats = {"proposal": picked[None]}
    return Refined("resample", log_joint, z[torch.as_tensor(picked, device=z.device)][None], found, stats)


def _weigh(guide: AutoFlow, log_joint: LogJoint, count: int) -> tuple[Tensor, NDArray, NDArray, Diagnostics]:
    """Draws ``(count, D)``, their log weights and smoothed weights, and what these say."""
    z, log_w = propose(guide, log_joint, count)
    found, weights = Diagnostics.of(log_w, weighted=True, scalars=open_scalars(log_joint.space, log_joint.constrain(z)))
    if not np.isfinite(weights).all():
        raise ValueError(
            f"refine expected draws with weights, got none in {count} that has one: the guide misses the posterior, "
            f"fit it for longer or from another start"
        )
    return z, log_w, weights, look_again(found, guide, log_joint, log_joint.constrain)


def systematic(weights: NDArray, count: int, offset: float) -> NDArray:
    """Indices ``(count,)`` at equal steps through the cumulated weights.

    Args:
        weights: shape ``(S,)``, summing to one.
        count: how many.
        offset: place in the first step, in [0, 1).

    Example:
        >>> systematic(np.array([0.5, 0.0, 0.25, 0.25]), 4, 0.5).tolist()
        [0, 0, 2, 3]
    """
    places = (np.arange(count) + offset) / count
    return np.searchsorted(np.cumsum(weights)[:-1], places, side="right")


def weight_stats(log_weights: NDArray, weights: NDArray, khat: float) -> dict[str, NDArray]:
    """What ArviZ's ``sample_stats`` hold of weighted draws, each ``(1, S)``."""
    stats = {"log_weight": log_weights, "psis_weight": weights, "khat": np.full(len(weights), khat)}
    return {name: value[None] for name, value in stats.items()}
