"""Roots of very many small matrices: written out where they are so small that calls for each would take longer."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Up to this size, operations on all matrices at once are faster than a factorisation of each.
WRITTEN = 4


@dataclass(frozen=True)
class Root:
    """The lower triangular ``C`` of matrices ``C C'``.

    Args:
        lower: ``(..., d, d)``.

    Example:
        >>> root = Root.of(torch.tensor([[4.0, 2.0], [2.0, 10.0]]))
        >>> root.lower, root.log_det()
        (tensor([[2., 0.],
                [1., 3.]]), tensor(1.7918))
    """

    lower: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Root":
        """The root of positive definite matrices ``(..., d, d)``; NaN where they are not, if they are small."""
        size = matrix.shape[-1]
        if size > WRITTEN:
            return cls(torch.linalg.cholesky(matrix))
        found: list[list[Tensor]] = []
        for i in range(size):
            row: list[Tensor] = []
            for j in range(i + 1):
                rest = matrix[..., i, j]
                for k in range(j):
                    rest = rest - row[k] * (row[k] if i == j else found[j][k])
                row.append(rest.sqrt() if i == j else rest / found[j][j])
            found.append(row)
        zero = torch.zeros_like(found[0][0])
        rows = [torch.stack([*row, *[zero] * (size - len(row))], -1) for row in found]
        return cls(torch.stack(rows, -2))

    def solve(self, x: Tensor) -> Tensor:
        """``C^-1 x`` of vectors ``(..., d)``."""
        size = x.shape[-1]
        if size > WRITTEN:
            return torch.linalg.solve_triangular(self.lower, x[..., None], upper=False)[..., 0]
        found: list[Tensor] = []
        for i in range(size):
            rest = x[..., i]
            for k in range(i):
                rest = rest - self.lower[..., i, k] * found[k]
            found.append(rest / self.lower[..., i, i])
        return torch.stack(found, -1)

    def solve_t(self, x: Tensor) -> Tensor:
        """``C'^-1 x`` of vectors ``(..., d)``."""
        size = x.shape[-1]
        if size > WRITTEN:
            return torch.linalg.solve_triangular(self.lower.mT, x[..., None], upper=True)[..., 0]
        found: list[Tensor] = []
        for i in reversed(range(size)):
            rest = x[..., i]
            for k, later in zip(range(size - 1, i, -1), found, strict=True):
                rest = rest - self.lower[..., k, i] * later
            found.append(rest / self.lower[..., i, i])
        return torch.stack(found[::-1], -1)

    def product_t(self, x: Tensor) -> Tensor:
        """``C' x`` of vectors ``(..., d)``."""
        return (self.lower * x[..., None]).sum(-2)

    def log_det(self) -> Tensor:
        """``log |C|``, ``(...)``."""
        return self.lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def variances(self) -> Tensor:
        """The diagonal of ``(C C')^-1``, ``(..., d)``."""
        eye = torch.eye(self.lower.shape[-1]).to(self.lower)
        return torch.stack([self.solve(one.expand(self.lower.shape[:-1])).square().sum(-1) for one in eye], -1)
