"""Linear maps by reflections, and these with a triangle or a diagonal between."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..arguments import check_counts
from ..maths import fill_triangular, soft_clip
from ..nets import Activation
from .affine import LOG_SCALE_BOUND
from .linear import LinearTransform, product, solve


class ReflectedTransform(LinearTransform):
    """A linear map with orthogonal factors, each a product of reflections ``I - 2 v v' / v'v``, which come in pairs.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for free numbers.
        reflections: their number in each factor, even; None is ``D``, or ``D + 1``, which reach every rotation.
        hidden_dims: widths of the network's hidden layers, used with a context.
        activation: makes the network's non-linearity.

    Raises:
        ValueError: if the number of reflections is odd or below 2.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        reflections: int | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        count = input_dim + input_dim % 2 if reflections is None else reflections
        name = type(self).__name__
        check_counts(name, {"reflections": 2}, reflections=count)
        if count % 2:
            raise ValueError(f"{name} expected an even number of reflections, got {count}: pairs start at the identity")
        self.reflections = count
        super().__init__(input_dim, context_dim, hidden_dims=hidden_dims, activation=activation)

    @property
    @abstractmethod
    def sizes(self) -> list[int]:
        """How many numbers each factor takes."""

    def _vectors(self) -> Tensor:
        """Vectors in pairs of equals, whose reflections make the identity."""
        return torch.randn(self.reflections // 2, 1, self.input_dim).expand(-1, 2, -1).flatten()


class QR(ReflectedTransform):
    """``y = Q R x`` with ``Q`` orthogonal, a product of reflections, and ``R`` upper triangular of positive diagonal.

    Forward products, inverse a triangular solve, O(D^2) each; ``log |det| = sum log diag R``. Arguments are those of
    :class:`ReflectedTransform`.

    References:
        Sylvester Normalizing Flows for Variational Inference. van den Berg, Hasenclever, Tomczak, Welling, 2018.
        https://arxiv.org/abs/1803.05649
    """

    @property
    def sizes(self) -> list[int]:
        """Those of the vectors and of the triangle."""
        return [self.reflections * self.input_dim, self.input_dim * (self.input_dim + 1) // 2]

    def _initial(self) -> Tensor:
        return torch.cat([self._vectors(), torch.zeros(self.sizes[1])])

    def _times(self, z: Tensor, numbers: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        vectors, entries = numbers.split(self.sizes, dim=-1)
        triangle = fill_triangular(entries, upper=True)
        log_diag = soft_clip(triangle.diagonal(dim1=-2, dim2=-1), LOG_SCALE_BOUND)
        triangle = triangle.triu(1) + log_diag.exp().diag_embed()
        if inverse:
            value = solve(triangle, _reflect(vectors, z, transposed=True), upper=True)
        else:
            value = _reflect(vectors, product(triangle, z))
        return value, log_diag.sum(-1)


class SVD(ReflectedTransform):
    """``y = U diag(s) V x`` with ``U`` and ``V`` orthogonal, products of reflections, and ``s`` positive.

    O(D^2) both ways, or O(D k) with ``k`` reflections; ``log |det| = sum log s``. Arguments are those of
    :class:`ReflectedTransform`.

    References:
        Stabilizing Gradients for Deep Neural Networks via Efficient SVD Parameterization. Zhang, Lei, Dhillon, 2018.
        https://arxiv.org/abs/1803.09327
    """

    @property
    def sizes(self) -> list[int]:
        """Those of the vectors of both sides and of the scales."""
        return [*2 * [self.reflections * self.input_dim], self.input_dim]

    def _initial(self) -> Tensor:
        return torch.cat([self._vectors(), self._vectors(), torch.zeros(self.input_dim)])

    def _times(self, z: Tensor, numbers: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        left, right, log_scale = numbers.split(self.sizes, dim=-1)
        log_scale = soft_clip(log_scale, LOG_SCALE_BOUND)
        if inverse:
            value = _reflect(right, _reflect(left, z, transposed=True) * (-log_scale).exp(), transposed=True)
        else:
            value = _reflect(left, _reflect(right, z) * log_scale.exp())
        return value, log_scale.sum(-1)


class Householder(ReflectedTransform):
    """``y = H_1 ... H_k x``, a product of reflections: a rotation, which keeps volume.

    O(D k) both ways: the product is one matrix of rank ``k`` away from the identity. Arguments are those of
    :class:`ReflectedTransform`.

    References:
        Improving Variational Auto-Encoders using Householder Flow. Tomczak, Welling, 2016.
        https://arxiv.org/abs/1611.09630
    """

    @property
    def sizes(self) -> list[int]:
        """That of the vectors."""
        return [self.reflections * self.input_dim]

    def _initial(self) -> Tensor:
        return self._vectors()

    def _times(self, z: Tensor, numbers: Tensor, inverse: bool) -> tuple[Tensor, None]:
        return _reflect(numbers, z, transposed=inverse), None


def _reflect(vectors: Tensor, z: Tensor, transposed: bool = False) -> Tensor:
    """``H_1 ... H_k z``, as ``z - V S^-1 V' z`` with ``S`` the upper triangle of ``V' V``, its diagonal halved."""
    rows = vectors.unflatten(-1, (-1, z.shape[-1]))
    rows = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    products = rows @ rows.mT
    small = products.triu(1) + torch.eye(rows.shape[-2]).to(rows) / 2
    along = product(rows, z)
    along = solve(small.mT, along, upper=False) if transposed else solve(small, along, upper=True)
    return z - product(rows.mT, along)
