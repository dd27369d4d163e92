"""How good draws of Markov chains are: whether they agree, and moved enough."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .importance_diagnostics import FEW, on_missed
from .psis import Array

# Chains disagree above this r-hat (Vehtari et al. 2021); trajectories that diverge are too many above this share.
RHAT_LIMIT, DIVERGING = 1.01, 0.005


@dataclass(frozen=True)
class ChainDiagnostics:
    """The quality of draws of a posterior by Markov chains.

    Args:
        rhat: the largest rank-normalised split r-hat of the scalars, of a single chain between its halves; NaN
            where no chain moved.
        ess: the smallest effective sample size, of bulk or tails.
        acceptance: mean probability that a step was accepted.
        divergences: how many draws ended a trajectory whose energy was off.
        draws: number of draws of all chains.
        chains: number of chains.
        columns: ``ess`` and ``r-hat`` of each scalar by label, for the summary.
        missed: modes that the flow had missed, where chains began, see :class:`Diagnostics`.

    References:
        Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing Convergence of MCMC.
        Vehtari, Gelman, Simpson, Carpenter, Bürkner, 2021. https://arxiv.org/abs/1903.08008
    """

    rhat: float
    ess: float
    acceptance: float
    divergences: int
    draws: int
    chains: int
    columns: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    missed: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scalars: Mapping[str, Array], acceptance: float, divergences: int = 0) -> "ChainDiagnostics":
        """Computes everything for scalars of shape ``(chains, draws)`` by label."""
        columns = {label: mixing(values) for label, values in scalars.items()}
        moved = [row for row in columns.values() if not np.isnan(row["r-hat"])]
        chains, draws = next(iter(scalars.values())).shape
        rhat = max((row["r-hat"] for row in moved), default=math.nan)
        ess = min((row["ess"] for row in moved), default=0.0)
        return cls(rhat, ess, acceptance, divergences, chains * draws, chains, columns)

    @property
    def grade(self) -> str:
        """``"good"`` or ``"do not trust"``."""
        fine = not self.missed and self.rhat <= RHAT_LIMIT and self.ess >= FEW * self.chains
        return "good" if fine and self.divergences <= DIVERGING * self.draws else "do not trust"

    @property
    def verdict(self) -> str:
        """One sentence on whether the chains agree and have moved enough, and what to do."""
        found = f"r-hat {self.rhat:.3f}, ESS {self.ess:.0f}, {self.divergences} divergences"
        if self.missed:
            return on_missed(self.missed)
        if self.grade == "good":
            return f"{found}: good, the chains agree."
        if self.divergences > DIVERGING * self.draws:
            return f"{found}: do not trust: trajectories diverged. Raise target_accept, or reparameterise the model."
        return f"{found}: do not trust: the chains have not mixed. Take more draws, or fit the flow for more steps."

    def __str__(self) -> str:
        return f"{self.verdict}\nacceptance {self.acceptance:.0%}, {self.chains} chains, {self.draws} draws"


def mixing(values: Array) -> dict[str, float]:
    """Effective sample size, the smaller of bulk and tails, and r-hat of one scalar's chains ``(chains, draws)``.

    NaN where no chain moved or a draw is not finite; r-hat is infinite where chains stand still in different places.
    """
    import arviz

    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all() or (values == values.ravel()[:1]).all():
        return {"ess": math.nan, "r-hat": math.nan}
    half = values.shape[1] // 2  # ArviZ compares two chains or more
    several = values if len(values) > 1 else values[:, : 2 * half].reshape(2, half)
    with np.errstate(divide="ignore", invalid="ignore"):  # it divides by the variance within chains
        ess = min(float(arviz.ess(values)), float(arviz.ess(values, method="tail", prob=(0.05, 0.95))))
        return {"ess": ess, "r-hat": float(arviz.rhat(several))}
