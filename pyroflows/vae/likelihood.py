"""What a decoder's output makes of pixels."""

import torch
from pyro.distributions import Bernoulli, TorchDistribution
from torch import Tensor


def bernoulli(logits: Tensor) -> TorchDistribution:
    """Independent bits with these logits."""
    return Bernoulli(logits=logits)


def center(pixels: TorchDistribution) -> Tensor:
    """The mean, or the mode where that is no number."""
    mean = pixels.mean
    return torch.where(mean.isnan(), pixels.mode, mean) if mean.isnan().any() else mean
