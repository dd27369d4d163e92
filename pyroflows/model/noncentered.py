"""Non-centred coordinates read off a model: latents relative to a loc and scale that other latents set."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..compile import Untraceable, capture
from ..compile.simplify import functional
from ..transforms import FlowTransform
from .latent_space import LatentSpace, Site
from .sites import innermost

# Distributions that are a loc plus a scale times noise in unconstrained space.
FAMILIES = (dist.Normal, dist.LogNormal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Gumbel)
# Longest chain of sites, each scaled by the one before: the map takes as many runs of the prior.
DEEPEST = 4


class Priors(Protocol):
    """What knows the priors of a model's latents, as a :class:`~pyroflows.model.LogJoint` does."""

    space: LatentSpace

    def priors(self, z: Tensor) -> dict[str, Distribution]:
        """The distributions that the latent sites are drawn from, where the others are those of a vector ``(D,)``."""


class NonCentered(FlowTransform):
    """``z = loc(z) + scale(z) u`` for sites whose prior has a scale that other latents set, identity for the rest.

    Where groups share a learnt scale, a posterior in the latents ``z`` themselves is a funnel: as the scale falls, the
    effects close in on their mean. In ``u`` the funnel is gone, at the price of a posterior that is further from a
    Gaussian where the data of every group say much. Loc and scale are what the model itself computes, traced once. Both
    directions are cheap. Nothing is learnt. Loc and scale are computed where the model's data are, in their precision.

    Args:
        model: the log joint of a model with such sites, or what else knows its priors.
        sites: these sites.
        depth: the longest chain of such sites, each scaled by the one before.

    Raises:
        Untraceable: if the model's prior cannot be traced.

    References:
        A General Framework for the Parametrization of Hierarchical Models. Papaspiliopoulos, Roberts, Skold, 2007.
        https://doi.org/10.1214/088342307000000014

    Example:
        >>> import pyro
        >>> from pyroflows import log_joint
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("effects", dist.Normal(3.0, scale).expand([2]).to_event(1))
        >>> noncentered(log_joint(model))(torch.tensor([1.0, 0.0, 2.0])).tolist()  # log scale, then the effects
        [1.0, 3.0, 8.436563491821289]
    """

    def __init__(self, model: Priors, sites: list[Site], depth: int) -> None:
        super().__init__(model.space.size)
        self.depth, start = depth, model.space.start

        def prior(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            given = model.priors(z)
            parts = [_loc_and_log_scale(given[site.name], site, z, site in sites) for site in model.space.sites]
            loc, log_scale = (torch.cat(part) for part in zip(*parts, strict=True))
            return z.sum(), (loc, log_scale)

        graph = capture(prior, [start], parameters=[], has_aux=True, grad=False)
        self.kind = start.device, start.dtype
        # In a tuple, so that neither conversions nor state_dict see the constants of the model.
        self._graph = (functional(graph.module, [*graph.closed, start]), graph.closed)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if inverse:
            loc, log_scale = self._prior(z)
            return (z - loc) * (-log_scale).exp(), -log_scale.sum(-1)
        value, log_scale = self.settled(z)
        return value, log_scale.sum(-1)

    def settled(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The latents, and the log scale of each, both ``(..., D)``."""
        value = u
        for _ in range(self.depth):
            loc, log_scale = self._prior(value)
            value = loc + log_scale.exp() * u
        return value, log_scale

    def _prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loc and log scale at vectors, both ``(..., D)``."""
        rows = z.reshape(-1, self.input_dim).to(*self.kind)
        some = rows if len(rows) else rows.new_zeros(1, self.input_dim)  # vmap cannot do with no rows at all
        loc, log_scale = (part[: len(rows)].to(z).view_as(z) for part in self._rows(some))
        return loc, log_scale

    def _rows(self, rows: Tensor) -> Sequence[Tensor]:
        """Loc and log scale at vectors ``(B, D)``."""
        module, closed = self._graph

        def single(row: Tensor) -> tuple[Tensor, ...]:
            return tuple(module(*closed, row))[1:]

        try:
            return torch.func.vmap(single)(rows)
        except RuntimeError:  # of an operation that vmap does not know
            return [torch.stack(part) for part in zip(*map(single, rows), strict=True)]


Map = TypeVar("Map", bound=NonCentered)


def noncentered(model: Priors, kind: type[Map] = NonCentered) -> Map | None:
    """The non-centred coordinates of a model; None if no prior has a scale that other latents set.

    Args:
        model: the model's log joint, or what else knows its priors.
        kind: of the map.
    """
    z = model.space.start.detach() + 0.1
    depths: dict[Site, int] = {}
    with torch.enable_grad():
        z.requires_grad_()
        given = model.priors(z)
        for site in model.space.sites:
            fn = innermost(given[site.name])
            if isinstance(fn, FAMILIES) and (by := _moves(fn.scale, z)).any():
                by = by | _moves(fn.loc, z)
                depths[site] = 1 + max((depth for s, depth in depths.items() if by[s.start : s.stop].any()), default=0)
    if not depths or max(depths.values()) > DEEPEST:
        return None
    try:
        return kind(model, list(depths), max(depths.values()))
    except Untraceable:
        return None


def _loc_and_log_scale(fn: Distribution, site: Site, like: Tensor, scaled: bool) -> list[Tensor]:
    """Those of a site's distribution, both of shape ``(site.size,)``; zeros for a site that stays as it is."""
    fn = innermost(fn)
    found = (fn.loc, fn.scale.log()) if scaled else 2 * [like.new_zeros(())]
    return [site.pick(v.to(like).expand(site.unconstrained_shape)) for v in found]


def _moves(value: Tensor, z: Tensor) -> Tensor:
    """Which of the numbers of a vector move a value."""
    if not value.requires_grad:
        return torch.zeros_like(z, dtype=torch.bool)
    weights = torch.linspace(1.0, 2.0, value.numel()).to(value).view_as(value)  # a plain sum might cancel
    (slope,) = torch.autograd.grad((weights * value).sum(), z, retain_graph=True, materialize_grads=True)
    return slope != 0
