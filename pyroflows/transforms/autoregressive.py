"""Autoregressive: each dimension is moved by what the dimensions before it say."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from ..arguments import check_counts
from ..bijectors import Bijector
from ..nets import Activation, MaskedMLP
from .autoregressive_inverse import invert
from .base import FlowTransform
from .domains import check_onto_itself, on_events
from .permute import as_order, reorder


class Autoregressive(FlowTransform):
    """Moves dimension ``i`` by a bijector whose parameters a masked network reads off those before it.

    One direction is a single pass of the network; the other goes step by step, incrementally: each weight is used
    once, and gradients come from the implicit function theorem. By default a step is one dimension; ``passes`` or an
    ``adjacency`` lets fewer dimensions hear each other, and takes fewer steps. ``fast`` says which direction
    is the single pass: ``"forward"`` samples fast (IAF), ``"inverse"`` scores fast (MAF). ``.inv`` turns one
    into the other. It starts at the identity, but for rounding.

    Args:
        input_dim: size ``D`` of the vectors.
        bijector: the scalar map.
        context_dim: size of the context, 0 for none.
        fast: the cheap direction, ``"forward"`` or ``"inverse"``.
        order: ``"natural"``, ``"reversed"``, ``"random"``, or the dimensions from the first to the last.
        passes: steps of the slow direction, from 2, where one half of the dimensions hears the other as in a coupling,
            to ``D``, where each hears all before it; each step has about as many dimensions. None for ``D``.
        adjacency: ``(D, D)`` booleans, row ``i`` tells which dimensions ``i`` hears; without a cycle. The order is
            then one that it allows, its steps the longest chain.
        hidden_dims: widths of the network's hidden layers, at least one.
        activation: makes the network's non-linearity, which must act elementwise.
        paired: how the network starts at zero, see :class:`~pyroflows.nets.MaskedMLP`; False with dropout.
        residual: let the network be a ResMADE, which adds to each hidden layer the one before it.

    Raises:
        ValueError: if ``fast``, ``order`` or ``passes`` is not one of these, the adjacency has a cycle or is given
            beside an order or passes, or the bijector leads elsewhere.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow. Kingma et al., 2016.
        https://arxiv.org/abs/1606.04934
        Masked Autoregressive Flow for Density Estimation. Papamakarios, Pavlakou, Murray, 2017.
        https://arxiv.org/abs/1705.07057

    Example:
        >>> import torch
        >>> from pyroflows.bijectors import Affine
        >>> maf = Autoregressive(5, Affine(), fast="inverse", order="reversed")
        >>> maf.inv(torch.zeros(3, 5)).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        input_dim: int,
        bijector: Bijector,
        context_dim: int = 0,
        *,
        fast: str = "forward",
        order: str | Sequence[int] | Tensor = "natural",
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
        paired: bool = True,
        passes: int | None = None,
        adjacency: Sequence[Sequence[bool]] | Tensor | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if fast not in ("forward", "inverse"):
            raise ValueError(f"Autoregressive expected fast='forward' or 'inverse', got {fast!r}")
        check_onto_itself("Autoregressive", bijector)
        self.bijector, self.fast = bijector, fast
        if adjacency is None:
            order, sees = as_order(order, input_dim), _blocks(input_dim, passes)
        elif passes is None and isinstance(order, str) and order == "natural":
            order, sees = _sorted(torch.as_tensor(adjacency), input_dim)
        else:
            raise ValueError("Autoregressive expected an adjacency alone, got order or passes, too: it has both in it")
        self.register_buffer("order", order)
        self.register_buffer("order_back", order.argsort())
        options = {"activation": activation, "paired": paired, "sees": sees, "residual": residual}
        self.net = MaskedMLP(input_dim, bijector.param_count, context_dim, hidden_dims, **options)

    @property
    def domain(self) -> Constraint:
        """The bijector's, for each dimension."""
        return on_events(self.bijector.domain, self.event_shape)

    codomain = domain

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        z = reorder(z, self.order, self.order_back)
        if inverse == (self.fast == "inverse"):
            params = self.bijector.unpack(self.net(z, context))
            value, ladj = self.bijector.apply(z, params, inverse=False)
            ladj = ladj.sum(-1)
        else:
            value, ladj = invert(self.net, self.bijector, z, context)
        return reorder(value, self.order_back, self.order), ladj

    def extra_repr(self) -> str:
        """Sizes, bijector and the cheap direction."""
        return f"{super().extra_repr()}, {self.bijector}, fast={self.fast!r}"


def _blocks(input_dim: int, passes: int | None) -> Tensor | None:
    """Which places of the order each place hears, where only earlier blocks are heard; None for all before it."""
    if passes is None or passes == input_dim:
        return None
    check_counts("Autoregressive", {"passes": 2}, passes=passes)
    if passes > input_dim:
        raise ValueError(f"Autoregressive expected passes up to input_dim={input_dim}, got {passes}")
    block = torch.arange(input_dim) * passes // input_dim
    return block.unsqueeze(-1) > block


def _sorted(adjacency: Tensor, input_dim: int) -> tuple[Tensor, Tensor]:
    """An order in which each dimension comes after those that it hears, and what is heard in that order."""
    if adjacency.dtype != torch.bool or adjacency.shape != (input_dim, input_dim):
        raise ValueError(
            f"Autoregressive expected an adjacency of {input_dim} x {input_dim} booleans, got "
            f"{tuple(adjacency.shape)} of {adjacency.dtype}"
        )
    level = torch.zeros(input_dim, dtype=torch.long, device=adjacency.device)
    for _ in range(input_dim):  # the longest chain has as many dimensions at most
        level = (adjacency * (level + 1)).amax(-1)
    if level.max() >= input_dim:
        cycle = (level >= input_dim).nonzero().flatten().tolist()
        raise ValueError(
            f"Autoregressive expected an adjacency without a cycle, got dimensions in one, or after one: {cycle}; "
            f"a dimension may hear neither itself nor one that hears it"
        )
    order = level.argsort(stable=True)
    return order, adjacency[order][:, order]
