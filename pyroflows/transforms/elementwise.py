"""The structure without mixing: each dimension has its own bijector."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from ..autograd import slope
from ..bijectors import Bijector
from ..nets import Activation, Parameters
from .base import FlowTransform
from .domains import on_events


class Elementwise(FlowTransform):
    """Applies a bijector to every dimension on its own; directions are as cheap as the bijector's.

    The parameters are free, or come from the context through a network. Domain and codomain are the bijector's.

    Args:
        input_dim: size ``D`` of the vectors.
        bijector: the scalar map, for example :class:`~pyroflows.bijectors.LeakyReLU`.
        context_dim: size of the context, 0 for free parameters.
        shared: one set of parameters for all dimensions rather than one for each.
        hidden_dims: widths of the network's hidden layers, used with a context.
        activation: makes the network's non-linearity.
        gain: what the parameters are multiplied by; less than 1 makes steps of Adam smaller.

    Raises:
        ValueError: if there is a context, and the bijector has no parameters.

    Example:
        >>> from pyroflows.bijectors import LeakyReLU
        >>> prelu = Elementwise(3, LeakyReLU(), shared=True)
        >>> sum(p.numel() for p in prelu.parameters())
        1
    """

    def __init__(
        self,
        input_dim: int,
        bijector: Bijector,
        context_dim: int = 0,
        *,
        shared: bool = False,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
        gain: float = 1.0,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.bijector, self.shared, self.sign, self.fast = bijector, shared, bijector.sign, bijector.fast
        size = bijector.param_count * (1 if shared else input_dim)
        if context_dim and not size:
            raise ValueError(
                f"Elementwise expected context_dim=0 for {bijector}, which has no parameters, got a context"
            )
        self.params = Parameters(torch.zeros(size), context_dim, hidden_dims, activation, gain) if size else None

    @property
    def domain(self) -> Constraint:
        """The bijector's, for each dimension."""
        return on_events(self.bijector.domain, self.event_shape)

    @property
    def codomain(self) -> Constraint:
        """The bijector's, for each dimension."""
        return on_events(self.bijector.codomain, self.event_shape)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        value, ladj = self._each(z, context, inverse)
        return value, ladj.sum(-1)

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value, ladj = self._each(x, context, False)
            score = (score - slope([ladj], x, [torch.ones_like(ladj)])) * (-ladj.detach()).exp()
            score = -score if self.sign < 0 else score
        return value, ladj.detach().sum(-1), score

    def _each(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """The value and the ladj of each dimension."""
        if self.params is None:
            return self.bijector.apply(z, [], inverse)
        flat = torch.unflatten(self.params(context), -1, (-1, self.bijector.param_count))
        return self.bijector.apply(z, self.bijector.unpack(flat), inverse)

    def extra_repr(self) -> str:
        """Sizes and bijector."""
        return f"{super().extra_repr()}, {self.bijector}" + (", shared=True" if self.shared else "")
