"""How good draws of a posterior are, from importance weights. Plain numpy, and ArviZ for the statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from .psis import KHAT_LIMIT, Array, heavy_tails, mean_error, psis

# Log weights that spread by less than this, in nats, make draws that need no weights: half its square is about the KL
# divergence, and no probability is then off by more than the root of half of that, 0.1 (Pinsker's inequality).
CLOSE = 0.2
# Below this the tail of the weights is rounding, and k-hat means nothing.
EXACT = 0.01
# What the digits of a guide in single precision leave open of an evidence, by its size in nats and 100 more.
DIGITS = 1e-7
# Fewer effective draws than this, for each chain where there are some, are too few to average.
FEW = 50
# Places of missed modes that are named.
NAMED = 4
REMEDY = 'Try posterior.refine("neutra"), more steps, more layers, or reparameterise the model.'


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
        log_evidence: importance sampling estimate of the log evidence, in nats, from the weights as they are.
        log_evidence_error: its standard error, see :func:`~pyroflows.posterior.psis.mean_error`. Above the limit of
            k-hat, or where modes are missed, it is a lower bound, and printed as "at least".
        draws: number of draws.
        minibatch: the weights are from one random part of the data, and so is all of the above.
        weighted: the draws come with their weights, or were resampled by them.
        heavy: the k-hat of the second moment of scalars whose sd cannot be relied on, see
            :func:`~pyroflows.posterior.psis.heavy_tails`.
        missed: the share of the mass of each mode that the draws miss, by its place, see
            :func:`~pyroflows.infer.missed_modes`.
    """

    khat: float
    log_weight_sd: float
    efficiency: float
    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    draws: int
    minibatch: bool = False
    weighted: bool = False
    heavy: Mapping[str, float] = field(default_factory=dict)
    missed: Mapping[str, float] = field(default_factory=dict)
    columns: ClassVar[Mapping[str, Mapping[str, float]]] = MappingProxyType({})

    @classmethod
    def of(
        cls,
        log_weights: Array,
        minibatch: bool = False,
        weighted: bool = False,
        scalars: Mapping[str, Array] = MappingProxyType({}),
    ) -> tuple["Diagnostics", Array]:
        """Computes everything, and the smoothed weights ``(S,)`` that sum to one.

        Args:
            log_weights: ``log p/q`` of the draws, of shape ``(S,)``.
            minibatch: see above.
            weighted: see above.
            scalars: values of the draws by label, of shape ``(S,)``, whose tails are looked at.
        """
        with np.errstate(invalid="ignore"):  # weights of zero
            smoothed, khat = psis(log_weights)
            weights, sd, count = np.exp(smoothed), float(np.std(log_weights)), len(log_weights)
            evidence = float(np.logaddexp.reduce(log_weights) - np.log(count))
            efficiency = float(1 / np.sum(weights**2) / count)
            error = max(mean_error(log_weights, smoothed, khat), DIGITS * (100 + abs(evidence)))
            elbo = float(np.mean(log_weights))
            heavy = heavy_tails(log_weights, scalars) if scalars and not minibatch else {}
        found = cls(khat, sd, efficiency, elbo, sd / count**0.5, evidence, error, count, minibatch, weighted, heavy)
        return found, weights

    @property
    def close(self) -> bool:
        """Whether the draws are good without their weights."""
        return self.log_weight_sd < CLOSE

    def after(self, again: "Diagnostics") -> "Diagnostics":
        """What this says after a second look, at other draws and more of them: the worse of both, and no more.

        The ELBO and the evidence are those of the second look. A heavy tail is one that both have seen.
        """
        heavy = {label: khat for label, khat in again.heavy.items() if label in self.heavy}
        khat, sd = (float(np.maximum(getattr(self, n), getattr(again, n))) for n in ("khat", "log_weight_sd"))
        efficiency = float(np.minimum(self.efficiency, again.efficiency))
        return replace(again, khat=khat, log_weight_sd=sd, efficiency=efficiency, draws=self.draws, heavy=heavy)

    @property
    def grade(self) -> str:
        """``"good"``, ``"usable with weights"`` or ``"do not trust"``."""
        if self.minibatch or self.missed:
            return "do not trust"
        small = self.khat < KHAT_LIMIT
        if self.efficiency * self.draws < FEW:
            return "do not trust"
        if self.close:
            return "good"
        if not small:
            return "do not trust"
        return "good" if self.weighted else "usable with weights"

    @property
    def verdict(self) -> str:
        """One sentence on what the k-hat and the spread of the log weights mean, and what to do."""
        if self.minibatch:
            return (
                "do not trust: judged on one random minibatch, k-hat, ELBO and evidence are not those of all the data. "
                "Give the model all rows, and index them by those that its plate yields, y[rows], so that fit goes "
                "through all. Or score with all: Posterior(posterior.guide, log_joint(model_of_all, ...), "
                "posterior.history)."
            )
        if self.missed:
            return on_missed(self.missed)
        small = self.khat < KHAT_LIMIT
        found = f"k-hat {self.khat:.2f} {'<' if small else '>='} {KHAT_LIMIT}"
        if self.grade == "do not trust":
            why = f"only {self.efficiency * self.draws:.0f} effective draws" if small else "the guide misses a part"
            return f"{found}: do not trust: {why}. {REMEDY}"
        if self.log_weight_sd < EXACT:
            found = f"sd(log w) {self.log_weight_sd:.1e}: good, the weights are equal up to rounding."
        elif self.grade == "good" and not small:
            found += (
                f", but the log weights spread by only {self.log_weight_sd:.2f} nats: good in the bulk; "
                f"do not rely on the far tail, with weights or without."
            )
        elif self.grade == "good":
            found += f": good, {'the weights are accounted for' if self.weighted else 'use the draws as they are'}."
        else:
            found += ': usable with weights: average by them, or take draws of posterior.refine("resample").'
        return found + self._on_tails

    @property
    def _on_tails(self) -> str:
        """What there is to say of scalars with heavy tails."""
        if not self.heavy:
            return ""
        several = f" and {len(self.heavy) - 3} more" if len(self.heavy) > 3 else ""
        return (
            f" The sd of {', '.join(list(self.heavy)[:3])}{several} cannot be relied on (k-hat of the second moment "
            f"{max(self.heavy.values()):.2f}): report quantiles."
        )

    @property
    def _is_bound(self) -> bool:
        """Whether the evidence may be off by any number of its errors: the draws do not show what they leave out."""
        return bool(self.missed) or not (self.khat < KHAT_LIMIT or self.log_weight_sd < EXACT)

    def __str__(self) -> str:
        bound = "at least " if self._is_bound else ""
        return (
            f"{self.verdict}\n"
            f"ELBO {self.elbo:.3f} +- {self.elbo_error:.3f}, "
            f"log evidence (IS) {self.log_evidence:.3f} +- {bound}{self.log_evidence_error:.3f}, "
            f"sd(log w) {self.log_weight_sd:.3f}, ESS {self.efficiency:.0%} of {self.draws} draws"
        )


def on_missed(missed: Mapping[str, float]) -> str:
    """The verdict on draws that miss modes."""
    places = ", ".join([*missed][:NAMED]) + (", ..." if len(missed) > NAMED else "")
    return (
        f"do not trust: there is mass around {len(missed)} where the draws have next to none (in unconstrained space, "
        f"{places}, about {sum(missed.values()):.0%} of all): several modes, or a fit that is not done. Try "
        f"fit(..., modes=16), without a subsample_size, more steps, or objective=infer.Annealed()."
    )
