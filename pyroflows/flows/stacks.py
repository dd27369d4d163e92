"""Layers in a row that mix every dimension, of which recipes are made."""

from collections.abc import Sequence

import torch

from ..bijectors import Affine as AffineBijector
from ..bijectors import Bijector, RQSpline
from ..transforms import Affine, Autoregressive, Compose, Coupling, Elementwise, FlowTransform, Permute
from ..transforms.permute import as_order


def scalar(context_dim: int, curve: Bijector | None = None, **options: object) -> Compose:
    """One dimension: nothing to mix, so a curve, by default a spline, and a loc and scale."""
    return Compose([Elementwise(1, curve or RQSpline(), context_dim, **options), Affine(1, context_dim, **options)])


def towards(fast: str, parts: Sequence[FlowTransform]) -> Compose:
    """A chain of parts whose forward direction is cheap, or of their inverses, so that ``fast`` is cheap."""
    if fast not in ("forward", "inverse"):
        raise ValueError(f"expected fast='forward' or 'inverse', got {fast!r}")
    return Compose(parts if fast == "forward" else [part.inv for part in reversed(parts)])


def affine_autoregressive(
    input_dim: int, context_dim: int, fast: str, layers: int, bound: float, **options: object
) -> Compose:
    """Affine autoregressive layers; one dimension falls back to :func:`scalar`."""
    if input_dim == 1:
        return scalar(context_dim, **options)
    return Compose(autoregressives(input_dim, context_dim, AffineBijector(bound), fast, layers, **options))


def couplings(
    input_dim: int, context_dim: int, bijector: Bijector, layers: int, **options: object
) -> list[FlowTransform]:
    """Couplings that keep a random half, each followed by one that keeps the rest, so that every dimension moves."""
    if layers < 2:
        raise ValueError(f"expected layers >= 2, got {layers}: one coupling leaves half of the dimensions as is")
    parts: list[FlowTransform] = []
    last = as_order("natural", input_dim)
    front = last < input_dim // 2
    for index in range(layers):
        if index % 2 == 0:
            order = torch.randperm(input_dim)
            parts.append(Permute(input_dim, last.argsort()[order]))
            last = order
        parts.append(Coupling(input_dim, bijector, context_dim, mask=~front if index % 2 else front, **options))
    # Back in their places, so that the flow starts at the identity.
    return [*parts, Permute(input_dim, last.argsort())]


def autoregressives(
    input_dim: int, context_dim: int, bijector: Bijector, fast: str, layers: int, **options: object
) -> list[FlowTransform]:
    """Autoregressive layers whose order is random and reversed from each layer to the next."""
    if layers < 1:
        raise ValueError(f"expected layers >= 1, got {layers}")
    order, parts = as_order("random", input_dim), []
    for _ in range(layers):
        parts.append(Autoregressive(input_dim, bijector, context_dim, fast=fast, order=order, **options))
        order = order.flip(0)
    return parts
