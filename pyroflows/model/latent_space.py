"""The latent sites of a Pyro model as one unconstrained vector."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from pyro import poutine
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from .sites import innermost, latent_nodes, plates_of

# Points at which it is seen whether a site has bounds.
POINTS = 16


@dataclass(frozen=True, eq=False)
class Held:
    """Numbers of a site that stay where they are and have no place in the vector, as the data say what they are.

    Args:
        events: which events are held, of the site's batch shape.
        free: where the other unconstrained numbers stand among all, ``(size,)``.
        order: where all of them stand after the free ones and the held ones, ``(all,)``.
        values: the held ones.
    """

    events: Tensor
    free: Tensor
    order: Tensor
    values: Tensor

    @classmethod
    def of(cls, node: dict, trace: poutine.Trace) -> "Held | None":
        """What ``pyro.sample(..., obs_mask=)`` has data for, where a node is of the site that it adds; else None."""
        name, fn, value = node["name"], node["fn"], node["value"]
        stem = name.removesuffix("_unobserved")
        seen = trace.nodes.get(f"{stem}_observed", {})
        if stem == name or stem not in trace.nodes or not seen.get("is_observed") or seen["mask"] is None:
            return None
        events = torch.as_tensor(seen["mask"], device=value.device).expand(fn.batch_shape)
        data = torch.where(events.reshape(events.shape + (1,) * fn.event_dim), seen["value"], value).to(value)
        u = biject_to(fn.support).inv(data.detach())
        held = events.reshape(events.shape + (1,) * (u.dim() - events.dim())).expand(u.shape).flatten()
        free, fixed = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
        return cls(events, free, torch.cat([free, fixed]).argsort(), u.flatten()[fixed]) if len(fixed) else None

    def fill(self, u: Tensor) -> Tensor:
        """All unconstrained numbers ``(..., all)``, given the free ones ``(..., size)``."""
        held = self.values.to(u).expand((*u.shape[:-1], -1))
        return torch.cat([u, held], dim=-1).index_select(-1, self.order)

    def count(self, ladj: Tensor, batch: int) -> Tensor:
        """A log-det with zeros for what is held, after so many dimensions of a batch."""
        inner = ladj.dim() - batch - self.events.dim()
        return ladj.masked_fill(self.events.reshape(self.events.shape + (1,) * inner), 0)


@dataclass(frozen=True)
class Site:
    """One latent site: its place in the vector, and how the vector maps to its values.

    Args:
        name: the name given to ``pyro.sample``.
        support: the constraint of its values.
        shape: shape of a value, plates first.
        event_dim: how many of the last dimensions are one event.
        plates: names of the plates, outermost first, one for each batch dimension (None: no plate there).
        start: first place in the vector.
        dtype: what its values were drawn in.
        held: the numbers that have no place in the vector, None for none.
    """

    name: str
    support: constraints.Constraint
    shape: torch.Size
    event_dim: int
    plates: tuple[str | None, ...]
    start: int
    dtype: torch.dtype
    held: Held | None = field(default=None, compare=False, repr=False)

    @cached_property
    def transform(self) -> Transform:
        """Maps unconstrained numbers to the support."""
        return biject_to(self.support)

    @cached_property
    def unconstrained_shape(self) -> torch.Size:
        """Shape of a value's unconstrained numbers."""
        return torch.Size(self.transform.inverse_shape(self.shape))

    @cached_property
    def size(self) -> int:
        """How many places it takes in the vector."""
        return len(self.held.free) if self.held else math.prod(self.unconstrained_shape)

    @cached_property
    def stop(self) -> int:
        """One past the last place in the vector."""
        return self.start + self.size

    def spread(self, u: Tensor) -> Tensor:
        """All unconstrained numbers ``(..., *unconstrained_shape)``, given its part of a vector ``(..., size)``."""
        return (self.held.fill(u) if self.held else u).reshape(u.shape[:-1] + self.unconstrained_shape)

    def pick(self, u: Tensor) -> Tensor:
        """Its part of a vector ``(..., size)``, given all unconstrained numbers."""
        flat = _flat(u, u.dim() - len(self.unconstrained_shape))
        return flat.index_select(-1, self.held.free) if self.held else flat

    def ladj(self, u: Tensor, value: Tensor, batch: torch.Size) -> Tensor:
        """``log |d value / d u|`` of ``batch``, of what is in the vector."""
        ladj = self.transform.log_abs_det_jacobian(u, value)
        return _flat(self.held.count(ladj, len(batch)) if self.held else ladj, len(batch)).sum(-1)


class LatentSpace:
    """Names, shapes and supports of a model's continuous latent sites, and the way to and from one vector.

    Made by :meth:`of`; the order of the vector is the order of the sample statements.

    Args:
        sites: the sites.
        values: their values where the model was run; :attr:`start` is this point as a vector.
    """

    def __init__(self, sites: list[Site], values: dict[str, Tensor]) -> None:
        self.sites = sites
        self.start = self.unconstrain(values)[0]

    @classmethod
    def of(cls, trace: poutine.Trace, whole: poutine.Trace | None = None) -> "LatentSpace":
        """Reads the latent sites off a trace of the model, and another one that has the observed sites as well."""
        sites, start = [], 0
        for name, node in latent_nodes(trace):
            fn = node["fn"]
            try:
                with helpful_support_errors(node):
                    biject_to(fn.support)
            except NotImplementedError as error:
                raise ValueError(
                    f"expected a support that torch.distributions.biject_to knows, got the site {name!r} of "
                    f"{type(innermost(fn)).__name__} on {fn.support}: sample it as a function of latents on one, as a "
                    f"positive definite matrix L @ L.mT where L is of an LKJCholesky and scales"
                ) from error
            value = node["value"]
            place = plates_of(node), start, value.dtype, Held.of(node, whole or trace)
            sites.append(Site(name, fn.support, value.shape, fn.event_dim, *place))
            start = sites[-1].stop
        return cls(sites, {site.name: trace.nodes[site.name]["value"].detach() for site in sites})

    @property
    def held(self) -> dict[str, Held]:
        """What stays where it is, by site."""
        return {site.name: site.held for site in self.sites if site.held}

    def spread(self, z: Tensor) -> Tensor:
        """All unconstrained numbers ``(..., all)``, those that are held as well, given vectors ``(..., D)``."""
        parts = (site.spread(z[..., site.start : site.stop]) for site in self.sites)
        return torch.cat([_flat(part, z.dim() - 1) for part in parts], dim=-1)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.sites[-1].stop if self.sites else 0

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Maps ``(..., D)`` to values ``(..., *site.shape)`` by name and ``log |d values / d z|`` of ``(...)``."""
        batch, values, total = z.shape[:-1], {}, z.new_zeros(z.shape[:-1])
        for site in self.sites:
            u = site.spread(z[..., site.start : site.stop])
            values[site.name] = site.transform(u)
            total = total + site.ladj(u, values[site.name], batch)
        return values, total

    def bounded(self) -> dict[str, Tensor]:
        """Which numbers of each site have a range that ends on both sides, as booleans of a value's shape.

        Far out in unconstrained space they go no further: shares, correlations, numbers from an interval.
        """
        found = {}
        for site in self.sites:
            count = POINTS * math.prod(site.unconstrained_shape)
            numbers = torch.arange(1, 1 + count, device=self.start.device, dtype=self.start.dtype).sin()
            away = torch.cat([numbers, -numbers]).reshape((-1, *site.unconstrained_shape))
            near, far = (site.transform(scale * away).abs().amax(0) for scale in (10.0, 1000.0))
            found[site.name] = far.isfinite() & (far <= 2 * near)
        return found

    def unconstrain(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`constrain`: the vectors, and ``log |d z / d values|``.

        Raises:
            ValueError: if a site is missing or its shape does not end in the model's.
        """
        parts, total = [], 0.0
        for site in self.sites:
            value = _check_value(site, values)
            batch = value.shape[: value.dim() - len(site.shape)]
            u = site.transform.inv(value)
            total = total - site.ladj(u, value, batch)
            parts.append(site.pick(u))
        return torch.cat(parts, dim=-1), total


class Unscored(Messenger):
    """Leaves what is held out of the log density of a guide's sites.

    Args:
        held: what is held, by site.
    """

    def __init__(self, held: dict[str, Held]) -> None:
        super().__init__()
        self._held = held

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self._held:
            free = ~self._held[msg["name"]].events
            msg["mask"] = free if msg["mask"] is None else free & msg["mask"]


def _check_value(site: Site, values: dict[str, Tensor]) -> Tensor:
    if site.name not in values:
        raise ValueError(f"expected a value for the site {site.name!r}, got {sorted(values)}")
    value = values[site.name]
    if value.shape[value.dim() - len(site.shape) :] != site.shape:
        raise ValueError(
            f"expected the site {site.name!r} to have shape (..., {', '.join(map(str, site.shape))}), "
            f"got {tuple(value.shape)}"
        )
    return value


def _flat(value: Tensor, batch: int) -> Tensor:
    """A value with one dimension after so many of a batch, of which there may be no rows."""
    return value.reshape((*value.shape[:batch], math.prod(value.shape[batch:])))
