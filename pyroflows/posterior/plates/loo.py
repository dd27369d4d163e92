"""Leave-one-row-out: what the fit says of each row's data where the row itself is left out."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...guides import AutoPlateFlow
from ...model.rows import RowJoint
from ..importance_diagnostics import CLOSE
from ..psis import KHAT_LIMIT, psis
from .row_weights import Each, Spread, row_levels

# Rows with the largest k-hats that are named.
NAMED = 5


@dataclass(frozen=True, repr=False)
class Loo:
    """The log predictive density of each row's data given those of all others, in nats.

    The latents of a row are integrated out, so that its data are left out with all that they say. Data of no row are
    never left out.

    Args:
        pointwise: of each row, ``(R,)``.
        khat: of each row the k-hat of the weights that leave it out, ``(R,)``; -inf where these hardly spread.
        p_loo: the effective number of the globals: what the sum is lower by than with all rows in.
        plate: name of the plate.
    """

    pointwise: NDArray
    khat: NDArray
    p_loo: float
    plate: str

    @property
    def elpd(self) -> float:
        """The sum over rows: higher predicts better."""
        return float(self.pointwise.sum())

    @property
    def se(self) -> float:
        """The standard error of the sum, as of rows drawn at random."""
        return float(self.pointwise.std() * len(self.pointwise) ** 0.5)

    @property
    def worst(self) -> dict[int, float]:
        """The rows with the largest k-hats, by number."""
        return {int(row): float(self.khat[row]) for row in np.argsort(-self.khat, kind="stable")[:NAMED]}

    @property
    def verdict(self) -> str:
        """One sentence on how far to trust it; names the rows that it is not to be trusted for."""
        bad = int((self.khat >= KHAT_LIMIT).sum())
        if not bad:
            return f"all k-hats < {KHAT_LIMIT}: good."
        named = ", ".join(f"{row} ({khat:.2f})" for row, khat in self.worst.items() if khat >= KHAT_LIMIT)
        return (
            f"k-hat >= {KHAT_LIMIT} for {bad} of {len(self.khat)} rows of {self.plate!r}, which move the globals too "
            f"far to be left out by weights: rows {named}{', ...' if bad > NAMED else ''}. Fit without each of them "
            f"and take log_predictive."
        )

    def __repr__(self) -> str:
        return (
            f"elpd {self.elpd:.2f} +- {self.se:.2f} of {len(self.pointwise)} rows of {self.plate!r} left out one by "
            f"one, p_loo {self.p_loo:.2f}\n{self.verdict}"
        )


@torch.no_grad()
def leave_rows_out(guide: AutoPlateFlow, joint: RowJoint, count: int, each: Each) -> Loo:
    """Weighs draws of the globals by all rows but one, for each row.

    ``p(g | all but row j)`` is proportional to ``p(g | all) / p(y_j | g)``, and a row's density is averaged over draws
    of its latents. What a row's averages are off by cancels in its own weights.

    Args:
        guide: proposes the draws.
        joint: the model.
        count: how many draws of the globals.
        each: how many of each row for every one of these, four or more, an even number; or a rule.

    References:
        Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC. Vehtari, Gelman, Gabry, 2017.
        https://arxiv.org/abs/1507.04544
    """
    g, log_q = guide.outer_posterior().rsample_and_log_prob((count,))
    spread = Spread(joint.structure.rows, g)
    found = list(row_levels(guide, joint, g, each, spread=spread))
    levels = torch.cat([part for _, part in found])
    log_w = (torch.cat([outer for outer, _ in found]) - log_q + levels.sum(-1)).double().cpu().numpy()
    rows = levels.cpu().numpy().T
    del found, levels
    smoothed, khat = psis(log_w)
    khats = np.full(len(rows), khat if log_w.std() >= CLOSE else -np.inf)
    out, inside = np.empty(len(rows)), np.empty(len(rows))
    for row, level in enumerate(rows):
        weights = smoothed - level
        if level.std() >= CLOSE:
            weights, khats[row] = psis(log_w - level)
        out[row] = np.logaddexp.reduce(weights + level) - np.logaddexp.reduce(weights)
        inside[row] = np.logaddexp.reduce(smoothed + level)
    # With all rows in, a row's average is in the weights too, and its noise counts twice.
    return Loo(out, khats, float((inside - out).sum()) - spread.read()[1], joint.structure.plate)
