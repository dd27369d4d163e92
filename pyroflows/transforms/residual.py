"""Residual maps: the identity plus a contraction."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..nets import zero_
from ..solve import fixed_point
from .base import FlowTransform


class Residual(FlowTransform):
    """``y = x + g(x)`` with a network ``g`` whose Lipschitz constant is below 1: any network, no masks, no halves.

    Each weight is divided by its largest singular value where that is above its share of the bound, which is exact at
    every call and needs no state. The log-determinant is exact, too, from the Jacobian that is carried along: both
    directions cost about ``D`` passes of the network, which suits up to some fifty dimensions. The inverse is a fixed
    point besides: ``log(precision) / log(lipschitz)`` passes at most. It starts at the identity.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for none; its weights are not bounded.
        lipschitz: the bound on the Lipschitz constant of ``g``, below 1.
        hidden_dims: widths of the network's hidden layers, at least one. They are a swish that is no steeper than 1.

    Raises:
        ValueError: if ``lipschitz`` is not between 0 and 1, or there is no hidden layer.

    References:
        Invertible Residual Networks. Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, 2019.
        https://arxiv.org/abs/1811.00995
        Residual Flows for Invertible Generative Modeling. Chen, Behrmann, Duvenaud, Jacobsen, 2019 (the activation).
        https://arxiv.org/abs/1906.02735
    """

    fast = "forward"

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        lipschitz: float = 0.8,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(input_dim, context_dim)
        if not 0 < lipschitz < 1:
            raise ValueError(
                f"Residual expected 0 < lipschitz < 1, got {lipschitz}: x + g(x) can fold where g is steeper; take "
                f"more layers instead"
            )
        if not hidden_dims:
            raise ValueError("Residual expected at least one hidden layer, got hidden_dims of length 0")
        widths = [input_dim, *hidden_dims, input_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        zero_(self.layers[-1])
        self.context = nn.Linear(context_dim, widths[1], bias=False) if context_dim else None
        self.lipschitz = lipschitz

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        weights = self._weights()
        first = self.layers[0].bias if self.context is None else self.layers[0].bias + self.context(context)
        x = z
        if inverse:
            batch = torch.broadcast_shapes(z.shape[:-1], first.shape[:-1])
            steps = math.ceil(math.log(1e-16) / math.log(self.lipschitz))
            x = fixed_point(lambda x, y: y - self._branch(x, weights, first)[0], z.expand(*batch, -1), z, steps=steps)
        out, jacobian = self._branch(x, weights, first, slopes=True)
        eye = torch.eye(self.input_dim, dtype=z.dtype, device=z.device)
        ladj = torch.linalg.slogdet(eye + jacobian).logabsdet
        return (x, -ladj) if inverse else (x + out, ladj)

    def _weights(self) -> list[Tensor]:
        """The weights, of which the product of norms is at most the bound."""
        share = self.lipschitz ** (1 / len(self.layers))
        norms = [torch.linalg.matrix_norm(layer.weight, 2) for layer in self.layers]
        pairs = zip(self.layers, norms, strict=True)
        return [layer.weight * (share / norm.clamp_min(share)) for layer, norm in pairs]

    def _branch(
        self, x: Tensor, weights: list[Tensor], first: Tensor, slopes: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The branch ``g(x)``, and its Jacobian ``(..., D, D)`` if that is wanted."""
        h, jacobian = linear(x, weights[0]) + first, weights[0]
        for weight, layer in zip(weights[1:], self.layers[1:], strict=True):
            gate = h.sigmoid()
            if slopes:
                slope = gate * (1 + h * (1 - gate)) / 1.1  # 1.1 is the largest slope of a swish
                jacobian = weight @ (slope.unsqueeze(-1) * jacobian)
            h = linear(h * gate / 1.1, weight, layer.bias)
        return h, jacobian if slopes else None

    def extra_repr(self) -> str:
        """Sizes and bound."""
        return f"{super().extra_repr()}, lipschitz={self.lipschitz}"
