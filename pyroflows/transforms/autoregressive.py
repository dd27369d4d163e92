"""Autoregressive: each dimension is moved by what the dimensions before it say."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from ..bijectors import Bijector
from ..nets import Activation, MaskedMLP
from .autoregressive_inverse import invert
from .base import FlowTransform
from .domains import check_onto_itself, on_events
from .permute import as_order, reorder


class Autoregressive(FlowTransform):
    """Moves dimension ``i`` by a bijector whose parameters a masked network reads off those before it.

    One direction is a single pass of the network; the other goes dimension by dimension, incrementally: each
    weight is used once, and gradients come from the implicit function theorem. ``fast`` says which direction
    is the single pass: ``"forward"`` samples fast (IAF), ``"inverse"`` scores fast (MAF). ``.inv`` turns one
    into the other. It starts at the identity, but for rounding.

    Args:
        input_dim: size ``D`` of the vectors.
        bijector: the scalar map.
        context_dim: size of the context, 0 for none.
        fast: the cheap direction, ``"forward"`` or ``"inverse"``.
        order: ``"natural"``, ``"reversed"``, ``"random"``, or the dimensions from the first to the last.
        hidden_dims: widths of the network's hidden layers, at least one.
        activation: makes the network's non-linearity, which must act elementwise.
        paired: how the network starts at zero, see :class:`~pyroflows.nets.MaskedMLP`; False with dropout.

    Raises:
        ValueError: if ``fast`` or ``order`` is not one of these, or the bijector leads elsewhere.

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
    ) -> None:
        super().__init__(input_dim, context_dim)
        if fast not in ("forward", "inverse"):
            raise ValueError(f"Autoregressive expected fast='forward' or 'inverse', got {fast!r}")
        check_onto_itself("Autoregressive", bijector)
        self.bijector, self.fast = bijector, fast
        order = as_order(order, input_dim)
        self.register_buffer("order", order)
        self.register_buffer("order_back", order.argsort())
        self.net = MaskedMLP(input_dim, bijector.param_count, context_dim, hidden_dims, activation, paired)

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
