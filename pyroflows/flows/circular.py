"""Flows of angles."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..bijectors import CircularShift, RQSpline
from ..nets import MLP, Activation
from ..transforms import Compose, Coupling, Elementwise


class AngleMLP(nn.Module):
    """An MLP that reads angles by their cosine and sine, so that -pi and pi are one; a context follows as it is.

    Args:
        input_dim: how many angles and numbers of the context.
        output_dim: width of the output.
        context_dim: how many of the inputs, at the end, are a context.
        hidden_dims: widths of the hidden layers.
        activation: makes the non-linearity.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.angles = input_dim - context_dim
        self.net = MLP(self.angles + input_dim, output_dim, hidden_dims, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., inputs)`` to ``(..., outputs)``."""
        angles, context = x[..., : self.angles], x[..., self.angles :]
        return self.net(torch.cat([angles.cos(), angles.sin(), context], dim=-1))


def ncsf(
    input_dim: int,
    context_dim: int = 0,
    *,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    bins: int = 8,
) -> Compose:
    """Circular spline couplings and a turn of each angle: densities on the torus ``[-pi, pi]^D``, without a seam.

    Over a base on the torus: uniform, which ``FlowDistribution`` takes by itself, or von Mises. Fast both ways.

    Args:
        input_dim: number ``D`` of angles; 1 falls back to one elementwise spline.
        context_dim: size of the context, 0 for none.
        layers: number of couplings, at least 2.
        hidden_dims: widths of the networks' hidden layers.
        activation: makes the networks' non-linearity.
        bins: bins of each spline.

    Raises:
        ValueError: if ``layers`` is below 2.

    References:
        Normalizing Flows on Tori and Spheres. Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer,
        2020. https://arxiv.org/abs/2002.02428

    Example:
        >>> from pyroflows import FlowDistribution
        >>> density = FlowDistribution(transform=ncsf(2))
        >>> density.log_prob(density.sample((5,))).exp().mul(4 * math.pi**2).round().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if layers < 2:
        raise ValueError(f"ncsf expected layers >= 2, got {layers}: one coupling leaves half of the angles as is")
    spline, options = RQSpline(bins, math.pi, tails="circular"), {"hidden_dims": hidden_dims, "activation": activation}
    turn = Elementwise(input_dim, CircularShift(), context_dim, **options)
    if input_dim == 1:
        return Compose([Elementwise(1, spline, context_dim, **options), turn])
    net, parts = partial(AngleMLP, context_dim=context_dim, **options), []
    for index in range(layers):
        if index % 2 == 0:
            kept = torch.randperm(input_dim) < input_dim // 2
        parts.append(Coupling(input_dim, spline, context_dim, mask=~kept if index % 2 else kept, net=net))
    return Compose([*parts, turn])
