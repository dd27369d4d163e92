"""Base distributions of flows that have several modes."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints


class ComponentBase(TorchDistribution):
    """What mixtures over vectors have in common: draws from chosen components, and masses that can be moved.

    A flow is continuous: from one Gaussian it reaches two modes only with a bridge of mass between them. From a
    mixture each mode has a component of its own, and the flow bends them. The numbers here are not trained by
    gradients; draws are constants to autograd, as those of a standard normal are. ``fit`` finds places and shapes
    before it starts, and moves the masses, :attr:`logits`, in place as it goes.

    Args:
        tensors: what the mixture is made from again, the logits first; the last dimension of these is the components'.
        size: the size ``D`` of the vectors.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, *tensors: Tensor, size: int) -> None:
        self.tensors, self.logits = tensors, tensors[0]
        super().__init__(Size(), Size([size]), validate_args=False)

    def rsample(self, sample_shape: Size | tuple = ()) -> Tensor:
        """Draws of shape ``(*sample_shape, D)``."""
        chosen = torch.multinomial(self.logits.softmax(-1), math.prod(sample_shape), replacement=True)
        return self.draw(chosen.movedim(-1, 0)).reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``(..., D)``, of shape ``(...)``."""
        parts = self._parts(value).logsumexp(-1)
        return parts if self.logits.dim() == 1 else parts.sum(-1)

    def shares(self, value: Tensor) -> Tensor:
        """The probability that each component made the value: ``(..., *logits.shape)`` for ``(..., D)``."""
        return self._parts(value).softmax(-1)

    def to(self, like: Tensor) -> "ComponentBase":
        """The same with the dtype and on the device of a tensor."""
        return type(self)(*(t.to(like) for t in self.tensors))

    def expand(self, batch_shape: Size, _instance: object = None) -> TorchDistribution:
        """Itself for an empty batch; another batch makes an expanded view."""
        return self if Size(batch_shape) == self.batch_shape else super().expand(batch_shape)

    @abstractmethod
    def draw(self, chosen: Tensor) -> Tensor:
        """One draw of each chosen component: ``(N, D)`` for indices ``(N,)``, or ``(N, D)`` one for each factor."""

    @abstractmethod
    def strata(self, num: int) -> tuple[Tensor, Tensor]:
        """Components for ``num`` draws by plan rather than by chance, and the log weights that make up for the plan."""

    @abstractmethod
    def _parts(self, value: Tensor) -> Tensor:
        """Log densities of the components times their masses, ``(..., *logits.shape)``."""


class MixtureBase(ComponentBase):
    """A mixture of full-rank Gaussians over vectors, as the base of a flow that shall have several modes.

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

    def __init__(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        shapes = [tuple(t.shape) for t in (logits, loc, scale_tril)]
        count, size = loc.shape if loc.dim() == 2 else (0, 0)
        if shapes != [(count,), (count, size), (count, size, size)]:
            raise ValueError(f"MixtureBase expected shapes (K,), (K, D) and (K, D, D), got {shapes}")
        self.loc, self.scale_tril = loc, scale_tril
        self._inverse = torch.linalg.inv(scale_tril)
        self._log_norm = self._inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1) - size / 2 * math.log(2 * math.pi)
        super().__init__(logits, loc, scale_tril, size=size)

    def draw(self, chosen: Tensor) -> Tensor:
        """One draw of each chosen component: ``(N, D)`` for indices ``(N,)``."""
        noise = torch.randn(len(chosen), *self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc[chosen] + (self.scale_tril[chosen] @ noise.unsqueeze(-1)).squeeze(-1)

    def strata(self, num: int) -> tuple[Tensor, Tensor]:
        """As many draws of each component, so that chance does not decide on the masses."""
        chosen = torch.arange(num, device=self.logits.device) % len(self.logits)
        return chosen, self.logits.log_softmax(0)[chosen]

    def _parts(self, value: Tensor) -> Tensor:
        whitened = (self._inverse @ (value.unsqueeze(-2) - self.loc).unsqueeze(-1)).squeeze(-1)
        return self.logits.log_softmax(0) + self._log_norm - whitened.square().sum(-1) / 2


class ProductBase(ComponentBase):
    """Independent mixtures of Gaussians along orthogonal axes: ``K ** D`` modes from ``K D`` components.

    ``x = axes @ w``, and each ``w_i`` is a mixture of its own. An axis with one mode repeats one component.

    Args:
        logits: log masses on each axis, ``(D, K)``, up to a constant.
        loc: means ``(D, K)``.
        scale: standard deviations ``(D, K)``.
        axes: an orthogonal matrix ``(D, D)`` whose columns are the axes.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> base = ProductBase(
        ...     torch.zeros(9, 2), torch.tensor([-3.0, 3.0]).expand(9, 2), torch.ones(9, 2), torch.eye(9)
        ... )
        >>> base.rsample((5,)).shape, base.log_prob(torch.zeros(5, 9)).shape, base.shares(torch.zeros(5, 9)).shape
        (torch.Size([5, 9]), torch.Size([5]), torch.Size([5, 9, 2]))
    """

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, axes: Tensor) -> None:
        shapes = [tuple(t.shape) for t in (logits, loc, scale, axes)]
        size, count = logits.shape if logits.dim() == 2 else (0, 0)
        if shapes != [*3 * [(size, count)], (size, size)]:
            raise ValueError(f"ProductBase expected shapes (D, K), (D, K), (D, K) and (D, D), got {shapes}")
        self.loc, self.scale, self.axes = loc, scale, axes
        super().__init__(logits, loc, scale, axes, size=size)

    def draw(self, chosen: Tensor) -> Tensor:
        """Draws ``(N, D)`` of the components ``(N, D)``, chosen for each axis."""
        loc, scale = (t.expand(len(chosen), *t.shape).gather(-1, chosen[..., None])[..., 0] for t in self.tensors[1:3])
        noise = torch.randn(chosen.shape, dtype=loc.dtype, device=loc.device)
        return (loc + scale * noise) @ self.axes.mT

    def strata(self, num: int) -> tuple[Tensor, Tensor]:
        """Each axis has its components as often as their masses say, in an order of its own."""
        order = torch.rand(num, *self.event_shape, device=self.logits.device).argsort(0).mT
        levels = ((order + 0.5) / num).to(self.logits)
        chosen = torch.searchsorted(self.logits.softmax(-1).cumsum(-1), levels.contiguous())
        return chosen.clamp_max(self.logits.shape[-1] - 1).mT, self.logits.new_zeros(num)

    def _parts(self, value: Tensor) -> Tensor:
        off = ((value @ self.axes).unsqueeze(-1) - self.loc) / self.scale
        return self.logits.log_softmax(-1) - self.scale.log() - (off.square() + math.log(2 * math.pi)) / 2


def remade(tensors: Sequence[Tensor]) -> ComponentBase:
    """The base whose ``tensors`` these are.

    Example:
        >>> base = MixtureBase(torch.zeros(2), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1))
        >>> type(remade(base.tensors)).__name__
        'MixtureBase'
    """
    return {3: MixtureBase, 4: ProductBase}[len(tensors)](*tensors)
