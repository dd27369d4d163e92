"""How good a posterior of globals and rows is, from weights of the globals and from those of each row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from ...guides import AutoPlateFlow
from ...infer.nested.quadrature import Rule
from ...model.rows import RowJoint
from ..importance_diagnostics import CLOSE, DIGITS, Diagnostics
from ..importance_diagnostics import REMEDY as FOR_ONE_FLOW
from ..psis import mean_error
from .row_weights import Each, RowWeights, row_weights, size_of, sound_rule

# Draws of each row for one of the globals, the noise of their averages that is small, and that which is hopeless.
MANY, QUIET, LOUD = 64, 0.2, 1.5
# Log weights of a row that spread by less make its draws good as they are, and so many of the worst are named.
ROW_CLOSE, NAMED = 0.3, 5
# Numbers that the first and the second look compute, about.
FIRST, NUMBERS = 3_000_000, 30_000_000
# Draws of each row in the first look, and of the globals at least, then and in the first look.
FEW, LEAST, FEWEST = 4, 200, 24
REMEDY = "Try fit(..., guide=posterior.guide), which trains further, or plates=False for one flow over all latents."


@dataclass(frozen=True)
class PlateDiagnostics(Diagnostics):
    """The quality of draws of globals and rows.

    k-hat, the spread and the effective draws are of weights of the globals, with each row's latents averaged over
    ``each`` draws; with one draw of each row, of all latents together.

    Args:
        each: draws of each row for one of the globals, or nodes of its quadrature.
        by_nodes: whether rows are integrated out by quadrature.
        noise: what averaging so few adds to the variance of the log weights.
        rows: how many rows there are.
        row_spread: the median over rows of the standard deviation of a row's own log weights.
        worst: rows whose own log weights spread most, by number.
    """

    each: int = 1
    by_nodes: bool = False
    noise: float = 0.0
    rows: int = 0
    row_spread: float = 0.0
    worst: Mapping[int, float] = field(default_factory=dict)
    plate: str = ""

    @property
    def close(self) -> bool:
        """Whether the draws are good without their weights: those of the globals, and of each row."""
        if self.each == 1:
            return super().close
        own = max(self.log_weight_sd**2 - self.noise, 0.0) ** 0.5
        return own < CLOSE and max(self.worst.values(), default=0.0) < ROW_CLOSE

    @property
    def grade(self) -> str:
        """``"good"``, ``"usable with weights"`` or ``"do not trust"``."""
        if self.each > 1 and self.noise > LOUD:
            return "do not trust"
        return "good" if self.close and not self.missed else super().grade

    @property
    def verdict(self) -> str:
        """One sentence on what the weights mean, and what to do; names the worst rows where some are bad."""
        if self.missed:
            several = ", ..." if len(self.missed) > NAMED else ""
            return (
                f"do not trust: {len(self.missed)} of {self.rows} rows of {self.plate!r} have another mode with up to "
                f"{max(self.missed.values()):.0%} of their mass, of which there are no draws: rows "
                f"{', '.join([*self.missed][:NAMED])}{several}. Take fit(..., plates=False, modes=16), or a prior that "
                f"tells the modes apart."
            )
        if self.each == 1 and self.close:
            return f"sd(log w) {self.log_weight_sd:.1e} over all latents: good, use the draws as they are."
        if self.each > 1 and self.grade == "good":
            own = max(self.log_weight_sd**2 - self.noise, 0.0) ** 0.5
            return (
                f"log weights of the globals spread by {own:.2f}, of a row by at most "
                f"{max(self.worst.values(), default=0.0):.2f}: good, use the draws as they are."
            )
        if self.grade == "do not trust" and self.noise > LOUD:
            return f"do not trust: the rows are off. {self._on_rows} {REMEDY}"
        found = super().verdict.replace(FOR_ONE_FLOW, REMEDY)
        bad = self.each > 1 and max(self.worst.values(), default=0.0) >= 1.0
        return f"{found} {self._on_rows}" if bad else found

    @property
    def corrected(self) -> "PlateDiagnostics":
        """What is said of draws that were corrected by these weights."""
        return replace(self, weighted=True, worst={})

    @property
    def _is_bound(self) -> bool:
        return super()._is_bound and not (self.each == 1 and self.close)

    @property
    def _on_rows(self) -> str:
        named = ", ".join(f"{row} ({spread:.2f})" for row, spread in self.worst.items())
        return (
            f"The log weights of a row of {self.plate!r} spread by {self.row_spread:.2f} in the median; "
            f"the worst are rows {named}."
        )

    def __str__(self) -> str:
        if self.by_nodes:
            return f"{super().__str__()}, each row integrated by {self.each} nodes"
        return super().__str__() + (f", each row averaged over {self.each} draws" if self.each > 1 else "")


def diagnose(guide: AutoPlateFlow, joint: RowJoint, count: int) -> tuple[PlateDiagnostics, RowWeights, NDArray]:
    """Looks at all latents together, and where that says little at the globals with rows averaged.

    Returns:
        What is found, the weights that it was found from, and these smoothed and normalised.
    """
    cost = joint.numbers * len(joint.passes)
    first = row_weights(guide, joint, max(min(count, FIRST // cost), FEWEST), FEW)
    if float(np.std(first.single)) < CLOSE:
        return _close(joint, first, first.single)
    if first.noise < QUIET and len(first.single) >= LEAST:
        return _found(joint, first, first.single)
    each = _enough(guide, joint, first)
    if isinstance(each, Rule):
        few = row_weights(guide, joint, 2 * FEWEST, each)
        if float(np.std(few.log_weights)) < CLOSE and float(few.spread.max()) < ROW_CLOSE:
            return _close(joint, few, few.log_weights, each=few.each, by_nodes=True, **_bound(first.single))
    count = max(min(count, NUMBERS // (size_of(each) * cost)), LEAST)
    found, *rest = _found(joint, row_weights(guide, joint, count, each), first.single)
    return replace(found, by_nodes=isinstance(each, Rule)), *rest


def _enough(guide: AutoPlateFlow, joint: RowJoint, first: RowWeights) -> Each:
    """As many draws of each row as leave little noise in their averages, or a rule where that needs no more nodes."""
    each = FEW
    while each < MANY and first.noise * FEW / each > QUIET:
        each *= 2
    least = size_of(Rule.of(joint.structure.width, guide.loc) or MANY + 1)
    rule = sound_rule(guide, joint) if each >= min(least, MANY) else None
    if rule is None and first.noise * FEW / each > LOUD:
        return 2 * FEW  # which no more draws would make usable: enough to say which rows are off
    return each if rule is None else rule


def _close(
    joint: RowJoint, weights: RowWeights, values: NDArray, **more: float
) -> tuple[PlateDiagnostics, RowWeights, NDArray]:
    """What there is to say where log weights hardly spread, whatever their k-hat."""
    count = len(values)
    level, sd = float(np.logaddexp.reduce(values)), float(np.std(values))
    shares = np.exp(values - level)
    error = mean_error(values, values - level, -np.inf)
    evidence = level - float(np.log(count))
    seen = {
        "khat": np.nan,
        "log_weight_sd": sd,
        "efficiency": float(1 / np.sum(shares**2) / count),
        "elbo": float(np.mean(values)),
        "elbo_error": sd / count**0.5,
        "log_evidence": evidence,
        "log_evidence_error": max(error, DIGITS * (100 + abs(evidence))),
        "draws": count,
        "rows": joint.structure.rows,
        "row_spread": float(weights.spread.median()),
        "worst": _worst(weights),
        "plate": joint.structure.plate,
    }
    return PlateDiagnostics(**(seen | more)), weights, shares


def _bound(single: NDArray) -> dict[str, float]:
    """The ELBO, which is that of single draws of all latents."""
    return {"elbo": float(np.mean(single)), "elbo_error": float(np.std(single)) / len(single) ** 0.5}


def _worst(weights: RowWeights) -> dict[int, float]:
    worst = weights.spread.topk(min(NAMED, len(weights.spread)))
    return dict(zip(worst.indices.tolist(), worst.values.tolist(), strict=True))


def _found(joint: RowJoint, weights: RowWeights, single: NDArray) -> tuple[PlateDiagnostics, RowWeights, NDArray]:
    found, smoothed = Diagnostics.of(weights.log_weights)
    own = {part.name: getattr(found, part.name) for part in fields(found)}
    own |= _bound(single)
    spread = weights.spread
    mine = {"each": weights.each, "noise": weights.noise, "rows": len(spread), "row_spread": float(spread.median())}
    return PlateDiagnostics(**own, **mine, worst=_worst(weights), plate=joint.structure.plate), weights, smoothed
