"""What the laws of transforms are tried on."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from ..transforms import Compose, FlowTransform, Onto
from ..transforms.domains import is_whole_space
from .expectations import normal

ROWS = 4  # how many inputs, and contexts, a law sees


def context_rows(transform: FlowTransform, context: Tensor | None) -> Tensor | None:
    """The context as ``ROWS`` rows in double precision."""
    if context is None:
        return normal(ROWS, transform.context_dim) if transform.context_dim else None
    rows = context.detach().to("cpu", torch.float64).reshape(-1, context.shape[-1])
    return rows[torch.arange(ROWS) % len(rows)]


def moved_at_random(module: nn.Module) -> nn.Module:
    """Moves every parameter at random, in place."""
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


def inputs(transform: FlowTransform, *batch: int) -> Tensor:
    """Events in the domain of a transform, at random, in double precision."""
    bijection = biject_to(transform.domain)
    return bijection(normal(*batch, *bijection.inverse_shape(transform.event_shape)))


def over_reals(transform: FlowTransform) -> FlowTransform:
    """The transform after a map onto its domain, so that a normal base can stand before it."""
    whole = is_whole_space(transform.domain)
    return transform if whole else Compose([Onto(transform.domain, transform.event_shape), transform])


def jacobian_of(transform: FlowTransform, z: Tensor, context: Tensor | None) -> Tensor:
    """The Jacobian of each row by plain autograd, ``(ROWS, D, D)`` for events of ``D`` numbers."""
    size = math.prod(transform.event_shape)

    def at(index: int) -> Tensor:
        view = transform.condition(None if context is None else context[index])
        return torch.autograd.functional.jacobian(lambda row: view.call_and_ladj(row)[0], z[index]).view(size, size)

    return torch.stack([at(index) for index in range(ROWS)])
