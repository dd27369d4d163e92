"""Importance weights of globals whose rows are averaged over independent draws, and how each row's own weights spread.

Weights of all latents together multiply those of the rows, and are hopeless where there are thousands, however good
each row is. Averaged over ``K`` draws of each row, drawn apart for each row and each draw of the globals, they are
unbiased weights of the globals alone. Their noise adds up over rows, too: many rows that are not Gaussian are averaged
over the nodes of a quadrature, where two rules agree.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...guides import AutoPlateFlow
from ...guides.plates.row_form import RowForm
from ...infer.nested.quadrature import Rule
from ...model.rows import Pass, RowJoint

# How a row is averaged: over so many draws, or by a rule.
Each = int | Rule
# Draws of the globals at which two rules are compared, and how far their sums over rows may spread.
COMPARED, APART = 16, 0.03
# Numbers of rows that are handled at once.
AT_ONCE = 200_000


@dataclass(frozen=True)
class RowWeights:
    """What draws of the globals, each with ``K`` draws of all rows, weigh.

    Args:
        log_weights: ``log p/q`` of the globals with each row averaged, ``(S,)``.
        single: ``log p/q`` of all latents, with the first draw of each row, ``(S,)``.
        spread: of each row, the standard deviation of its log weights given the globals, ``(R,)``.
        noise: the relative variance of a row's weights given the globals, summed over rows and divided by ``K``: what
            the averages add to the variance of the log weights.
        each: ``K``.
        g: the globals, ``(S, Dg)``.
    """

    log_weights: NDArray
    single: NDArray
    spread: Tensor
    noise: float
    each: int
    g: Tensor


@torch.no_grad()
def row_weights(guide: AutoPlateFlow, joint: RowJoint, count: int, each: Each) -> RowWeights:
    """Draws and weighs globals, in parts that fit the memory.

    Args:
        guide: proposes the draws.
        joint: the model.
        count: how many draws of the globals.
        each: how many of each row for every one of these, four or more, an even number; or a rule.
    """
    total, found = Spread(joint.structure.rows, guide.loc), []
    size = _at_once(joint, each)
    for first in range(0, count, size):
        g, log_q = guide.outer_posterior().rsample_and_log_prob((min(size, count - first),))
        weights, single = -log_q, -log_q
        for some, _, log_w, outer in scored(guide, joint, g, each):
            own = torch.zeros_like(log_w[0, 0]) + some.weight
            weights = weights + outer + averaged(log_w, each) @ own
            single = single + outer + log_w[:, 0] @ own
            total.add(some, log_w, each)
        found.append((g, weights, single))
    g, *levels = (torch.cat(part) for part in zip(*found, strict=True))
    spread, noise = total.read()
    return RowWeights(*(level.double().cpu().numpy() for level in levels), spread, noise, size_of(each), g)


@torch.no_grad()
def row_levels(
    guide: AutoPlateFlow,
    joint: RowJoint,
    g: Tensor,
    each: Each,
    *,
    form: RowForm | None = None,
    spread: "Spread | None" = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """``log p(data of a row | globals)``, with the row's latents integrated out by so many draws.

    Args:
        guide: proposes the draws.
        joint: the model.
        g: globals, ``(S, Dg)``.
        each: how many draws of each row for every one of these, or a rule.
        form: the conditional of the rows, None for the guide's.
        spread: collects how the weights of the rows spread.

    Returns:
        For some of the globals after the other, their own terms ``(S,)`` and the rows' ``(S, R)``.
    """
    for part in g.split(_at_once(joint, each)):
        total, found = 0.0, part.new_empty(len(part), joint.structure.rows)
        for some, _, log_w, outer in scored(guide, joint, part, each, form):
            total = total + outer
            found[:, slice(None) if some.index is None else some.index] = averaged(log_w, each)
            if spread is not None:
                spread.add(some, log_w, each)
        yield total, found


def scored(
    guide: AutoPlateFlow, joint: RowJoint, g: Tensor, each: Each, form: RowForm | None = None
) -> Iterator[tuple[Pass, Tensor, Tensor, Tensor | float]]:
    """Draws of rows ``(S, K, R, d)`` at globals ``(S, Dg)``, with their log weights ``(S, K, R)``, pass by pass.

    Draws come in pairs on opposite sides of the middle, the second half after the first, so that what is skew in the
    weights cancels in their average; a rule has its nodes in their place. The last part is the globals' own term
    ``(S,)``, the first time, and zero later. Other rows than the guide's have another form.
    """
    for number, some in enumerate(joint.passes):
        given = guide.given(joint, g, some.index)
        rows = (form or guide.form).at(given).many()
        count, width = given.pull.shape[1:]
        z = rows.draw(_noise(each, g, (count, width)))
        terms = joint(g.repeat_interleave(z.shape[1], 0), z.flatten(0, 1), some.index)
        log_w = (terms.prior + terms.rest).unflatten(0, z.shape[:2]) - rows.log_prob(z)
        outer = terms.outer[:: z.shape[1]] if number == 0 else 0.0
        yield some, z, log_w, outer


def size_of(each: Each) -> int:
    """How many draws, or nodes."""
    return len(each.nodes) if isinstance(each, Rule) else each


def averaged(log_w: Tensor, each: Each) -> Tensor:
    """The log of the average ``(S, R)`` of weights ``(S, K, R)``."""
    if isinstance(each, Rule):
        return torch.logsumexp(log_w + each.log_weights[:, None], 1)
    return torch.logsumexp(log_w, 1) - math.log(each)


def _at_once(joint: RowJoint, each: Each) -> int:
    return max(1, AT_ONCE // (size_of(each) * joint.numbers))


def _noise(each: Each, g: Tensor, shape: tuple[int, int]) -> Tensor:
    """Standard normals ``(S, K, R, d)`` that rows are made of."""
    if isinstance(each, Rule):
        return each.nodes[:, None].expand(len(g), -1, *shape)
    noise = torch.randn(len(g), -(-each // 2), *shape, dtype=g.dtype, device=g.device)
    return torch.cat([noise, -noise], 1)[:, :each]


@torch.no_grad()
def sound_rule(guide: AutoPlateFlow, joint: RowJoint) -> Rule | None:
    """A rule for the rows; None where there is none, or where one of fewer nodes moves the weights of the globals."""
    width, g = joint.structure.width, guide.outer_posterior().sample((COMPARED,))
    rules = [Rule.of(width, g, less) for less in (0, 1)]
    if None in rules:
        return None
    sums = [torch.cat([found.sum(-1) for _, found in row_levels(guide, joint, g, rule)]) for rule in rules]
    return rules[0] if (sums[0] - sums[1]).std() < APART else None


class Spread:
    """Collects how the log weights of rows spread, from two pairs of draws or more.

    Args:
        rows: how many there are.
        like: a tensor of the right dtype and device.
    """

    def __init__(self, rows: int, like: Tensor) -> None:
        self.sums = [like.new_zeros(rows) for _ in range(3)]  # of counts, variances, and relative variances of pairs

    def add(self, some: Pass, log_w: Tensor, each: Each) -> None:
        """Takes log weights ``(S, K, R)``."""
        for total, part in zip(self.sums, self._parts(log_w, each), strict=True):
            some.add(total, part.sum(0))

    def _parts(self, log_w: Tensor, each: Each) -> tuple[Tensor, Tensor, Tensor]:
        self.pairs = log_w.shape[1] // 2
        if isinstance(each, Rule):
            weights = each.log_weights.exp()[:, None]
            mean = (weights * log_w).sum(1, keepdim=True)
            variance = (weights * (log_w - mean).square()).sum(1)
            return torch.ones_like(variance), variance, torch.zeros_like(variance)
        one, other = log_w.unflatten(1, (2, self.pairs)).unbind(1)
        variance = (one - other).square().mean(1) / 4 + ((one + other) / 2).var(1)
        noise = (torch.softmax(log_w, 1).unflatten(1, (2, self.pairs)).sum(1) * self.pairs).var(1)
        return torch.ones_like(noise), variance, noise

    def read(self) -> tuple[Tensor, float]:
        """The spread of each row, ``(R,)``, and the noise of all averages."""
        count, variance, noise = self.sums
        return (variance / count).sqrt(), float((noise / count).sum() / self.pairs)
