"""Where a base draws, whether a transform maps from there, and values that lie off a support."""

import math

import torch
from pyro.distributions import Independent, Normal, Uniform
from torch import Tensor
from torch.distributions import Distribution, VonMises, biject_to, constraints
from torch.distributions.constraints import Constraint

from ..autograd import is_traced
from ..transforms import FlowTransform
from ..transforms.domains import is_same, is_whole_space, on_events, without_dims
from ..transforms.inputs import is_readable


def standard_base(transform: FlowTransform) -> Independent:
    """The uniform over the domain where that is an interval of each place of an event, else the standard normal."""
    normal, (bare, _) = standard_normal(transform), without_dims(transform.domain)
    if not isinstance(bare, constraints.interval):
        return normal
    bounds = (bare.lower_bound, bare.upper_bound)
    low, high = (torch.as_tensor(bound).to(normal.mean).expand_as(normal.mean) for bound in bounds)
    return Independent(Uniform(low, high, validate_args=False), low.dim(), validate_args=False)


def standard_normal(transform: FlowTransform) -> Independent:
    """The standard normal of the transform's events, on its device and in its dtype."""
    tensors = (*transform.parameters(), *transform.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    loc = torch.zeros(transform.event_shape, dtype=like.dtype, device=like.device)
    normal = Normal(loc, torch.ones_like(loc), validate_args=False)
    return Independent(normal, loc.dim(), validate_args=False)


def support_of(base: Distribution) -> Constraint | None:
    """Where a base draws, None if it does not say."""
    scalar = base
    while isinstance(scalar, torch.distributions.Independent):
        scalar = scalar.base_dist
    if isinstance(scalar, VonMises):  # which says that this is the whole line
        return on_events(constraints.interval(-math.pi, math.pi), base.event_shape)
    try:
        return base.support
    except NotImplementedError:
        return None


def check_support(base: Distribution, transform: FlowTransform) -> None:
    """Raises unless the base draws where the transform maps from."""
    inside = support_of(base)
    if inside is not None and not is_whole_space(transform.domain) and not is_same(inside, transform.domain):
        raise ValueError(
            f"FlowDistribution expected a base over the transform's domain, {transform.domain}, got one over {inside}: "
            f"take another base, or put Onto(...) before the transform"
        )


def inside_of(support: Constraint, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values with those off a support put inside, and which were off it; None if nothing is to be done about it.

    While validation is on, a transform refuses them.
    """
    if is_whole_space(support) or is_readable(value):
        return value, None
    off = ~support.check(value)
    if not is_traced(value) and value.device.type != "meta" and not off.any():
        return value, None  # the very tensor, which the transform may know
    event = value.shape[value.dim() - support.event_dim :]
    onto = biject_to(support)
    middle = onto(value.new_zeros(onto.inverse_shape(event)))
    return torch.where(off[(..., *(None,) * len(event))], middle, value), off
