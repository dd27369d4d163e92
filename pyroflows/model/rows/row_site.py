"""A latent site inside of the plate of the rows."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints


@dataclass(frozen=True)
class RowSite:
    """A latent site inside the plate of the rows, and how numbers of a row map to its values.

    Args:
        name: the name given to ``pyro.sample``.
        support: the constraint of its values.
        shape: shape of a value, plates first.
        axis: the dimension of the rows in it, from the left.
        plates: names of the plates, outermost first, None where there is none.
        event_dim: how many of the last dimensions are one event.
        start: its first place among the numbers of a row.
        dtype: what its values were drawn in.
    """

    name: str
    support: constraints.Constraint
    shape: torch.Size
    axis: int
    plates: tuple[str | None, ...]
    event_dim: int
    start: int
    dtype: torch.dtype

    @cached_property
    def transform(self) -> Transform:
        """Maps unconstrained numbers to the support."""
        return biject_to(self.support)

    @cached_property
    def inner(self) -> torch.Size:
        """Shape of a row's unconstrained numbers."""
        whole = self.transform.inverse_shape(self.shape)
        return torch.Size([*whole[: self.axis], *whole[self.axis + 1 :]])

    @cached_property
    def size(self) -> int:
        """How many numbers a row has of it."""
        return math.prod(self.inner)

    @property
    def columns(self) -> slice:
        """Its places among the numbers of a row."""
        return slice(self.start, self.start + self.size)

    def place(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(..., *shape)`` and their log-dets ``(..., R)``, given all numbers of rows ``(..., R, d)``."""
        lead, u = z.dim() - 2, self.spread(z)
        value = self.transform(u)
        ladj = self.transform.log_abs_det_jacobian(u, value).movedim(lead + self.axis, lead)
        return value, ladj.reshape((*ladj.shape[: lead + 1], -1)).sum(-1)

    def spread(self, z: Tensor) -> Tensor:
        """Its unconstrained numbers in the order of its values, given all numbers of rows ``(..., R, d)``."""
        lead = z.dim() - 2
        return z[..., self.columns].reshape(z.shape[:-1] + self.inner).movedim(lead, lead + self.axis)

    def rows(self, value: Tensor) -> Tensor:
        """The numbers ``(..., R, size)`` of values ``(..., *shape)``."""
        return self.flat(self.transform.inv(value))

    def flat(self, u: Tensor) -> Tensor:
        """The same of unconstrained numbers in the order of its values."""
        lead = u.dim() - len(self.inner) - 1
        u = u.movedim(lead + self.axis, lead)
        return u.reshape((*u.shape[: lead + 1], self.size))
