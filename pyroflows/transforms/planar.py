"""Planar and radial maps: the oldest flows, with their inverses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..maths import soft_clip, soft_floor
from ..nets import Activation, Parameters
from ..solve import increasing_root
from .base import FlowTransform

# How near to a fold a map may come: slopes along the direction that is bent are at least one minus this.
FOLD = 0.9
# Keeps a division by a length, and the gradient of one, finite at zero.
TINY = 1e-30


class Planar(FlowTransform):
    """``y = x + u tanh(w.x + b)``: pushes along ``u`` what lies on either side of a plane.

    ``u`` is moved along ``w`` so that ``u.w > -0.9``, which makes it invertible; ``ladj = log(1 + u.w tanh')``. Both
    directions cost O(D): forward is closed form, the inverse one scalar root for each row, 10 to 40 evaluations of a
    tanh. It starts at the identity.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for free parameters.
        hidden_dims: widths of the network's hidden layers, used with a context.
        activation: makes the network's non-linearity.

    References:
        Variational Inference with Normalizing Flows. Rezende, Mohamed, 2015. https://arxiv.org/abs/1505.05770
    """

    fast = "forward"

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(input_dim, context_dim)
        initial = torch.cat([torch.zeros(input_dim), torch.randn(input_dim) / input_dim**0.5, torch.zeros(1)])
        self.params = Parameters(initial, context_dim, hidden_dims, activation)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        u, w, b = self.params(context).split([self.input_dim, self.input_dim, 1], dim=-1)
        given = (u * w).sum(-1, keepdim=True)
        slope = soft_floor(given, FOLD)
        u = u + (slope - given) / ((w * w).sum(-1, keepdim=True) + TINY) * w
        level = (w * z).sum(-1, keepdim=True) + b
        step, log_slope = ridge_step(level, slope, inverse)
        ladj = log_slope.squeeze(-1)
        return (z - u * step, -ladj) if inverse else (z + u * step, ladj)


class Radial(FlowTransform):
    """``y = x + b (x - c) / (a + |x - c|)``: draws what lies around a centre ``c`` nearer to it, or pushes it away.

    ``a > 0`` and ``b > -0.9 a``; the inverse solves a quadratic equation for the distance, so that both directions are
    closed form and cost O(D). With ``r = |x - c|``, ``ladj = (D - 1) log(1 + b / (a + r)) + log(1 + a b / (a + r)^2)``.
    It starts at the identity. Arguments are those of :class:`Planar`.

    References:
        Variational Inference with Normalizing Flows. Rezende, Mohamed, 2015. https://arxiv.org/abs/1505.05770
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
        initial = torch.cat([torch.randn(input_dim), torch.zeros(2)])
        self.params = Parameters(initial, context_dim, hidden_dims, activation)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        centre, a, b = self.params(context).split([self.input_dim, 1, 1], dim=-1)
        a = soft_clip(a, 5.0).exp()
        b = a * soft_floor(b, FOLD)
        off = z - centre
        distance = ((off * off).sum(-1, keepdim=True) + TINY).sqrt()
        if inverse:  # the positive root of r^2 - (distance - a - b) r - a distance, without cancellation
            half = (distance - a - b) / 2
            large = half.abs() + torch.hypot(half, (a * distance).sqrt())
            distance = torch.where(half < 0, a * distance / large, large)
        share = b / (a + distance)
        ladj = (self.input_dim - 1) * torch.log1p(share) + torch.log1p(share * a / (a + distance))
        ladj = ladj.squeeze(-1)
        return (centre + off / (1 + share), -ladj) if inverse else (z + off * share, ladj)


def ridge_step(level: Tensor, slope: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """``tanh(a)`` and ``log(1 + slope tanh'(a))`` for a level ``a``, or the one with ``a + slope tanh(a) = level``."""
    step = torch.tanh(increasing_root(_ridge, level, slope) if inverse else level)
    return step, torch.log1p(slope * (1 - step * step))


def _ridge(level: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    step = torch.tanh(level)
    return level + slope * step, torch.log1p(slope * (1 - step * step))
