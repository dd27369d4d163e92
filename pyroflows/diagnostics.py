"""How good an approximate posterior is, from its importance weights. Plain numpy, and ArviZ for PSIS."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Above this k-hat importance weights cannot be relied on (Vehtari et al., below).
KHAT_LIMIT = 0.7
# Log weights that spread by less than this, in nats, make draws that need no weights.
CLOSE = 0.3
# Below this the tail of the weights is rounding, and k-hat means nothing.
EXACT = 0.01


def psis(log_weights: Array) -> tuple[Array, float]:
    """Pareto-smoothed importance weights, by ArviZ.

    Args:
        log_weights: shape ``(S,)``, up to a constant; what is not finite counts as a weight of zero.

    Returns:
        Log weights ``(S,)`` that are smoothed and normalised, and the shape k-hat of the fitted tail: ``-inf``
        for equal weights, ``inf`` where one is NaN or infinite, or none is above zero.

    References:
        Pareto Smoothed Importance Sampling. Vehtari, Simpson, Gelman, Yao, Gabry, 2024.
        https://arxiv.org/abs/1507.02646
    """
    log_weights = np.asarray(log_weights, dtype=float)
    found = np.isfinite(log_weights)
    khat = -np.inf if found.any() and (log_weights < np.inf).all() else np.inf
    smoothed = np.where(found, log_weights, -np.inf)
    if len(set(log_weights[found])) > 1:  # ArviZ 1.x does not fit a tail to equal weights
        smoothed[found], shape = _psislw(log_weights[found])
        khat = max(khat, float(shape))
    return smoothed - np.logaddexp.reduce(smoothed), khat


def _psislw(log_weights: Array) -> tuple[Array, Array]:
    try:
        from arviz import psislw
    except ImportError:  # in ArviZ 1.x it takes the log likelihoods of points left out: log weights, negated
        from arviz_stats.base import array_stats

        return array_stats.psislw(-log_weights)
    return psislw(log_weights)


@dataclass(frozen=True)
class Diagnostics:
    """The quality of draws from an approximation ``q`` of a posterior ``p``.

    Args:
        khat: shape of the tail of the weights ``p/q``; below 0.7 they can be relied on.
        log_weight_sd: standard deviation of ``log p/q``: 0 for the exact posterior; half its square is
            about ``KL(q | p)``.
        efficiency: effective sample size of the weighted draws over their number.
        elbo: mean of ``log p/q``, a lower bound of the log evidence, in nats.
        elbo_error: its standard error.
        log_evidence: importance sampling estimate of the log evidence, in nats.
        draws: number of draws.
        minibatch: the weights are from one random part of the data, and so is all of the above.
    """

    khat: float
    log_weight_sd: float
    efficiency: float
    elbo: float
    elbo_error: float
    log_evidence: float
    draws: int
    minibatch: bool = False

    @classmethod
    def of(cls, log_weights: Array, minibatch: bool = False) -> tuple["Diagnostics", Array]:
        """Computes everything, and the smoothed weights ``(S,)`` that sum to one."""
        with np.errstate(invalid="ignore"):  # weights of zero
            smoothed, khat = psis(log_weights)
            weights, sd, count = np.exp(smoothed), float(np.std(log_weights)), len(log_weights)
            evidence = np.logaddexp.reduce(log_weights) - np.log(count)
            efficiency = float(1 / np.sum(weights**2) / count)
            elbo = float(np.mean(log_weights))
        return cls(khat, sd, efficiency, elbo, sd / count**0.5, float(evidence), count, minibatch), weights

    @property
    def verdict(self) -> str:
        """One sentence on what the k-hat and the spread of the log weights mean, and what to do."""
        if self.minibatch:
            return (
                "judged on one random minibatch: k-hat, ELBO and evidence are not those of all the data. Score with "
                "all rows: Posterior(posterior.guide, log_joint(model_of_all_rows, ...), posterior.history)."
            )
        if self.log_weight_sd < EXACT:
            return f"sd(log w) {self.log_weight_sd:.1e}: good, the weights are equal up to rounding."
        small, close = self.khat < KHAT_LIMIT, self.log_weight_sd < CLOSE
        found = f"k-hat {self.khat:.2f} {'<' if small else '>='} {KHAT_LIMIT}"
        if small and close:
            return f"{found}: good, the draws can be used as they are."
        if small:
            return f"{found}: usable; averages should use the importance weights."
        if close:
            return (
                f"{found}, but the log weights spread by only {self.log_weight_sd:.2f} nats: the bulk is right; "
                f"do not rely on the far tail or on reweighting."
            )
        return f"{found}: do not trust these draws. Fit for more steps, with more layers, or reparameterise the model."

    def __str__(self) -> str:
        return (
            f"{self.verdict}\n"
            f"ELBO {self.elbo:.3f} +- {self.elbo_error:.3f}, log evidence (IS) {self.log_evidence:.3f}, "
            f"sd(log w) {self.log_weight_sd:.3f}, ESS {self.efficiency:.0%} of {self.draws} draws"
        )
