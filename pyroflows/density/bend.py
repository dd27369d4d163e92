"""Monotone splines with heavy tails: the fixed map of columns in which some rows lie far out."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Knots of a bend.
KNOTS = 16
# How fast, at least and at most, the logarithm of the slope grows beyond the last row, for each sd of a normal.
GROWTH = (1.0, 5.0)


@dataclass
class Bend:
    """Monotone rational quadratic splines; beyond the first and the last knot slopes grow like an exponential.

    Between two knots ``x(z)`` is that of Gregory and Delbourgo, with the harmonic mean of the neighbouring secants as
    slope at a knot, so that a row far out does not bend what lies before the knot next to it.

    Args:
        x: the knots ``(B, KNOTS)``, increasing, at even steps of ``z``.
        z: where the first and the last lie, ``(B, 2)``.
    """

    x: Tensor
    z: Tensor

    def __post_init__(self) -> None:
        """Measures slopes, and how they grow at both ends."""
        self.step = (self.z[:, 1] - self.z[:, 0]) / (KNOTS - 1)
        self.secant = self.x.diff() / self.step[:, None]
        left, right = self.secant[:, :-1], self.secant[:, 1:]
        between = 2 / (1 / left + 1 / right)
        self.slope = torch.cat([self.secant[:, :1], between, self.secant[:, -1:]], -1)
        off = (self.x - self.x[:, [KNOTS // 2]]).abs()
        back = (1 / self.step).round().long().clamp(1, KNOTS // 2 - 1)
        inner = torch.stack([off.gather(1, at[:, None])[:, 0] for at in (back, KNOTS - 1 - back)], -1)
        self.growth = ((off[:, [0, -1]] / inner).log() / (back * self.step)[:, None]).clamp(*GROWTH)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and the logarithm of its slope for normal ``z`` of shape ``(..., B)``."""
        inside = torch.minimum(torch.maximum(z, self.z[:, 0]), self.z[:, 1])
        place = (inside - self.z[:, 0]) / self.step
        at = place.detach().floor().clamp(0, KNOTS - 2).long()
        x, ladj = self._cell(at, place - at)
        over, growth, edge = z - inside, *self._ends(z < inside)
        return x + over.sign() * edge * torch.expm1(growth * over.abs()) / growth, ladj + growth * over.abs()

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` for ``x`` of shape ``(..., B)``, and the logarithm of its slope."""
        inside = torch.minimum(torch.maximum(x, self.x[:, 0]), self.x[:, -1])
        at = (inside.detach().unsqueeze(-1) >= self.x[:, 1:-1]).sum(-1)
        low, first, last = self._at(self.x, at), *self._relative(at)
        height = (inside - low) / (self._at(self.x, at + 1) - low)
        bent = first + last - 2
        a, b = 1 - first + height * bent, first - height * bent
        share = 2 * height / (b + (b.square() + 4 * a * height).sqrt())
        _, ladj = self._cell(at, share)
        over, growth, edge = x - inside, *self._ends(x < inside)
        beyond = torch.log1p(growth * over.abs() / edge)
        z = self.z[:, 0] + (at + share) * self.step + over.sign() * beyond / growth
        return z, -ladj - beyond

    def _cell(self, at: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` at a share of the way through a cell, and the logarithm of its slope."""
        low, secant, (first, last) = self._at(self.x, at), self._at(self.secant, at), self._relative(at)
        both = share * (1 - share)
        norm = 1 + (first + last - 2) * both
        x = low + (self._at(self.x, at + 1) - low) * (share.square() + first * both) / norm
        slope = last * share.square() + 2 * both + first * (1 - share).square()
        return x, secant.log() + slope.log() - 2 * norm.log()

    def _relative(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes at both ends of a cell, for its secant: in this form nothing overflows."""
        secant = self._at(self.secant, at)
        return self._at(self.slope, at) / secant, self._at(self.slope, at + 1) / secant

    def _ends(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """Growth and slope at the end that is nearer."""
        growth = torch.where(left, self.growth[:, 0], self.growth[:, 1])
        return growth, torch.where(left, self.slope[:, 0], self.slope[:, -1])

    def _at(self, table: Tensor, at: Tensor) -> Tensor:
        return table[torch.arange(len(table), device=at.device), at]
