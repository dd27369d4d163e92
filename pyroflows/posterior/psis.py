"""Pareto-smoothed importance sampling: smoothed weights, and k-hats of averages. NumPy and ArviZ alone."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Above this k-hat importance weights cannot be relied on (Vehtari et al., below).
KHAT_LIMIT = 0.7
# What is missing beyond all weights, in units of the excess of so many that are largest, and the largest shape of a
# tail whose mean is still taken for finite.
BEYOND, LARGEST, STEEPEST = 3, 5, 0.85
# Log weights that spread by less are equal, but for the last digits of what they are differences of.
ROUNDING = 1e-9
# The scalars with the heaviest tails, by what so many draws add to the variance, whose second moment gets a k-hat.
HEAVIEST, FARTHEST = 8, 20


def psis(log_weights: Array) -> tuple[Array, float]:
    """Pareto-smoothed importance weights, by ArviZ.

    Args:
        log_weights: shape ``(S,)``, up to a constant; what is not finite counts as a weight of zero.

    Returns:
        Log weights ``(S,)`` that are smoothed and normalised, and the shape k-hat of the fitted tail: ``-inf``
        for equal weights, ``inf`` where one is NaN or infinite, none is above zero, or no tail can be fitted, as to
        20 draws or fewer.

    References:
        Pareto Smoothed Importance Sampling. Vehtari, Simpson, Gelman, Yao, Gabry, 2024.
        https://arxiv.org/abs/1507.02646
    """
    log_weights = np.asarray(log_weights, dtype=float)
    found = np.isfinite(log_weights)
    khat = -np.inf if found.any() and (log_weights < np.inf).all() else np.inf
    smoothed = np.where(found, log_weights, -np.inf)
    if found.any() and np.ptp(log_weights[found]) > ROUNDING:  # there is no tail of equal weights
        smoothed[found], shape = _psislw(log_weights[found])
        khat = np.inf if np.isnan(shape) else max(khat, float(shape))
    return smoothed - np.logaddexp.reduce(smoothed), khat


def _psislw(log_weights: Array) -> tuple[Array, Array | float]:
    try:
        from arviz import psislw
    except ImportError:  # in ArviZ 1.x it takes the log likelihoods of points left out: log weights, negated
        from arviz_stats.base import array_stats

        try:
            return array_stats.psislw(-log_weights)
        except (ValueError, IndexError):  # fewer than five draws in the tail, or all of them the same
            return log_weights, np.inf
    return psislw(log_weights)


def mean_error(log_weights: Array, smoothed: Array, khat: float) -> float:
    """The relative standard error of the mean of importance weights, by the delta method and by what lies beyond them.

    The spread of the weights alone says too little where k-hat nears 0.5, from where on their variance is infinite and
    most means are too small, as the largest weights have yet to come. These are taken for three times what the five
    largest exceed the mean by, over ``1 - k`` as in a Pareto tail of shape ``k``, with ``k`` two standard errors above
    k-hat. The squares of both errors are added.

    Args:
        log_weights: shape ``(S,)``, up to a constant.
        smoothed: the log weights that :func:`psis` returned.
        khat: the shape that it returned.
    """
    count = len(log_weights)
    with np.errstate(all="ignore"):  # weights of zero, or none
        spread = max(count * np.sum(np.exp(2 * smoothed)) - 1, 0.0) ** 0.5 / count**0.5
        largest = np.sort(np.nan_to_num(np.exp(log_weights - np.logaddexp.reduce(log_weights))))[-LARGEST:]
    if khat == -np.inf:
        return float(spread)
    shape, tail = max(khat, 0.0), min(count / 5, 3 * count**0.5)
    steep = min(shape + 2 * (1 + shape) / tail**0.5, STEEPEST)
    return float(np.hypot(spread, BEYOND * (largest.mean() - 1 / count) / (1 - steep)))


def heavy_tails(log_weights: Array, scalars: Mapping[str, Array]) -> dict[str, float]:
    """The k-hat of the second moment of those scalars where it is 0.7 or more, so that their sd cannot be relied on.

    It is the k-hat of the terms of the weighted average, ``w (x - mean)^2``. Only scalars to whose variance a few draws
    contribute most are looked at.

    Args:
        log_weights: shape ``(S,)``.
        scalars: shape ``(S,)`` by label.

    Example:
        >>> draws = np.random.default_rng(0).standard_cauchy(4000)
        >>> list(heavy_tails(np.zeros(4000), {"cauchy": draws, "log": np.log(np.abs(draws))}))
        ['cauchy']

    References:
        Pareto Smoothed Importance Sampling. Vehtari, Simpson, Gelman, Yao, Gabry, 2024, on functions that are averaged.
        https://arxiv.org/abs/1507.02646
    """
    weights, shares, terms = np.exp(psis(log_weights)[0]), {}, {}
    for label, values in scalars.items():
        with np.errstate(all="ignore"):  # draws of infinity are what this is about
            square = (values - weights @ values) ** 2
            terms[label], found = log_weights + np.log(square), weights * square
            shares[label] = np.partition(found, -FARTHEST)[-FARTHEST:].sum() / found.sum() if found.any() else 0.0
    worst = sorted(shares, key=lambda label: -np.nan_to_num(shares[label], nan=np.inf))[:HEAVIEST]
    khats = {label: psis(terms[label])[1] for label in worst if shares[label] != 0}
    return {label: khat for label, khat in khats.items() if khat >= KHAT_LIMIT}
