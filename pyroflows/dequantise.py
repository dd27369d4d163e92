"""From whole numbers, such as the grey levels of images, to densities: noise, the logit, bits per dimension."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from .distributions import FlowDistribution
from .numeric import check_counts


class Dequantiser(nn.Module):
    """Turns whole numbers into real vectors whose density bounds the probability of the numbers.

    Noise from the unit interval is added, the sum is scaled into ``(margin, 1 - margin)`` and put through the
    logit. For the ``y`` and ``ladj`` that a call returns and any density ``p`` of real vectors, the mean of
    ``log p(y) + ladj`` over the noise is at most ``log P(x)``. The gap is smaller where the noise is learnt
    (variational dequantisation), which is trained by raising the bound together with ``p``.

    Args:
        levels: how many whole numbers there are: ``x`` lies in ``0, ..., levels - 1``; 256 for bytes.
        noise: gives the distribution of the logit of the noise from ``x``, scaled to ``[-1, 1]``, such as a
            :class:`~pyroflows.encoders.FlowEncoder`; None is uniform noise.
        margin: how far the logit stays from 0 and 1.

    Raises:
        ValueError: if an argument is out of range, or when called with numbers that are not whole or out of range.

    References:
        Density Estimation using Real NVP. Dinh, Sohl-Dickstein, Bengio, 2017. https://arxiv.org/abs/1605.08803
        Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design. Ho,
        Chen, Srinivas, Duan, Abbeel, 2019. https://arxiv.org/abs/1902.00275

    Example:
        >>> from pyroflows import FlowPrior
        >>> dequantise, flow, x = Dequantiser(256), FlowPrior(4), torch.tensor([[0.0, 7.0, 128.0, 255.0]])
        >>> y, ladj = dequantise(x)
        >>> bound = flow().log_prob(y) + ladj
        >>> bits_per_dim(bound, 4).shape, dequantise.quantise(y).tolist()
        (torch.Size([1]), [[0.0, 7.0, 128.0, 255.0]])
    """

    def __init__(self, levels: int, noise: nn.Module | None = None, *, margin: float = 0.05) -> None:
        super().__init__()
        if levels < 2 or not 0 < margin < 0.5:
            raise ValueError(f"Dequantiser expected levels >= 2 and 0 < margin < 0.5, got {levels} and {margin}")
        self.levels, self.noise, self.margin = levels, noise, margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Real vectors for whole numbers ``(..., D)``, and what to add to their log density: ``(...)``, in nats."""
        self._check(x)
        u, log_q = self._draw(x)
        width = 1 - 2 * self.margin
        share = self.margin + width * (x + u) / self.levels
        y = torch.logit(share)
        ladj = (math.log(width / self.levels) - logsigmoid(y) - logsigmoid(-y)).sum(-1)
        return y, ladj - log_q

    def quantise(self, y: Tensor) -> Tensor:
        """The whole numbers that real vectors stand for, for samples of a density."""
        share = (torch.sigmoid(y) - self.margin) / (1 - 2 * self.margin)
        return (share * self.levels).floor().clamp(0, self.levels - 1)

    def log_likelihood(self, density: FlowDistribution, x: Tensor, samples: int = 1) -> Tensor:
        """A lower bound of ``log P(x)`` of shape ``(...)``, in nats, nearer with more draws of the noise."""
        check_counts("Dequantiser", {}, samples=samples)
        drawn = [density.log_prob(y) + ladj for y, ladj in (self(x) for _ in range(samples))]
        return torch.stack(drawn).logsumexp(0) - math.log(samples)

    def _draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise from the unit interval, and its log density."""
        if self.noise is None:
            return torch.rand_like(x), x.new_zeros(x.shape[:-1])
        logits, log_q = self.noise(2 * x / (self.levels - 1) - 1).rsample_and_log_prob()
        return torch.sigmoid(logits), log_q - (logsigmoid(logits) + logsigmoid(-logits)).sum(-1)

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(
                f"Dequantiser expected whole numbers in a floating-point tensor, got {x.dtype}: use .float()"
            )
        if not ((x == x.floor()) & (x >= 0) & (x < self.levels)).all():
            raise ValueError(
                f"Dequantiser expected whole numbers from 0 to {self.levels - 1}, got values from {x.min():g} to "
                f"{x.max():g}, {int((x != x.floor()).sum())} of them not whole"
            )


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Log probabilities in nats as bits for each of ``dims`` dimensions; lower is better.

    Example:
        >>> bits_per_dim(torch.tensor(-10 * math.log(256)), 10).item()
        8.0
    """
    return -log_prob / (dims * math.log(2))
