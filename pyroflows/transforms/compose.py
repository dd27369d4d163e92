"""A chain of transforms as one transform."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import ComposeTransform, IndependentTransform, Transform
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import _InverseTransform

from .base import FlowTransform
from .compose_reversible import chain, reversible_chain
from .domains import is_same
from .foreign import Foreign


class Compose(FlowTransform):
    """Applies transforms in order: a whole flow that is conditioned, inverted and registered as one object.

    Parts with a ``context_dim`` all get the same context, parts without get none. Both directions cost the
    sum of the parts'.

    With ``reversible=True`` a call keeps only its output and the context for the backward pass, rather than
    what every part computed: memory for gradients does not grow with depth. The backward pass recomputes each
    part's input from its output, so that a step takes about twice as long. The gradient is then as exact as
    the round trip ``flow.inv(flow(x))``: in single precision rounding adds up over the parts. Parts must not be
    random. Under ``torch.compile``, ``vmap`` and autocast the option changes nothing.

    Args:
        transforms: the parts, from the base to the data. Those of torch and Pyro are made
            :class:`~pyroflows.transforms.Foreign` of the size that the others have, and their chains taken apart.
        reversible: trades time for memory; needs parts that are fast both ways.

    Raises:
        ValueError: if there is no part, shapes differ between parts, a part does not end where the next begins, or
            ``reversible`` is asked of parts that are not fast both ways.
        TypeError: if a part is not a :class:`FlowTransform`.

    Example:
        >>> from pyroflows.bijectors import RQSpline
        >>> from pyroflows.transforms import Elementwise, Permute
        >>> flow = Compose([Permute(4, "reversed"), Elementwise(4, RQSpline())])
        >>> flow(torch.zeros(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(self, transforms: Iterable[FlowTransform], *, reversible: bool = False) -> None:
        transforms = _as_flows(transforms)
        _check_parts(transforms, reversible)
        super().__init__(transforms[0].event_shape, max(t.context_dim for t in transforms))
        self.transforms = nn.ModuleList(transforms)
        self.batch_shape = torch.broadcast_shapes(*(t.batch_shape for t in transforms))
        slow = {t.fast for t in transforms} - {"both"}
        self.fast = "neither" if len(slow) > 1 else slow.pop() if slow else "both"
        self.reversible, self.sign = reversible, math.prod(t.sign for t in transforms)

    @property
    def domain(self) -> Constraint:
        """The first part's."""
        return self.transforms[0].domain

    @property
    def codomain(self) -> Constraint:
        """The last part's."""
        return self.transforms[-1].codomain

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        parts = list(reversed(self.transforms)) if inverse else list(self.transforms)
        return (reversible_chain if self.reversible else chain)(parts, z, context, inverse)

    def trajectory(self, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
        """``x``, and what it has become after each of the parts in turn: ``len(self) + 1`` tensors."""
        values = [x]
        for part in self.transforms:
            values.append(part(values[-1], context if part.context_dim else None))
        return values

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total: Tensor | float = 0.0
        for part in self.transforms:
            x, ladj, score = part._map_and_score(x, context if part.context_dim else None, score)
            total = total + ladj
        return x, total, score

    def _takes(self, inverse: bool) -> torch.dtype | str | None:
        parts = reversed(self.transforms) if inverse else self.transforms
        return next((dtype for part in parts if (dtype := part._takes(inverse)) is not None), None)

    def extra_repr(self) -> str:
        """Sizes, and whether it is reversible."""
        return super().extra_repr() + (", reversible=True" if self.reversible else "")

    def __len__(self) -> int:
        return len(self.transforms)

    def __iter__(self) -> Iterator[FlowTransform]:
        return iter(self.transforms)

    def __getitem__(self, index: int) -> FlowTransform:
        return self.transforms[index]


def as_flow(transform: object, event_shape: Sequence[int], context_dim: int = 0) -> object:
    """A transform of torch or Pyro over events of a shape as one of this library; anything else as it is."""
    if isinstance(transform, FlowTransform) or not isinstance(transform, Transform | ConditionalTransform):
        return transform
    if isinstance(transform, _InverseTransform):
        return as_flow(transform.inv, event_shape).inv
    if isinstance(transform, IndependentTransform):
        return as_flow(transform.base_transform, event_shape)
    if isinstance(transform, ComposeTransform):
        return Compose(as_flow(part, event_shape) for part in transform.parts)
    return Foreign(transform, event_shape, context_dim)


def _as_flows(transforms: Iterable[object]) -> list:
    """The parts, with those of torch and Pyro wrapped."""
    parts = list(transforms)
    shape = next((part.event_shape for part in parts if isinstance(part, FlowTransform)), None)
    if shape is None and any(isinstance(part, Transform) for part in parts):
        raise ValueError(
            f"Compose expected a FlowTransform among its parts, which knows the size, got "
            f"{[type(part).__name__ for part in parts]}: wrap one by transforms.Foreign(part, input_dim)"
        )
    return [as_flow(part, shape) if isinstance(part, Transform) else part for part in parts]


def _check_parts(transforms: list, reversible: bool) -> None:
    if not transforms:
        raise ValueError("Compose expected at least one transform, got none")
    for part in transforms:
        if not isinstance(part, FlowTransform):
            raise TypeError(
                f"Compose expected parts that are FlowTransforms, got {type(part).__name__}: wrap it by "
                f"transforms.Foreign(part, input_dim, context_dim), if it is a conditional one of Pyro or one of zuko"
            )
    shapes = [tuple(t.event_shape) for t in transforms]
    if len(set(shapes)) > 1:
        vectors = all(len(shape) == 1 for shape in shapes)
        got = f"input_dim, got {[size for (size,) in shapes]}" if vectors else f"event_shape, got {shapes}"
        raise ValueError(f"Compose expected parts of one {got}")
    for index, (part, following) in enumerate(pairwise(transforms)):
        if not is_same(part.codomain, following.domain):
            raise ValueError(
                f"Compose expected each part to end where the next begins, got {part._name} onto {part.codomain} as "
                f"part {index}, then {following._name} of {following.domain}: change the order, or put a map between"
            )
    contexts = [t.context_dim for t in transforms]
    if len(set(contexts) - {0}) > 1:
        raise ValueError(f"Compose expected parts of one context_dim (or 0), got {contexts}")
    slow = [type(t).__name__ for t in transforms if t.fast != "both"]
    if reversible and slow:
        raise ValueError(
            f"Compose expected parts with fast='both' for reversible=True, got {slow} that are slow one way: "
            f"use couplings, or leave reversible=False"
        )
