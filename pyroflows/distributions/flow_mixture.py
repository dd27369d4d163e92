"""A mixture of flows."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints


class FlowMixture(TorchDistribution):
    """A mixture of distributions over vectors, each a flow of its own, as ``sum_k w_k p_k(x)``.

    One flow joins the modes that it makes of a single base by bridges of mass; a mixture has none. Scoring costs all
    components, drawing too, and draws have no gradients, as the choice of a component has none.

    Args:
        logits: log weights ``(..., K)``, up to a constant: learnable, or from a context.
        parts: ``K`` distributions over events of one shape, as :class:`FlowDistribution`; batches broadcast.

    Raises:
        ValueError: if the parts do not fit each other or the logits.

    Example:
        >>> from pyroflows.distributions import FlowDistribution
        >>> from pyroflows.flows import nsf
        >>> mixture = FlowMixture(torch.zeros(2), [FlowDistribution(transform=nsf(3)) for _ in range(2)])
        >>> mixture.log_prob(mixture.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor, parts: Sequence[Distribution], validate_args: bool | None = None) -> None:
        shapes = [tuple(part.event_shape) for part in parts]
        if not parts or len(set(shapes)) > 1:
            raise ValueError(f"FlowMixture expected parts over events of one shape, got shapes {shapes}")
        if logits.shape[-1:] != (len(parts),):
            raise ValueError(
                f"FlowMixture expected logits of shape (..., {len(parts)}), one for each part, got "
                f"{tuple(logits.shape)}"
            )
        batch = torch.broadcast_shapes(logits.shape[:-1], *(part.batch_shape for part in parts))
        self.logits, self.parts = logits.expand(*batch, -1), [part.expand(batch) for part in parts]
        super().__init__(batch, parts[0].event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """That of the parts."""
        return self.parts[0].support

    def expand(self, batch_shape: Size, _instance: object = None) -> "FlowMixture":
        """The same distribution with a larger batch of independent draws."""
        return FlowMixture(self.logits.expand(*batch_shape, -1), [part.expand(batch_shape) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``(..., *event_shape)``."""
        return self._weighed(value).logsumexp(-1)

    def shares(self, value: Tensor) -> Tensor:
        """The probability that each part made the value: ``(..., K)``."""
        return self._weighed(value).softmax(-1)

    def sample(self, sample_shape: Size | tuple = ()) -> Tensor:
        """Draws ``sample_shape + batch_shape + event_shape``."""
        with torch.no_grad():
            draws = torch.stack([part.sample(Size(sample_shape)) for part in self.parts])
            chosen = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(Size(sample_shape))
            index = chosen.reshape(1, *chosen.shape, *[1] * len(self.event_shape)).expand(1, *draws.shape[1:])
            return draws.gather(0, index)[0]

    def _weighed(self, value: Tensor) -> Tensor:
        """Log densities of the parts times their weights, ``(..., K)``."""
        each = torch.stack([part.log_prob(value) for part in self.parts], -1)
        return self.logits.log_softmax(-1) + each
