"""Orthogonal matrices that are not learnt: the cosine transform, Haar's wavelets, a random rotation."""

import math

import torch
from torch import Tensor

from ..arguments import check_sizes
from .base import FlowTransform
from .linear import product


class Orthogonal(FlowTransform):
    """``y = Q x`` with a given orthogonal matrix, which is a buffer: ladj 0, O(D^2) both ways.

    Between elementwise maps or couplings it mixes all dimensions; ``"dct"`` and ``"haar"`` take smooth signals apart
    into slow and fast parts.

    Args:
        input_dim: size ``D`` of the vectors.
        matrix: ``"random"`` (uniform over rotations and reflections, drawn from torch's generator), ``"dct"`` (the
            orthonormal cosine transform II), ``"haar"`` (Haar's wavelets, for any ``D``), or the matrix ``(D, D)``.

    Raises:
        ValueError: if the matrix is not orthogonal.

    Example:
        >>> Orthogonal(4, "dct")(torch.ones(4))[0]
        tensor(2.)
    """

    def __init__(self, input_dim: int, matrix: str | Tensor = "random") -> None:
        super().__init__(input_dim)
        self.register_buffer("matrix", as_orthogonal(matrix, input_dim))

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return product(self.matrix.mT if inverse else self.matrix, z), z.new_zeros(z.shape[:-1])

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self._map(x, context, False), product(self.matrix, score)

    def _takes(self, inverse: bool) -> torch.dtype:
        return self.matrix.dtype


def as_orthogonal(matrix: str | Tensor, input_dim: int) -> Tensor:
    """The orthogonal matrix of a name, or the given one, checked."""
    check_sizes("an orthogonal matrix", input_dim)
    named = {"random": _random, "dct": _cosines, "haar": _haar}
    if isinstance(matrix, str) and matrix in named:
        return named[matrix](input_dim).to(torch.get_default_dtype())
    if not isinstance(matrix, Tensor) or matrix.shape != (input_dim, input_dim):
        got = tuple(matrix.shape) if isinstance(matrix, Tensor) else repr(matrix)
        raise ValueError(f"Orthogonal expected one of {list(named)} or a matrix ({input_dim}, {input_dim}), got {got}")
    off = (matrix.double() @ matrix.double().mT - torch.eye(input_dim).to(matrix).double()).abs().max().item()
    if not off < 1e-5:
        raise ValueError(
            f"Orthogonal expected Q with Q Q' = I, got one that is off by {off:.3g}: take torch.linalg.qr's"
        )
    return matrix.detach().clone()


def _random(size: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    return q * r.diagonal().sign()


def _cosines(size: int) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    rows = (math.pi / size * (place + 0.5) * place.unsqueeze(-1)).cos() * math.sqrt(2 / size)
    return torch.cat([rows[:1] / math.sqrt(2), rows[1:]])


def _haar(size: int) -> Tensor:
    """Sums of neighbours, transformed again, above their differences; an odd one out is carried on."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    pairs, odd = divmod(size, 2)
    eye = torch.eye(size, dtype=torch.float64)
    first, second = eye[: 2 * pairs : 2], eye[1 : 2 * pairs : 2]
    sums = torch.cat([(first + second) / math.sqrt(2), eye[size - odd :]])
    return torch.cat([_haar(pairs + odd) @ sums, (first - second) / math.sqrt(2)])
