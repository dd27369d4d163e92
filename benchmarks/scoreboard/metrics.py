"""How far draws are from a reference, how far chance alone would put them, and what their weights say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.special import erf

from pyroflows.posterior import Diagnostics

# Draws that errors are read off: enough for the noise of our own to be small.
DRAWS = 20_000
# Mean, standard deviation and standard error of the mean, as ``models.Posterior.reference`` gives them.
Reference = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Draws:
    """Draws to be judged.

    Args:
        z: vectors in unconstrained space, ``(S, D)``.
        log_q: the approximation's log density there, ``(S,)``; None for draws of a chain.
        weights: ``(S,)`` summing to one where averages need them; None for equal ones.
    """

    z: Tensor
    log_q: Tensor | None = None
    weights: Tensor | None = None


def errors(found: Mapping[str, Tensor], reference: Reference, weights: Tensor | None = None) -> dict[str, float | str]:
    """The largest |mean difference| / sd and |sd ratio - 1| over the reference's scalars, and which these are.

    Args:
        found: draws ``(S,)`` of each scalar.
        reference: mean, sd and standard error of each.
        weights: ``(S,)`` summing to one, by default equal ones.
    """
    known = torch.tensor([reference[name][:2] for name in found], dtype=torch.float64)
    values = torch.stack(list(found.values()), dim=1).double()
    share = torch.full((len(values),), 1 / len(values)).to(values) if weights is None else weights.to(values)
    mean = share @ values
    spread = (share @ (values - mean).square()).sqrt()
    dmean, at_mean = ((mean - known[:, 0]).abs() / known[:, 1]).max(0)
    dsd, at_sd = (spread / known[:, 1] - 1).abs().max(0)
    names = list(found)
    return {"dmean": float(dmean), "dsd": float(dsd), "dmean_at": names[at_mean], "dsd_at": names[at_sd]}


def noise_floor(reference: Reference, kurtosis: Mapping[str, float], draws: float) -> dict[str, float]:
    """What both errors would be, in the mean, for independent draws of the exact posterior.

    Scalars count as independent, which for correlated ones is a little too much.

    Args:
        reference: mean, sd and standard error of each scalar.
        kurtosis: of each scalar, 3 for a normal one; where one is missing it counts as normal.
        draws: how many (independent) draws are compared with the reference.
    """
    noise = torch.tensor([(error / sd) ** 2 + 1 / draws for _, sd, error in reference.values()], dtype=torch.float64)
    excess = torch.tensor([(kurtosis.get(name, 3.0) - 1) / 4 for name in reference], dtype=torch.float64)
    return {"floor_dmean": expected_max(noise.sqrt()), "floor_dsd": expected_max((noise * excess).sqrt())}


def expected_max(sd: Tensor) -> float:
    """Mean of the largest |x_i| of independent ``x_i ~ N(0, sd_i)``: the integral of 1 - P(all |x_i| < t)."""
    t = torch.linspace(0, 8 * float(sd.max()), 2001, dtype=torch.float64)
    below = erf(t.unsqueeze(-1) / (sd * 2**0.5)).prod(-1)
    return float(torch.trapezoid(1 - below, t))


def kurtosis(draws: Mapping[str, Tensor]) -> dict[str, float]:
    """Fourth standardised moment of each scalar."""
    return {name: float(((x - x.mean()) / x.std()).pow(4).mean()) for name, x in draws.items()}


def weigh(draws: Draws, log_joint: Callable[[Tensor], Tensor], rows: int = 1000) -> tuple[dict[str, float], Tensor]:
    """k-hat, ELBO, evidence and spread of the weights of draws with a density, and their PSIS weights."""
    with torch.no_grad():
        log_p = torch.cat([log_joint(part) for part in draws.z.split(rows)])
    found, weights = Diagnostics.of((log_p - draws.log_q).double().numpy())
    names = {"efficiency": found.efficiency, "elbo": found.elbo, "elbo_error": found.elbo_error}
    names |= {"khat": found.khat, "sd_log_w": found.log_weight_sd, "log_evidence": found.log_evidence}
    return names, torch.as_tensor(np.asarray(weights))


def judge(
    draws: Draws,
    log_joint: Callable[[Tensor], Tensor],
    quantities: Callable[[Tensor], Mapping[str, Tensor]],
    reference: Reference,
    kurtosis: Mapping[str, float],
) -> dict[str, float | str]:
    """Everything that can be said about draws.

    Args:
        draws: what a method found.
        log_joint: of the model, in unconstrained space.
        quantities: the scalars of the reference at vectors ``(S, D)``.
        reference: mean, sd and standard error of each scalar.
        kurtosis: of each scalar.
    """
    scalars, weights = quantities(draws.z), draws.weights
    found: dict[str, float | str] = {"draws": len(draws.z), **errors(scalars, reference)}
    effective = float(len(draws.z))
    if draws.log_q is not None:
        facts, weights = weigh(draws, log_joint)
        found |= facts
    if weights is not None:
        corrected = errors(scalars, reference, weights)
        found |= {f"{name}_weighted": corrected[name] for name in ("dmean", "dsd")}
    if draws.weights is not None:
        effective = float(1 / draws.weights.square().sum())
    return found | noise_floor(reference, kurtosis, effective)
