"""A lower triangular affine map, with a factor of low rank if that is wanted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..maths import soft_clip
from ..nets import Activation, Parameters
from .affine import LOG_SCALE_BOUND, initial_values
from .base import FlowTransform

# Spreads that a loc moves, and factors of e that a scale grows, as its parameter grows by one.
PACE = 1.5, 2.0


class LowerTriangular(FlowTransform):
    """``y = loc + L (I + P P^T) x``: a full covariance, with an optional low-rank factor ``P``.

    ``L`` is lower triangular with a positive diagonal and ``P`` has shape ``(D, rank)``; the product is
    invertible whatever the parameters. Forward is a product, inverse a triangular solve, O(D^2) both;
    ``ladj = log det L + log det(I + P^T P)``.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for free parameters.
        rank: columns of ``P``, 0 for none.
        spread: about how far each coordinate ranges, positive, of shape ``(D,)``: parameters then count ``loc`` and the
            diagonal of ``L`` in these units, and what is below it in units of its row's diagonal over ``sqrt(D)``.
            Steps of an optimizer then do not depend on units, and turn the draws of a narrow density no further than
            those of a wide one. None: all are counted as they are.
        loc: initial location, a number or shape ``(D,)``.
        scale: initial diagonal of ``L``, positive, a number or shape ``(D,)``.
        hidden_dims: widths of the network's hidden layers, used with a context.
        activation: makes the network's non-linearity.

    Raises:
        ValueError: if ``loc``, ``scale`` or ``spread`` has the wrong shape, ``scale`` or ``spread`` is not positive or
            ``rank`` is negative.

    References:
        The founding use is ``tfb_affine(scale_tril, scale_perturb_factor, shift)``; there ``P P^T`` is added
        to ``L``, which can be singular.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        rank: int = 0,
        spread: Tensor | None = None,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if rank < 0:
            raise ValueError(f"LowerTriangular expected rank >= 0, got {rank}")
        if spread is not None and not (spread.shape == (input_dim,) and (spread > 0).all()):
            raise ValueError(f"LowerTriangular expected spread > 0 of shape ({input_dim},), got {spread}")
        self.rank, self.relative = rank, spread is not None
        below = input_dim * (input_dim - 1) // 2
        self.sizes = [input_dim, input_dim, below, input_dim * rank]
        first = initial_values(self, loc, scale)
        self.register_buffer("places", tril_places(input_dim).to(first.device), persistent=False)
        self.register_buffer("center", torch.zeros_like(first[:input_dim]))
        self.register_buffer("frame", torch.eye(input_dim).to(first))
        if spread is not None:
            self.center, self.frame = first[:input_dim].clone(), torch.diag(spread.to(first))
            zero, log_ratio = initial_values(self, 0.0, scale / spread).to(first).split(input_dim)
            first = torch.cat([zero, log_ratio / PACE[1]])
        # P = 0 is a saddle point of P P^T: start beside it.
        rest = torch.cat([first.new_zeros(below), 0.01 * torch.randn(input_dim * rank).to(first)])
        self.params = Parameters(torch.cat([first, rest]), context_dim, hidden_dims, activation)

    @torch.no_grad()
    def whiten_(self) -> "LowerTriangular":
        """Makes the current map the frame of the parameters, which start again from zero; returns itself.

        The map stays what it is, and an optimizer goes on in whitened coordinates: ``y = center + frame y'``
        with ``y'`` the map of the new parameters.

        Raises:
            ValueError: if there is a context or a low-rank factor.
        """
        self._check_free()
        shift, tril, _, _ = self._parts(None)
        return self.frame_(self.center + self.frame @ shift, self.frame @ tril)

    @torch.no_grad()
    def frame_(self, center: Tensor, frame: Tensor) -> "LowerTriangular":
        """Makes ``y = center + frame x`` the map and the frame of the parameters, which start from zero.

        Args:
            center: shape ``(D,)``.
            frame: lower triangular, of shape ``(D, D)``, with a positive diagonal.

        Raises:
            ValueError: if there is a context or a low-rank factor.
        """
        self._check_free()
        self.center.copy_(center)
        self.frame.copy_(frame)
        self.params.value.zero_()
        return self

    def _check_free(self) -> None:
        if self.context_dim or self.rank:
            raise ValueError(f"expected context_dim=0 and rank=0, got {self.context_dim} and {self.rank}")

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The shift, the triangle, the log of its diagonal, and the factor ``P``, in the precision of the frame."""
        shift, log_diag, below, factor = self.params(context).to(self.frame.dtype).split(self.sizes, dim=-1)
        if self.relative:
            shift, log_diag = shift * PACE[0], log_diag * PACE[1]
        log_diag = soft_clip(log_diag, LOG_SCALE_BOUND)
        diag, root = log_diag.exp(), self.input_dim**0.5
        first = torch.full_like(diag, root) if self.relative else diag
        tril = pad(torch.cat([first, below], dim=-1), (0, 1))[..., self.places]
        if self.relative:
            tril = tril * (diag / root).unsqueeze(-1)
        return shift, tril, log_diag, torch.unflatten(factor, -1, (self.input_dim, self.rank))

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        z = z.to(self.frame.dtype)
        shift, tril, log_diag, factor = self._parts(context)
        ladj = log_diag.sum(-1) + self.frame.diagonal().log().sum()
        if self.rank:
            small = torch.eye(self.rank, dtype=z.dtype, device=z.device) + factor.mT @ factor
            root = torch.linalg.cholesky_ex(small).L
            ladj = ladj + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if inverse:
            u = torch.linalg.solve_triangular(self.frame, (z - self.center).unsqueeze(-1), upper=False)
            u = torch.linalg.solve_triangular(tril, u - shift.unsqueeze(-1), upper=False)
            if self.rank:
                u = u - factor @ torch.cholesky_solve(factor.mT @ u, root)
            return u.squeeze(-1), -ladj.expand(u.shape[:-2])
        u = z if not self.rank else z + _times(factor, _times(factor.mT, z))
        value = self.center + _times(self.frame, _times(tril, u) + shift)
        return value, ladj.expand(value.shape[:-1])

    def _takes(self, inverse: bool) -> torch.dtype:
        return self.frame.dtype

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.rank or self.context_dim:
            return super()._map_and_score(x, context, score)
        value, ladj = self._map(x, context, False)
        score = score.to(value.dtype)
        for matrix in (self._parts(context)[1].detach(), self.frame):
            score = torch.linalg.solve_triangular(matrix, score.reshape(-1, self.input_dim), upper=False, left=False)
        return value, ladj.detach(), score.view_as(value)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of matrices and vectors whose batches broadcast."""
    return vector @ matrix.mT if matrix.dim() == 2 else (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def tril_places(input_dim: int) -> Tensor:
    """Where each entry of a ``D x D`` triangle is found in ``[diagonal, below, 0]``."""
    rows, columns = torch.tril_indices(input_dim, input_dim, -1)
    places = torch.full((input_dim, input_dim), input_dim + len(rows))
    places.fill_diagonal_(0).diagonal().copy_(torch.arange(input_dim))
    places[rows, columns] = input_dim + torch.arange(len(rows))
    return places
