"""Maps that bring what passes to mean 0 and sd 1 for each dimension: once at first, or as training goes on."""

import torch
from torch import Tensor, nn

from ..autograd import is_traced
from ..maths import soft_clip, soft_unclip
from .affine import LOG_SCALE_BOUND, scaled
from .base import FlowTransform

SMALLEST = 1e-6  # sd of a dimension that does not vary


class ActNorm(FlowTransform):
    """``y = loc + scale * x``, set by the first batch in training so that what comes out has mean 0 and sd 1.

    That is what comes out of the direction called first: for densities of data the inverse, for guides forward. From
    then on loc and scale are parameters like others. Whether it is set is a buffer, so that copies, states and files
    know; rows must be two or more, and ``eval()``, a compiler or ``vmap`` set nothing. Closed form both ways;
    ladj is the sum of log scales.

    Args:
        input_dim: size ``D`` of the vectors.

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions. Kingma, Dhariwal, 2018. https://arxiv.org/abs/1807.03039

    Example:
        >>> norm = ActNorm(2)
        >>> norm.inv(5 + 3 * torch.randn(1000, 2)).std().round().item(), norm.is_set.item()
        (1.0, True)
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.loc, self.log_scale = (nn.Parameter(torch.zeros(input_dim)) for _ in range(2))
        self.register_buffer("is_set", torch.tensor(False))

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if _learns_of(self, z) and not self.is_set:
            self._set(*_moments(z), inverse)
        return scaled(z, self.loc, soft_clip(self.log_scale, LOG_SCALE_BOUND), inverse)

    @torch.no_grad()
    def _set(self, mean: Tensor, variance: Tensor, inverse: bool) -> None:
        log_sd = variance.sqrt().clamp_min(SMALLEST).log()
        self.loc.copy_(mean if inverse else -mean * (-log_sd).exp())
        self.log_scale.copy_(soft_unclip(log_sd if inverse else -log_sd, LOG_SCALE_BOUND))
        self.is_set.fill_(True)


class BatchNorm(FlowTransform):
    """``y = mean + sd * (x - loc) / scale`` with the data's running mean and sd, and a learnable loc and scale.

    In training, a call of the inverse first moves mean and variance by ``momentum`` towards those of its batch, wholly
    at the first one, and then uses them. So it is a lawful map in both directions and both modes, with an exact ladj:
    statistics are constants of it, through which no gradient flows, and a batch of one row will do. Forward never moves
    them; in guides put ``BatchNorm(D).inv``. A compiler or ``vmap`` moves nothing. Closed form both ways.

    Args:
        input_dim: size ``D`` of the vectors.
        momentum: the weight of a new batch, above 0 and up to 1.
        eps: added to variances.

    Raises:
        ValueError: if the momentum is out of its range.

    References:
        Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift. Ioffe, Szegedy,
        2015. https://arxiv.org/abs/1502.03167
        Masked Autoregressive Flow for Density Estimation. Papamakarios, Pavlakou, Murray, 2017.
        https://arxiv.org/abs/1705.07057
    """

    def __init__(self, input_dim: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(input_dim)
        if not 0 < momentum <= 1:
            raise ValueError(f"BatchNorm expected 0 < momentum <= 1, got {momentum}")
        self.momentum, self.eps = momentum, eps
        self.loc, self.log_scale = (nn.Parameter(torch.zeros(input_dim)) for _ in range(2))
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("variance", torch.ones(input_dim))
        self.register_buffer("is_set", torch.tensor(False))

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if inverse and _learns_of(self, z, rows=1):
            self._move(*_moments(z))
        log_scale = (self.variance + self.eps).log() / 2 - soft_clip(self.log_scale, LOG_SCALE_BOUND)
        return scaled(z, self.mean - log_scale.exp() * self.loc, log_scale, inverse)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        weight = torch.where(self.is_set, self.momentum, 1.0).to(mean)
        self.variance.lerp_(variance, weight)
        self.mean.lerp_(mean, weight)
        self.is_set.fill_(True)


def _learns_of(transform: FlowTransform, z: Tensor, rows: int = 2) -> bool:
    """Whether a call is one in training, of enough rows, whose values may be looked at."""
    readable = not is_traced(z) and z.device.type != "meta"
    return transform.training and readable and z.shape[:-1].numel() >= rows


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each dimension."""
    variance, mean = torch.var_mean(z.detach().flatten(0, -2), dim=0, correction=0)
    return mean, variance
