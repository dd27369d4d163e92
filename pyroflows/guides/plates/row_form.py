"""The conditional of the rows' latents given the globals: the prior of each row times a Gaussian of its data."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...autograd import is_traced
from ...bijectors import Bend
from ...infer.nested.sites import Expanded
from ...small_matrices import Root

# Two bends, left and right of the middle, for each latent of a row.
BENDS = (Bend(-0.7), Bend(0.7))


class Given(NamedTuple):
    """What the rows' conditional is given, for ``S`` draws of the globals.

    Args:
        w: the globals in units of their posterior at the start, ``(S, Dg)``.
        pull: prior precision times prior mean, ``(S, R, d)``.
        precision: prior precision, ``(S, R, d, d)``.
        index: which rows, ``(R,)``, or None for all.
    """

    w: Tensor
    pull: Tensor
    precision: Tensor
    index: Tensor | None


@dataclass(frozen=True)
class Conditional:
    """The distribution of rows' latents given globals: a Gaussian whose base is bent.

    Args:
        mean: of the Gaussian, ``(..., R, d)``.
        root: of its precision.
        bends: the strengths of the two bends, ``(2, R, d)``.
    """

    mean: Tensor
    root: Root
    bends: Tensor

    def many(self) -> "Conditional":
        """The same with a dimension of draws before that of the rows."""
        return Conditional(self.mean.unsqueeze(-3), Root(self.root.lower.unsqueeze(-4)), self.bends)

    def of(self, rows: Tensor) -> "Conditional":
        """That of some rows."""
        return Conditional(self.mean[..., rows, :], Root(self.root.lower[..., rows, :, :]), self.bends[:, rows])

    def draw(self, noise: Tensor) -> Tensor:
        """Latents ``(..., R, d)`` made of standard normal noise of that shape."""
        return self.mean + self.root.solve_t(self.bend(noise, inverse=False)[0])

    def log_prob(self, z: Tensor) -> Tensor:
        """The log density of each row ``(..., R)``."""
        x, ladj = self.bend(self.root.product_t(z - self.mean), inverse=True)
        constant = 0.5 * math.log(2 * math.pi) * z.shape[-1]
        return -0.5 * x.square().sum(-1) - constant + self.root.log_det() + ladj

    def bend(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The two bends of each dimension of ``(..., R, d)``, and the log-det ``(..., R)``."""
        total = 0.0
        for bend, own in list(zip(BENDS, self.bends, strict=True))[:: -1 if inverse else 1]:
            x, ladj = (bend.inverse if inverse else bend.forward)(x, own)
            total = total + ladj.sum(-1)
        return x, total


class RowForm(nn.Module):
    """``z_j | g ~ N(P^-1 (Q m + F D v), P^-1)`` with ``P = Q + F D F'``, then a bend of each dimension.

    ``m`` and ``Q`` are the mean and the precision of the row's prior at the globals ``g``, so that a row without data
    has its prior whatever these are. ``v``, ``F`` and the diagonal ``D`` stand for the row's data; they move with the
    globals, by slopes that are found at the start and by a small network that all rows share.

    Args:
        sites: where the rows start.
        hidden: width of the network.

    References:
        A General Framework for the Parametrization of Hierarchical Models. Papaspiliopoulos, Roberts, Skold, 2007.
        https://doi.org/10.1214/088342307000000014
    """

    def __init__(self, sites: Expanded, hidden: int = 16) -> None:
        super().__init__()
        rows, width = sites.centre.shape
        outer = sites.slopes.shape[-1]
        for name, value in sites._asdict().items():
            self.register_buffer(name, value.detach().contiguous())
        sizes = sites.root.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(sites.root.dtype).tiny ** 0.5).log()
        features = torch.cat([sites.centre, sizes], -1)
        features = (features - features.mean(0)) / (features.std(0, correction=0) + 1e-6)
        self.register_buffer("features", features)
        self.row = nn.Parameter(sites.centre.new_zeros(rows, 2 * width + width * (width - 1) // 2 + width))
        self.shared = nn.Parameter(sites.centre.new_zeros(2 * width))
        layers = nn.Linear(outer + 2 * width, hidden), nn.SiLU(), nn.Linear(hidden, 2 * width)
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.net = nn.Sequential(*layers).to(sites.centre)
        # Parameters that all rows share move them together: their steps are shorter the more rows there are.
        self.share = rows**-0.5

    @property
    def width(self) -> int:
        """How many latents a row has."""
        return self.centre.shape[1]

    def at(self, given: Given, fixed: bool = False) -> "Conditional":
        """The rows' conditional.

        Args:
            given: the globals.
            fixed: leave the parameters out of the gradient.
        """
        row, index = self._rows("row", given.index, fixed), given.index
        moved, scaled = self._moves(given, fixed)
        count = self.width
        lower = self._lower(row[:, count : row.shape[1] - count], index)
        size = scaled.exp()
        centre = self._rows("centre", index) + self._rows("unit", index) * (row[:, :count] + moved)
        pull = given.pull + ((lower * size[..., None, :]) @ centre[..., None])[..., 0]
        root = Root.of(given.precision + (lower * size[..., None, :]) @ lower.mT)
        shared = self.share * (self.shared.detach() if fixed else self.shared).view(2, count)
        return Conditional(root.solve_t(root.solve(pull)), root, shared[:, None] + row[:, -count:])

    def _lower(self, numbers: Tensor, index: Tensor | None) -> Tensor:
        """``F`` with what was learnt: the start times a triangular matrix, the identity at zero."""
        width = self.width
        change = torch.diag_embed(numbers[:, :width].exp())
        if width > 1:
            below = torch.tril_indices(width, width, -1, device=numbers.device)
            places = below[0] * width + below[1]
            flat = change.flatten(1).index_add(1, places, numbers[:, width:])
            change = flat.view(-1, width, width)
        return self._rows("root", index) @ change

    def _moves(self, given: Given, fixed: bool) -> tuple[Tensor, Tensor]:
        """How centre and log sizes move with the globals, both ``(S, R, d)``."""
        first, _, last = self.net
        slopes = self._rows("slopes", given.index)
        moved = torch.einsum("so,rko->srk", given.w, slopes)
        idle = not (torch.is_grad_enabled() or is_traced(given.w))
        if idle and not (last.weight.any() or last.bias.any()):  # it has not learnt anything
            return moved[..., : self.width], moved[..., self.width :]
        weights = [p.detach() if fixed else p for p in (first.weight, first.bias, last.weight, last.bias)]
        outer = given.w.shape[-1]
        by_globals = given.w @ weights[0][:, :outer].mT + weights[1]
        hidden = by_globals[:, None] + self._rows("features", given.index) @ weights[0][:, outer:].mT
        found = nn.functional.silu(hidden) @ weights[2].mT + weights[3]
        found = moved + self.share * found
        return found[..., : self.width], found[..., self.width :]

    def _rows(self, name: str, index: Tensor | None, fixed: bool = False) -> Tensor:
        found = getattr(self, name)
        found = found.detach() if fixed else found
        return found if index is None else found.index_select(0, index)
