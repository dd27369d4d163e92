"""Variational autoencoders with flows as priors, and whole numbers made continuous."""

from .dequantise import Argmax, Dequantiser, Surjection, bits_per_dim
from .prior import FlowPrior, MixturePrior, NormalPrior
from .vae import VAE

__all__ = [
    "VAE",
    "Argmax",
    "Dequantiser",
    "FlowPrior",
    "MixturePrior",
    "NormalPrior",
    "Surjection",
    "bits_per_dim",
]
