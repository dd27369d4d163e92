"""Base distributions of flows that have several modes."""

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints


class MixtureBase(TorchDistribution):
    """A mixture of full-rank Gaussians over vectors, as the base of a flow that shall have several modes.

    A flow is continuous: from one Gaussian it reaches two modes only with a bridge of mass between them. From a
    mixture each mode has a component of its own, and the flow bends them. The numbers here are not trained by
    gradients; draws are constants to autograd, as those of a standard normal are. ``fit`` finds places and shapes
    before it starts, and moves the masses, :attr:`logits`, in place as it goes.

    Args:
        logits: log masses ``(K,)``, up to a constant.
        loc: means ``(K, D)``.
        scale_tril: lower triangular roots of the covariances, ``(K, D, D)``.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> base = MixtureBase(torch.zeros(2), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1))
        >>> base.rsample((5,)).shape, base.log_prob(torch.zeros(5, 1)).shape
        (torch.Size([5, 1]), torch.Size([5]))
        >>> base.shares(torch.tensor([3.0])).round(decimals=2)
        tensor([0., 1.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        shapes = [tuple(t.shape) for t in (logits, loc, scale_tril)]
        count, size = loc.shape if loc.dim() == 2 else (0, 0)
        if shapes != [(count,), (count, size), (count, size, size)]:
            raise ValueError(f"MixtureBase expected shapes (K,), (K, D) and (K, D, D), got {shapes}")
        self.logits, self.loc, self.scale_tril = logits, loc, scale_tril
        self._inverse = torch.linalg.inv(scale_tril)
        self._log_norm = self._inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1) - size / 2 * math.log(2 * math.pi)
        super().__init__(Size(), Size([size]), validate_args=False)

    def rsample(self, sample_shape: Size | tuple = ()) -> Tensor:
        """Draws of shape ``(*sample_shape, D)``."""
        chosen = torch.multinomial(self.logits.softmax(0), math.prod(sample_shape), replacement=True)
        return self.draw(chosen).reshape(*sample_shape, *self.event_shape)

    def draw(self, chosen: Tensor) -> Tensor:
        """One draw of each chosen component: ``(N, D)`` for indices ``(N,)``."""
        noise = torch.randn(len(chosen), *self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc[chosen] + (self.scale_tril[chosen] @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``(..., D)``, of shape ``(...)``."""
        return self._parts(value).logsumexp(-1)

    def shares(self, value: Tensor) -> Tensor:
        """The probability that each component made the value: ``(..., K)`` for ``(..., D)``."""
        return self._parts(value).softmax(-1)

    def to(self, like: Tensor) -> "MixtureBase":
        """The same with the dtype and on the device of a tensor."""
        return MixtureBase(*(t.to(like) for t in (self.logits, self.loc, self.scale_tril)))

    def expand(self, batch_shape: Size, _instance: object = None) -> TorchDistribution:
        """Itself for an empty batch; another batch makes an expanded view."""
        return self if Size(batch_shape) == self.batch_shape else super().expand(batch_shape)

    def _parts(self, value: Tensor) -> Tensor:
        whitened = (self._inverse @ (value.unsqueeze(-2) - self.loc).unsqueeze(-1)).squeeze(-1)
        return self.logits.log_softmax(0) + self._log_norm - whitened.square().sum(-1) / 2
