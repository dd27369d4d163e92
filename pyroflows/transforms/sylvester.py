"""Sylvester maps: planar ones in several directions at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from ..arguments import check_counts
from ..maths import soft_clip, soft_floor
from ..nets import Activation, Parameters
from .base import FlowTransform
from .planar import FOLD, ridge_step
from .triangular import tril_places


class Sylvester(FlowTransform):
    """``y = x + Q R tanh(S Q^T x + b)``: bends a space of ``rank`` dimensions, spanned by orthonormal columns ``Q``.

    ``R`` and ``S`` are upper triangular, the products of their diagonals above -0.9, so that the map is invertible;
    ``ladj = sum_i log(1 + R_ii S_ii tanh'_i)``. Both directions cost O(D rank); forward is closed form, the inverse a
    scalar root for each of the ``rank`` directions, from the last to the first. It starts at the identity.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for free parameters.
        rank: columns of ``Q``, from 1 to ``D``; None for 4, or ``D`` where that is less.
        basis: where ``Q`` comes from: ``"orthogonal"`` (Gram-Schmidt of free columns), ``"householder"`` (``rank``
            reflections), or ``"triangular"`` (the first dimensions, so that only ``R`` and ``S`` are learnt).
        hidden_dims: widths of the network's hidden layers, used with a context.
        activation: makes the network's non-linearity.

    Raises:
        ValueError: if ``rank`` or ``basis`` is none of these.

    References:
        Sylvester Normalizing Flows for Variational Inference. van den Berg, Hasenclever, Tomczak, Welling, 2018.
        https://arxiv.org/abs/1803.05649
    """

    fast = "forward"

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        rank: int | None = None,
        basis: str = "orthogonal",
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(input_dim, context_dim)
        rank = min(4, input_dim) if rank is None else rank
        check_counts("Sylvester", {}, rank=rank)
        if rank > input_dim or basis not in ("orthogonal", "householder", "triangular"):
            raise ValueError(
                f"Sylvester expected a rank up to {input_dim} and a basis out of 'orthogonal', 'householder' and "
                f"'triangular', got rank={rank} and basis={basis!r}"
            )
        self.rank, self.basis = rank, basis
        above = rank * (rank - 1) // 2
        self.sizes = [rank, rank, rank, above, above, 0 if basis == "triangular" else input_dim * rank]
        self.register_buffer("places", tril_places(rank).T.contiguous(), persistent=False)
        initial = torch.cat([torch.zeros(sum(self.sizes[:-1])), torch.randn(self.sizes[-1])])
        self.params = Parameters(initial, context_dim, hidden_dims, activation)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        slope, sharp, b, r, s, free = self.params(context).split(self.sizes, dim=-1)
        slope, sharp = soft_floor(slope, FOLD), soft_clip(sharp, 3.0).exp()
        columns = self._columns(free, z)
        r, s = self._triangle(slope / sharp, r), self._triangle(sharp, s)
        inner = (columns * z.unsqueeze(-1)).sum(-2)
        if inverse:
            step, log_slope = self._solve(inner, slope, r, s, b)
        else:
            step, log_slope = ridge_step((s * inner.unsqueeze(-2)).sum(-1) + b, slope, False)
        change = (columns * (r * step.unsqueeze(-2)).sum(-1).unsqueeze(-2)).sum(-1)
        ladj = log_slope.sum(-1)
        return (z - change, -ladj) if inverse else (z + change, ladj)

    def _solve(self, inner: Tensor, slope: Tensor, r: Tensor, s: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Finds ``step = tanh(level)`` with ``v + R step = inner`` and ``level = S v + b``, from the last on."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []  # of v, step, log slope
        for i in reversed(range(self.rank)):
            later = list(zip(range(self.rank - 1, i, -1), found, strict=True))
            rest = b[..., i] + sum(s[..., i, j] * v for j, (v, _, _) in later)
            known = inner[..., i] - sum(r[..., i, j] * step for j, (_, step, _) in later)
            step, log_slope = ridge_step(s[..., i, i] * known + rest, slope[..., i], True)
            found.append((known - r[..., i, i] * step, step, log_slope))
        _, steps, log_slopes = zip(*found[::-1], strict=True)
        return torch.stack(steps, -1), torch.stack(log_slopes, -1)

    def _triangle(self, diagonal: Tensor, above: Tensor) -> Tensor:
        """Upper triangular matrices ``(..., rank, rank)``."""
        return pad(torch.cat([diagonal, above], dim=-1), (0, 1))[..., self.places]

    def _columns(self, free: Tensor, like: Tensor) -> Tensor:
        """Orthonormal columns ``(..., D, rank)``."""
        columns = torch.eye(self.input_dim, self.rank, dtype=like.dtype, device=like.device)
        if self.basis == "triangular":
            return columns
        free = torch.unflatten(free, -1, (self.input_dim, self.rank))
        if self.basis == "orthogonal":
            q, r = torch.linalg.qr(free)
            return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # no jumps as numbers change their sign
        for i in range(self.rank):
            v = normalize(free[..., i : i + 1], dim=-2)
            columns = columns - 2 * v * (v * columns).sum(-2, keepdim=True)
        return columns
