"""Coupling: some dimensions pass unchanged and decide how the others are moved."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from ..autograd import is_autocast, slope
from ..bijectors import Affine, Bijector
from ..nets import MLP, Activation, join
from .base import FlowTransform
from .coupling_gradient import Plan, affine_coupling, allowed, layers_of, scored_coupling
from .domains import check_onto_itself, on_events
from .permute import reorder

Net = Callable[[int, int], nn.Module]


class Coupling(FlowTransform):
    """Moves the dimensions outside ``mask`` by a bijector whose parameters a network reads off the rest.

    Both directions cost one pass of the network, and what the bijector costs. One layer leaves the dimensions in
    ``mask`` as they are: stack layers with complementary masks, as the recipes of :mod:`pyroflows.flows` do.

    Args:
        input_dim: size ``D`` of the vectors, at least 2.
        bijector: the scalar map.
        context_dim: size of the context, 0 for none.
        mask: the dimensions that are kept: ``"halves"`` (the first half), ``"alternating"`` (0, 2, ...), or
            ``D`` booleans.
        net: makes the network from ``(inputs, outputs)``; inputs are the kept dimensions followed by the
            context. Any ``nn.Module`` will do. By default an MLP whose last layer starts at zero.
        hidden_dims: widths of the default network's hidden layers.
        activation: makes the default network's non-linearity.

    Raises:
        ValueError: if the mask has the wrong length or keeps all or no dimensions, or the bijector leads elsewhere.

    References:
        Density estimation using Real NVP. Dinh, Sohl-Dickstein, Bengio, 2017.
        https://arxiv.org/abs/1605.08803

    Example:
        >>> from pyroflows.bijectors import RQSpline
        >>> layer = Coupling(4, RQSpline(), mask="alternating", net=lambda i, o: torch.nn.Linear(i, o))
        >>> layer.kept.tolist(), layer.moved.tolist()
        ([0, 2], [1, 3])
    """

    def __init__(
        self,
        input_dim: int,
        bijector: Bijector,
        context_dim: int = 0,
        *,
        mask: str | Sequence[bool] | Tensor = "halves",
        net: Net | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(input_dim, context_dim)
        check_onto_itself("Coupling", bijector)
        self.bijector, self.fast = bijector, bijector.fast
        mask = _as_mask(mask, input_dim)
        places = torch.cat([mask.nonzero().flatten(), (~mask).nonzero().flatten()])
        self.register_buffer("places", places)
        self.register_buffer("places_back", places.argsort())
        self.sizes = [int(mask.sum()), int((~mask).sum())]
        self._find_slices()
        sizes = self.sizes[0] + context_dim, self.sizes[1] * bijector.param_count
        self.net = MLP(*sizes, hidden_dims, activation) if net is None else net(*sizes)

    @property
    def domain(self) -> Constraint:
        """The bijector's, for each dimension."""
        return on_events(self.bijector.domain, self.event_shape)

    codomain = domain

    def _find_slices(self) -> None:
        """Halves that lie together are slices, which cost less than a gather."""
        every, kept = list(range(self.input_dim)), self.sizes[0]
        ends = {"front": every, "back": every[-kept:] + every[:-kept]}
        self._sliced = next((end for end, places in ends.items() if self.places.tolist() == places), None)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._find_slices()  # the mask is part of the state

    @property
    def kept(self) -> Tensor:
        """Indices of the dimensions that pass unchanged."""
        return self.places[: self.sizes[0]]

    @property
    def moved(self) -> Tensor:
        """Indices of the dimensions that the bijector moves."""
        return self.places[self.sizes[0] :]

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        tensors = self._written_out(z, context)
        if tensors:
            return affine_coupling(self._plan(inverse), z, context, tensors)
        kept, moved = self._split(z)
        value, ladj = self._move(kept, moved, context, inverse)
        return self._join(kept, value), ladj.sum(-1)

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tensors = self._written_out(x, context)
        if tensors:
            return scored_coupling(self._plan(False), x, context, score, tensors)
        # With y = f(x; net(kept)) the Jacobian is triangular: the slope for y is that for x over f', and what y and
        # the ladj owe to the kept half is taken from the slope there.
        score_kept, score_moved = self._split(score)
        with torch.enable_grad():
            kept, moved = self._split(x if x.requires_grad else x.detach().requires_grad_())
            value, ladj = self._move(kept, moved, context, False)
            bend = slope([ladj], moved, [torch.ones_like(ladj)])
            score_moved = (score_moved - bend) * (-ladj.detach()).exp()
            score_kept = score_kept - slope([value, ladj], kept, [score_moved, torch.ones_like(ladj)])
        return self._join(kept, value), ladj.detach().sum(-1), self._join(score_kept, score_moved)

    def _written_out(self, z: Tensor, context: Tensor | None) -> list[Tensor] | None:
        """The tensors of the network where the gradient is written out, None where it is left to autograd."""
        known = self._sliced and type(self.bijector) is Affine and allowed() and not is_autocast(z)
        alike = context is None or context.shape[:-1] == z.shape[:-1]
        return layers_of(self.net) if known and alike else None

    def _plan(self, inverse: bool) -> Plan:
        return Plan(self.sizes[0], self._sliced == "back", self.bijector.bound, inverse)

    def _move(self, kept: Tensor, moved: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """The moved half's new value and its elementwise ladj."""
        flat = torch.unflatten(self.net(join(kept, context)), -1, (self.sizes[1], -1))
        return self.bijector.apply(moved, self.bijector.unpack(flat), inverse)

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The kept and the moved half."""
        if self._sliced == "back":
            moved, kept = z.split(self.sizes[::-1], dim=-1)
            return kept, moved
        kept, moved = (z if self._sliced else reorder(z, self.places, self.places_back)).split(self.sizes, dim=-1)
        return kept, moved

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        kept = kept.expand(*moved.shape[:-1], -1)
        both = torch.cat([moved, kept] if self._sliced == "back" else [kept, moved], dim=-1)
        return both if self._sliced else reorder(both, self.places_back, self.places)

    def extra_repr(self) -> str:
        """Sizes, bijector and the kept dimensions."""
        return f"{super().extra_repr()}, {self.bijector}, kept={self.kept.tolist()}"


def _as_mask(mask: str | Sequence[bool] | Tensor, input_dim: int) -> Tensor:
    """Returns ``D`` booleans, some true and some false."""
    places = torch.arange(input_dim)
    named = {"halves": places < input_dim // 2, "alternating": places % 2 == 0}
    if isinstance(mask, str):
        if mask not in named:
            raise ValueError(f"Coupling expected a mask out of {list(named)} or {input_dim} booleans, got {mask!r}")
        mask = named[mask]
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool or mask.shape != (input_dim,):
        raise ValueError(f"Coupling expected a mask of {input_dim} booleans, got {tuple(mask.shape)} of {mask.dtype}")
    if mask.all() or not mask.any():
        raise ValueError(
            f"Coupling expected a mask that keeps some dimensions and moves some, got {mask.tolist()}: "
            f"with input_dim=1 use Elementwise"
        )
    return mask
