"""Constraints as the domains and codomains of transforms: the whole space, and whether two are one."""

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ..bijectors import Bijector

# An end belongs to an interval or does not: that has no mass.
OPEN = {
    constraints.greater_than_eq: constraints.greater_than,
    constraints.half_open_interval: constraints.interval,
}


def whole_space(event_shape: Size) -> Constraint:
    """All real numbers for each place of an event."""
    dims = len(event_shape)
    return constraints.real_vector if dims == 1 else constraints.independent(constraints.real, dims)


def is_whole_space(constraint: Constraint) -> bool:
    """Whether real numbers are all that is asked."""
    return without_dims(constraint)[0] is constraints.real


def on_events(constraint: Constraint, event_shape: Size) -> Constraint:
    """A constraint of the last dimensions, or of numbers, as one of whole events."""
    if constraint is constraints.real:
        return whole_space(event_shape)
    missing = len(event_shape) - constraint.event_dim
    return constraints.independent(constraint, missing) if missing else constraint


def is_same(first: Constraint, second: Constraint) -> bool:
    """Whether two constraints ask the same, but for ends: of one kind, over as many dimensions, with equal bounds."""
    (first, dims), (second, other) = without_dims(first), without_dims(second)
    if first is second:
        return dims == other
    mine, yours = vars(first), vars(second)
    equal = mine.keys() == yours.keys() and all(_is_equal(mine[key], yours[key]) for key in mine)
    kinds = {OPEN.get(type(each), type(each)) for each in (first, second)}
    return len(kinds) == 1 and dims == other and equal


def without_dims(constraint: Constraint) -> tuple[Constraint, int]:
    """What is asked, without how many dimensions are one event, and this number."""
    dims = constraint.event_dim
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint, dims


def check_onto_itself(name: str, bijector: Bijector) -> None:
    """Raises unless a bijector has parameters and maps a domain onto itself, as where some dimensions stay."""
    if not bijector.param_count or not is_same(bijector.domain, bijector.codomain):
        raise ValueError(
            f"{name} expected a bijector that has parameters and maps its domain onto itself, got {bijector}: "
            f"use Elementwise, before or after it"
        )


def _is_equal(first: object, second: object) -> bool:
    if isinstance(first, Constraint) and isinstance(second, Constraint):
        return is_same(first, second)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_is_equal, first, second))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        first, second = torch.as_tensor(first), torch.as_tensor(second)
        return bool((first.to(second) == second).all())
    return first == second
