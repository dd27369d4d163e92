"""Pareto-smoothed importance sampling: smoothed weights, and k-hats of averages. NumPy alone."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Above this k-hat importance weights cannot be relied on (Vehtari et al., below).
KHAT_LIMIT = 0.7
# What is missing beyond all weights, in units of the excess of so many that are largest, and the largest shape of a
# tail whose mean is still taken for finite.
BEYOND, LARGEST, STEEPEST = 3, 5, 0.85
# Fewest draws of a tail, the least log weight where one begins, points of the grid on which its shape is fitted, beside
# the square root of its draws, and of how many draws the prior of the shape is worth.
SHORTEST, SMALLEST, GRID, PRIOR = 5, math.log(np.finfo(float).tiny), 30, 10
# Log weights that spread by less are equal, but for the last digits of what they are differences of.
ROUNDING = 1e-9
# The scalars with the heaviest tails, by what so many draws add to the variance, whose second moment gets a k-hat.
HEAVIEST, FARTHEST = 8, 20


def psis(log_weights: Array) -> tuple[Array, float]:
    """Pareto-smoothed importance weights, equal to those of ArviZ, whose import takes longer than most fits.

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
        smoothed[found], shape = _smoothed(log_weights[found])
        khat = np.inf if np.isnan(shape) else max(khat, float(shape))
    return smoothed - np.logaddexp.reduce(smoothed), khat


def _smoothed(log_weights: Array) -> tuple[Array, float]:
    """Log weights whose largest are replaced by quantiles of a generalised Pareto distribution, and its shape.

    The shape is ``inf``, and nothing is replaced, where the tail has fewer than five draws.
    """
    count, shifted = len(log_weights), log_weights - log_weights.max()
    order = np.argsort(shifted)
    length = math.ceil(min(count / 5, 3 * count**0.5))
    least = max(shifted[order[max(count - length - 1, 0)]], SMALLEST)
    tail = order[shifted[order] > least]
    if len(tail) < SHORTEST:
        return log_weights, np.inf
    excess = np.exp(shifted[tail]) - np.exp(least)
    shape, scale = generalized_pareto(excess)
    if np.isfinite(shape):
        middles = (np.arange(len(tail)) + 0.5) / len(tail)
        along = -np.log1p(-middles) if shape == 0 else np.expm1(-shape * np.log1p(-middles)) / shape
        shifted[tail] = np.minimum(np.log(scale * along + np.exp(least)), 0.0)
    return shifted, shape


def generalized_pareto(excess: Array) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution, fitted to sorted excesses over a threshold.

    The mean of a profile likelihood over a grid, with a weak prior of the shape at one half.

    Args:
        excess: sorted upward, positive, ``(n,)``.

    References:
        A New and Efficient Estimation Method for the Generalized Pareto Distribution. Zhang, Stephens, 2009.
        https://doi.org/10.1198/tech.2009.08017
    """
    count, points = len(excess), GRID + int(len(excess) ** 0.5)
    quartile = excess[int(count / 4 + 0.5) - 1]
    rates = (1 - np.sqrt(points / (np.arange(points) + 0.5))) / (3 * quartile) + 1 / excess[-1]
    shapes = np.log1p(-rates[:, None] * excess).mean(-1)
    with np.errstate(all="ignore"):  # points of no likelihood
        levels = count * (np.log(-rates / shapes) - shapes - 1)
        weights = 1 / np.exp(levels - levels[:, None]).sum(1)
    likely = weights >= 10 * np.finfo(float).eps
    rate = np.average(rates[likely], weights=weights[likely]) if likely.any() else np.nan
    shape = np.log1p(-rate * excess).mean()
    scale = -shape / rate
    return (count * shape + PRIOR / 2) / (count + PRIOR), scale


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
