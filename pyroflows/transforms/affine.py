"""Affine maps of the whole vector: diagonal, or lower triangular with a low-rank factor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..maths import soft_clip, soft_unclip
from ..nets import Activation, Parameters
from .base import FlowTransform

# Scales stay between exp(-20) and exp(20).
LOG_SCALE_BOUND = 20.0


class Affine(FlowTransform):
    """``y = loc + scale * x`` with learnable loc and scale; both directions are cheap.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for free parameters.
        loc: initial location, a number or shape ``(D,)``.
        scale: initial scale, positive, a number or shape ``(D,)``.
        hidden_dims: widths of the network's hidden layers, used with a context.
        activation: makes the network's non-linearity.

    Raises:
        ValueError: if ``loc`` or ``scale`` has the wrong shape or ``scale`` is not positive.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.params = Parameters(initial_values(self, loc, scale), context_dim, hidden_dims, activation)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.params(context).chunk(2, dim=-1)
        return scaled(z, loc, soft_clip(log_scale, LOG_SCALE_BOUND), inverse)


def scaled(z: Tensor, loc: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """``loc + scale * z``, or the way back, and the ladj."""
    value = (z - loc) * (-log_scale).exp() if inverse else loc + log_scale.exp() * z
    ladj = log_scale.sum(-1).expand(value.shape[:-1])
    return value, -ladj if inverse else ladj


def initial_values(transform: FlowTransform, loc: float | Tensor, scale: float | Tensor) -> Tensor:
    """The parameters ``[loc, log scale before clipping]`` of shape ``(2 D,)``."""
    size, values = transform.input_dim, []
    device = next((given.device for given in (loc, scale) if isinstance(given, Tensor)), None)
    for name, given in (("loc", loc), ("scale", scale)):
        value = given.detach() if isinstance(given, Tensor) else torch.tensor(float(given), device=device)
        if value.shape not in ((), (size,)):
            raise ValueError(
                f"{type(transform).__name__} expected {name} to be a number or of shape ({size},), "
                f"got {tuple(value.shape)}"
            )
        values.append(value.expand(size))
    if not ((values[1] > 0) & (values[1].log().abs() < LOG_SCALE_BOUND)).all():
        raise ValueError(
            f"{type(transform).__name__} expected a scale between exp(-{LOG_SCALE_BOUND:g}) and "
            f"exp({LOG_SCALE_BOUND:g}), got {values[1].tolist()}"
        )
    return torch.cat([values[0], soft_unclip(values[1].log(), LOG_SCALE_BOUND)])
