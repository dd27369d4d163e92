"""Globals whose prior has a learnt scale, as numbers relative to that scale."""

import torch
from torch import Tensor

from ..latent_space import LatentSpace, Site
from ..noncentered import NonCentered, Priors


class PartlyCentered(NonCentered):
    """``z = loc + scale u``, with a loc and scale between the prior's at ``z`` and fixed ones, for each number its own.

    At a share of 0 numbers are non-centred, at 1 centred. In between, where the share is that of the data in the
    precision of a number, its spread given all others does not change with the scale, to first order: then the joint
    mode is about that of the scale's own density.

    Args:
        model: what knows the priors.
        sites: the sites with a scale that others set.
        depth: the longest chain of such sites, each scaled by the one before.

    Attributes:
        scaled: the places of their numbers, ``(E,)``.

    References:
        Automatic Reparameterisation of Probabilistic Programs. Gorinova, Moore, Hoffman, 2020.
        https://arxiv.org/abs/1906.03028
    """

    def __init__(self, model: Priors, sites: list[Site], depth: int) -> None:
        super().__init__(model, sites, depth)
        for name in ("share", "loc", "log_scale"):
            self.register_buffer(name, torch.zeros_like(model.space.start))
        places = [torch.arange(site.start, site.stop, device=self.share.device) for site in sites]
        self.register_buffer("scaled", torch.cat(places), persistent=False)

    def _prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        given, fixed = self.prior(z), (self.loc.to(z), self.log_scale.to(z))
        loc, log_scale = (torch.lerp(a, b.expand_as(a), self.share.to(z)) for a, b in zip(given, fixed, strict=True))
        return loc, log_scale

    def prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loc and log scale of the priors at the globals as they are, all of shape ``(..., D)``."""
        return super()._prior(z)

    def as_they_are(self) -> None:
        """Leaves the globals as they are."""
        self.share.fill_(1.0)
        self.loc.zero_()
        self.log_scale.zero_()

    def centre(self, z: Tensor, spread: Tensor) -> None:
        """Takes the shares of the data where the globals are ``(D,)``, the relative ones of such spreads ``(E,)``."""
        loc, log_scale = self.prior(z)
        self.share.zero_()
        self.share[self.scaled] = 1 - (spread.log() - log_scale[self.scaled]).mul(2).exp().clamp(0, 1)
        self.loc.copy_(loc)
        self.log_scale.copy_(log_scale)


class RelativeSpace(LatentSpace):
    """The space of globals, of which some are counted relative to a loc and scale that others set.

    In the globals themselves the Laplace marginal of a hierarchy among them has a mode at a scale of zero.

    Args:
        space: the globals as they are.
        relative: the map from numbers of this space to numbers of that one; None leaves them as they are.
    """

    def __init__(self, space: LatentSpace, relative: PartlyCentered | None = None) -> None:
        self.sites, self.relative, self._plain = space.sites, relative, space.start

    @property
    def start(self) -> Tensor:
        """Where the model was run, as a vector."""
        return self.unsettled(self._plain)[0].to(self._plain)

    def settled(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The globals as they are, and ``log |d those / d z|`` of each number, both ``(..., D)``."""
        return (z, torch.zeros_like(z)) if self.relative is None else self.relative.settled(z)

    def unsettled(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse, and the log-det ``(...)``."""
        return (z, torch.zeros_like(z[..., 0])) if self.relative is None else self.relative.inv.call_and_ladj(z)

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Maps ``(..., D)`` to values ``(..., *site.shape)`` by name and ``log |d values / d z|`` of ``(...)``."""
        z, log_scale = self.settled(z)
        values, total = super().constrain(z)
        return values, total + log_scale.sum(-1)

    def unconstrain(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`constrain`: the vectors, and ``log |d z / d values|``."""
        vectors, total = super().unconstrain(values)
        z, ladj = self.unsettled(vectors)
        return z, total + ladj
