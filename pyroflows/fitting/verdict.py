"""Which fit is the better one, by how many draws it is judged, and what is said of it."""

import warnings

import numpy as np

from ..infer import Gaussian
from ..model import LogJoint
from ..posterior import Posterior
from ..posterior.importance_diagnostics import CLOSE
from .faults import faults

# Draws by which a fit is judged, at least so many, and rows times draws that are scored for it.
DRAWS, LEAST_DRAWS, SCORED = 4000, 1000, 200_000_000


def better_of(first: Posterior, second: Posterior) -> Posterior:
    """The one with the higher ELBO of a posterior that missed modes and one that began at these."""
    levels = [np.nan_to_num(posterior.log_weights.mean(), nan=-np.inf) for posterior in (first, second)]
    if levels[1] > levels[0]:
        second.history.stopped += f", in a second fit, as the first missed modes: {len(first.history.missed)}"
    return second if levels[1] > levels[0] else first


def judged(posterior: Posterior, around: Gaussian) -> Posterior:
    """The posterior, after a warning if it is not to be trusted."""
    density = posterior.log_joint
    if density.minibatch:
        warnings.warn(f"fit: {posterior.diagnostics.verdict}", stacklevel=3)
        return posterior
    # Weights as close as this are good whatever their k-hat, which is left to those who ask: ArviZ takes a second.
    close = posterior.log_weights.std() < CLOSE and not posterior.history.missed
    if not close and posterior.diagnostics.grade != "good":
        found = faults(density, posterior.guide, around)
        if found or posterior.diagnostics.grade == "do not trust":
            warnings.warn(f"fit: {posterior.diagnostics.verdict}{found}", stacklevel=3)
    return posterior


def num_draws(log_joint: LogJoint) -> int:
    """How many draws a fit is judged by: fewer where each of them has to be scored on very many rows."""
    rows = 0 if log_joint.plates is None else sum(size for size, _ in log_joint.plates.sizes.values())
    return max(LEAST_DRAWS, min(DRAWS, SCORED // max(rows, 1)))
