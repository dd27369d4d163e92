"""Linear maps by triangles and exponentials, whose determinant is known."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..maths import fill_triangular, soft_clip
from ..nets import Activation, Parameters
from .affine import LOG_SCALE_BOUND
from .base import FlowTransform


class LinearTransform(FlowTransform):
    """``y = W x`` with a matrix made of numbers that are free, or come from the context through a network.

    It starts at the identity. For a location, put :class:`~pyroflows.transforms.Affine` behind it.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for free numbers.
        hidden_dims: widths of the network's hidden layers, used with a context.
        activation: makes the network's non-linearity.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.params = Parameters(self._initial(), context_dim, hidden_dims, activation)

    @abstractmethod
    def _initial(self) -> Tensor:
        """The numbers that make the identity."""

    @abstractmethod
    def _times(self, z: Tensor, numbers: Tensor, inverse: bool) -> tuple[Tensor, Tensor | None]:
        """``W z``, or ``W^-1 z``, and ``log |det W|``, None for 0."""

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        value, log_det = self._times(z, self.params(context), inverse)
        if log_det is None:
            return value, value.new_zeros(value.shape[:-1])
        return value, (-log_det if inverse else log_det).expand(value.shape[:-1])


class LU(LinearTransform):
    """``y = L U x`` with ``L`` lower triangular of unit diagonal and ``U`` upper triangular of a positive one.

    With a :class:`~pyroflows.transforms.Permute` before it, whose order is fixed, every matrix is near. Forward two
    products, inverse two triangular solves, O(D^2) each; ``log |det| = sum log diag U``. See :class:`LinearTransform`.

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions. Kingma, Dhariwal, 2018. https://arxiv.org/abs/1807.03039
    """

    def _initial(self) -> Tensor:
        return torch.zeros(self.input_dim**2)

    def _times(self, z: Tensor, numbers: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        matrix = numbers.unflatten(-1, (self.input_dim, self.input_dim))
        log_diag = soft_clip(matrix.diagonal(dim1=-2, dim2=-1), LOG_SCALE_BOUND)
        lower = matrix.tril(-1) + torch.eye(self.input_dim).to(matrix)
        upper = matrix.triu(1) + log_diag.exp().diag_embed()
        if inverse:
            return solve(upper, solve(lower, z, upper=False), upper=True), log_diag.sum(-1)
        return product(lower, product(upper, z)), log_diag.sum(-1)


class Rotation(LinearTransform):
    """``y = exp(A - A') x`` with ``A`` lower triangular: every rotation, which keeps volume.

    A matrix exponential, O(D^3), and a product, both ways. See :class:`LinearTransform`.

    Raises:
        ValueError: if there is one dimension only.
    """

    def _initial(self) -> Tensor:
        if self.input_dim < 2:
            raise ValueError("Rotation expected input_dim >= 2, got 1: there is nothing to turn")
        return torch.zeros(self.input_dim * (self.input_dim - 1) // 2)

    def _times(self, z: Tensor, numbers: Tensor, inverse: bool) -> tuple[Tensor, None]:
        lower = pad(fill_triangular(numbers), (0, 1, 1, 0))
        turn = torch.linalg.matrix_exp(lower - lower.mT)
        return product(turn.mT if inverse else turn, z), None


class MatrixExponential(LinearTransform):
    """``y = exp(M) x`` with any matrix ``M``; ``log |det| = trace M``, exactly.

    A matrix exponential, O(D^3), and a product, both ways: the inverse is ``exp(-M)``. See :class:`LinearTransform`.

    References:
        The Convolution Exponential and Generalized Sylvester Flows. Hoogeboom, Satorras, Tomczak, Welling, 2020.
        https://arxiv.org/abs/2006.01910
    """

    def _initial(self) -> Tensor:
        return torch.zeros(self.input_dim**2)

    def _times(self, z: Tensor, numbers: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        matrix = numbers.unflatten(-1, (self.input_dim, self.input_dim))
        grown = torch.linalg.matrix_exp(-matrix if inverse else matrix)
        return product(grown, z), matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of matrices and vectors whose batches broadcast."""
    return vector @ matrix.mT if matrix.dim() == 2 else (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def solve(matrix: Tensor, vector: Tensor, upper: bool) -> Tensor:
    """Solves triangular systems whose batches broadcast; one matrix is not repeated for each row."""
    if matrix.dim() == 2:
        rows = vector.reshape(-1, vector.shape[-1])
        return torch.linalg.solve_triangular(matrix.mT, rows, upper=not upper, left=False).view_as(vector)
    return torch.linalg.solve_triangular(matrix, vector.unsqueeze(-1), upper=upper).squeeze(-1)
