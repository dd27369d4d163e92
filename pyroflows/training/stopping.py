"""When a fit is done, and what to say of it meanwhile."""

import math
from statistics import fmean

from .history import History

# Progress is judged by the mean ELBO of so many steps against that of as many before.
WINDOW = 1000
# Half the variance of the log weights is about the KL divergence left; below this the fit is done. Most of so little is
# noise of the learning rate: once that has fallen, an eighth to a half is left.
SMALL_KL = 0.004


def reason_to_stop(history: History, tolerance: float, small_kl: float = SMALL_KL) -> str:
    """Why it is time to lower the learning rate, or nothing.

    Args:
        history: the steps so far.
        tolerance: a rise of the ELBO, in nats over 1000 steps, that still counts.
        small_kl: half the variance of the log weights, in nats, below which they hardly spread.
    """
    spread = [s for s in history.log_weight_sd[-100:] if math.isfinite(s)]
    if spread and fmean(s * s for s in spread) / 2 < small_kl:
        return "the log weights hardly spread"
    now, before = history.window(WINDOW), history.window(WINDOW, len(history.elbo) - WINDOW)
    if len(history.elbo) >= 2 * WINDOW and now and before and fmean(now) - fmean(before) < tolerance:
        return "the ELBO no longer rises"
    return ""


def trend(history: History) -> str:
    """The mean ELBO of the last steps, how it moved, and how steps are run: for a progress bar."""
    done = len(history.elbo)
    size = min(WINDOW, done // 2)
    windows = history.window(size), history.window(size, done - size)
    now, before = (fmean(seen) if seen else math.nan for seen in windows)
    dropped = f", {history.bad_steps} bad steps" if history.bad_steps else ""
    return f"ELBO {now:.3f} ({now - before:+.3f} over {size}), {history.speed.split(',')[0]}{dropped}"
