"""Coupling: some dimensions pass unchanged and decide how the others are moved."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..bijectors import Bijector
from ..nets import MLP, Activation, join
from .base import FlowTransform

Net = Callable[[int, int], nn.Module]


class Coupling(FlowTransform):
    """Moves the dimensions outside ``mask`` by a bijector whose parameters a network reads off the rest.

    Both directions are closed form and cost one pass of the network. One layer leaves the dimensions in
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
        ValueError: if the mask has the wrong length or keeps all or no dimensions.

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
        self.bijector = bijector
        mask = _as_mask(mask, input_dim)
        kept, moved = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        self.register_buffer("kept", kept)
        self.register_buffer("moved", moved)
        self.register_buffer("order", torch.cat([kept, moved]).argsort())
        sizes = len(kept) + context_dim, len(moved) * bijector.param_count
        self.net = MLP(*sizes, hidden_dims, activation) if net is None else net(*sizes)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, moved = z.index_select(-1, self.kept), z.index_select(-1, self.moved)
        flat = self.net(join(kept, context)).unflatten(-1, (len(self.moved), -1))
        value, ladj = self.bijector.apply(moved, self.bijector.unpack(flat), inverse)
        both = torch.cat([kept.expand(*value.shape[:-1], -1), value], dim=-1)
        return both.index_select(-1, self.order), ladj.sum(-1)

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
