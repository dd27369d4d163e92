"""The log joint of all rows from a few at random, with control variates from all of them at one place."""

import torch
from torch import Tensor

from ..model import AllRows, Choice
from .starts.gaussian import Gaussian

# Differences of slopes are taken over this many standard deviations.
STEP = 0.25
# Draws and choices of rows by which it is measured how far the expansion helps.
DRAWS, TRIES = 32, 8


class Anchored:
    """An unbiased estimate of a log joint over all rows: a batch, less its own expansion, plus that of all rows.

    A batch of ``B`` of ``N`` rows has noise of ``sqrt(N / B)`` posterior standard deviations in its gradient. Nearly
    all of it is in the first two orders of an expansion around a place within the posterior. These are known for all
    rows, and are taken from the batch anew at each call. Whatever the place, the estimate stays unbiased; of the
    orders as many are used as make its noise smallest.

    Args:
        whole: the log joint over all rows.
        gaussian: where it is expanded, and in which units.

    References:
        Variance reduction in SGD: Accelerating Stochastic Gradient Descent using Predictive Variance Reduction.
        Johnson, Zhang, 2013. https://papers.nips.cc/paper/4937 (the first order)
    """

    def __init__(self, whole: AllRows, gaussian: Gaussian) -> None:
        self._whole = whole
        dim = len(gaussian.loc)
        # Where there are more dimensions than a run has vectors, the second order would cost more than the batch.
        self._second = dim < whole.rows
        self._points = gaussian.loc.expand(1 + dim * self._second, dim).clone()
        self._root, self._inverse = gaussian.scale_tril.clone(), gaussian.scale_tril.clone()
        self._known = (gaussian.loc.new_zeros(()), gaussian.loc.clone(), gaussian.scale_tril.clone())
        self._orders = gaussian.loc.new_ones(3)
        self.move(gaussian)

    def move(self, gaussian: Gaussian) -> None:
        """Expands around another place, in one pass over all rows; a graph of this density stays right."""
        root, off = gaussian.scale_tril, torch.zeros_like(self._points)
        if self._second:
            off[1:] = STEP * root.mT
        self._points.copy_(gaussian.loc + off)
        self._root.copy_(root)
        self._inverse.copy_(torch.linalg.inv(root))
        for kept, found in zip(self._known, self._expansion(*self._whole.value_and_score(self._points)), strict=True):
            kept.copy_(found)
        self._orders.copy_(self._best(gaussian.sample(DRAWS)))

    def __call__(self, z: Tensor) -> Tensor:
        """Maps ``(B, D)`` to ``(B,)``, for one choice of rows; differentiable."""
        return self._orders @ self._parts(z.to(self._points))  # a guide may draw in single precision

    def _parts(self, z: Tensor) -> Tensor:
        """The batch, and what the first and the second order add to it: ``(3, B)``."""
        choice = self._whole.plates.random()
        level, slope, bend = (a - b for a, b in zip(self._known, self._batch_at(choice), strict=True))
        u = (z - self._points[0]) @ self._inverse.mT
        return torch.stack([self._whole.batch(z, choice), level + u @ slope, ((u @ bend) * u).sum(-1) / 2])

    def _batch_at(self, choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            points = self._points.detach().requires_grad_()
            values = self._whole.batch(points, choice)
            (scores,) = torch.autograd.grad(values.sum(), points)
        return self._expansion(values.detach(), scores)

    def _expansion(self, values: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, slope ``(D,)`` and curvature ``(D, D)`` in units of the Gaussian, from the places."""
        slopes = scores @ self._root
        bend = (slopes[1:] - slopes[0]) / STEP if self._second else torch.zeros_like(self._root)
        return values[0], slopes[0], (bend + bend.mT) / 2

    @torch.no_grad()
    def _best(self, z: Tensor) -> Tensor:
        """Which orders to use: 1 or 0 for each."""
        found = torch.stack([self._parts(z) for _ in range(TRIES)]).cumsum(1)
        # What all draws share moves no gradient.
        noise = (found - found.mean(-1, keepdim=True)).var(0).mean(-1)
        best = torch.where(noise.isfinite(), noise, torch.inf).argmin()
        return (torch.arange(3, device=z.device) <= best).to(z)
