"""From whole numbers, such as grey levels or categories, to densities: noise, the logit, argmax, bits per dimension."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, one_hot, softplus

from ..arguments import check_counts
from ..distributions import FlowDistribution


class Surjection(nn.Module):
    """What turns whole numbers into real vectors at random, in such a way that they can be told from the vectors.

    Args:
        levels: how many whole numbers there are, at least 2.
        noise: gives the distribution of the noise from the numbers; None where it does not depend on them.
    """

    def __init__(self, levels: int, noise: nn.Module | None = None) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"{type(self).__name__} expected levels >= 2, got {levels}")
        self.levels, self.noise = levels, noise

    def log_likelihood(self, density: FlowDistribution, x: Tensor, samples: int = 1) -> Tensor:
        """A lower bound of ``log P(x)`` of shape ``(...)``, in nats, nearer with more draws of the noise."""
        check_counts(type(self).__name__, {}, samples=samples)
        drawn = [density.log_prob(y) + ladj for y, ladj in (self(x) for _ in range(samples))]
        return torch.stack(drawn).logsumexp(0) - math.log(samples)

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if not x.is_floating_point():
            raise TypeError(f"{name} expected whole numbers in a floating-point tensor, got {x.dtype}: use .float()")
        if not ((x == x.floor()) & (x >= 0) & (x < self.levels)).all():
            raise ValueError(
                f"{name} expected whole numbers from 0 to {self.levels - 1}, got values from {x.min():g} to "
                f"{x.max():g}, {int((x != x.floor()).sum())} of them not whole"
            )


class Dequantiser(Surjection):
    """Turns whole numbers into real vectors whose density bounds the probability of the numbers.

    Noise from the unit interval is added, the sum is scaled into ``(margin, 1 - margin)`` and put through the
    logit. For the ``y`` and ``ladj`` that a call returns and any density ``p`` of real vectors, the mean of
    ``log p(y) + ladj`` over the noise is at most ``log P(x)``. The gap is smaller where the noise is learnt
    (variational dequantisation), which is trained by raising the bound together with ``p``.

    Args:
        levels: how many whole numbers there are: ``x`` lies in ``0, ..., levels - 1``; 256 for bytes.
        noise: gives the distribution of the logit of the noise from ``x``, scaled to ``[-1, 1]``, such as a
            :class:`~pyroflows.guides.FlowEncoder`; None is uniform noise.
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
        super().__init__(levels, noise)
        if not 0 < margin < 0.5:
            raise ValueError(f"Dequantiser expected 0 < margin < 0.5, got {margin}")
        self.margin = margin

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

    def _draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise from the unit interval, and its log density."""
        if self.noise is None:
            return torch.rand_like(x), x.new_zeros(x.shape[:-1])
        logits, log_q = self.noise(2 * x / (self.levels - 1) - 1).rsample_and_log_prob()
        return torch.sigmoid(logits), log_q - (logsigmoid(logits) + logsigmoid(-logits)).sum(-1)


class Argmax(Surjection):
    """Turns categories, which have no order, into real vectors whose largest entry is at the category.

    A variable of ``K`` categories takes ``K`` entries; those of ``D`` variables follow one another in a vector of size
    ``D K``. Noise is drawn, and entries at other categories are pushed below the one at the category, smoothly. For
    the ``y`` and ``ladj`` that a call returns and any density ``p`` of such vectors, the mean of ``p(y) exp(ladj)``
    over the noise is ``P(x)``, and that of ``log p(y) + ladj`` is at most ``log P(x)``: training raises it.

    Args:
        levels: the number ``K`` of categories, coded as ``0, ..., K - 1``.
        noise: gives the distribution of the noise from the categories as one-hot vectors ``(..., D K)``, such as a
            :class:`~pyroflows.guides.FlowEncoder`; None is standard logistic noise.

    Raises:
        ValueError: if ``levels`` is below 2, or when called with numbers that are not whole or out of range.

    References:
        Argmax Flows and Multinomial Diffusion: Learning Categorical Distributions. Hoogeboom, Nielsen, Jaini, Forré,
        Welling, 2021. https://arxiv.org/abs/2102.05379

    Example:
        >>> from pyroflows import FlowPrior
        >>> argmax, flow, x = Argmax(3), FlowPrior(2 * 3), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
        >>> y, ladj = argmax(x)
        >>> y.shape, argmax.quantise(y).tolist()
        (torch.Size([2, 6]), [[0.0, 2.0], [1.0, 1.0]])
        >>> argmax.log_likelihood(flow(), x, samples=100).shape
        torch.Size([2])
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Real vectors ``(..., D K)`` for categories ``(..., D)``, and what to add to their log density: ``(...)``."""
        self._check(x)
        at = one_hot(x.long(), self.levels).to(x.dtype)
        u, log_q = self._draw(at.flatten(-2))
        u = torch.unflatten(u, -1, at.shape[-2:])
        top = (at * u).sum(-1, keepdim=True)
        y = torch.where(at > 0, u, top - softplus(top - u))
        ladj = ((1 - at) * logsigmoid(top - u)).sum((-2, -1))
        return y.flatten(-2), ladj - log_q

    def quantise(self, y: Tensor) -> Tensor:
        """The categories ``(..., D)`` that vectors ``(..., D K)`` stand for, for samples of a density."""
        return torch.unflatten(y, -1, (-1, self.levels)).argmax(-1).to(y.dtype)

    def _draw(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Noise ``(..., D K)``, and its log density."""
        if self.noise is not None:
            return self.noise(at).rsample_and_log_prob()
        # Its tails are those that the push below undoes: weights of draws are bounded then.
        u = torch.logit(torch.rand_like(at), eps=torch.finfo(at.dtype).eps)
        return u, (logsigmoid(u) + logsigmoid(-u)).sum(-1)


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Log probabilities in nats as bits for each of ``dims`` dimensions; lower is better.

    Example:
        >>> bits_per_dim(torch.tensor(-10 * math.log(256)), 10).item()
        8.0
    """
    return -log_prob / (dims * math.log(2))
