"""Amortised posteriors: from the output of any encoder network to a flow distribution."""

from collections.abc import Callable

from pyro.nn import PyroModule
from torch import Tensor, nn

from ..autograd import is_autocast
from ..distributions import FlowDistribution
from ..flows.build import build
from ..transforms import Affine, Compose, FlowTransform, LowerTriangular


class FlowEncoder(PyroModule):
    """The posterior ``q(z | h(x))`` of a latent vector, for any network ``h``: a Gaussian with a flow on top.

    Loc and scale of the Gaussian, and the networks of the flow, all read ``h(x)``; the flow starts at the identity
    unless its networks are the user's own.
    Training needs samples, so use flows that are fast forward or both ways: ``iaf``, ``realnvp``, ``nsf``.

    Args:
        net: maps data to features of shape ``(rows, features)``.
        features: their number.
        latent_dim: size ``D`` of the latent vectors.
        flow: a recipe, called as ``flow(D, features)``; None leaves the Gaussian as it is.
        full: a full covariance rather than a diagonal one.
        name: what the names of the parameters start with.

    Raises:
        TypeError: if ``flow`` does not make a FlowTransform.
            When called, if data have another dtype than ``net``.
        ValueError: when called, if ``net`` gives features of another shape.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow. Kingma et al., 2016.
        https://arxiv.org/abs/1606.04934

    Example:
        >>> import torch
        >>> from pyroflows import flows
        >>> encoder = FlowEncoder(nn.Linear(784, 30), 30, 8, flows.iaf)
        >>> encoder(torch.rand(5, 784)).rsample().shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        net: nn.Module,
        features: int,
        latent_dim: int,
        flow: Callable[..., FlowTransform] | None = None,
        *,
        full: bool = False,
        name: str = "",
    ) -> None:
        super().__init__(name)
        self.net, self.features = net, features
        gaussian = (LowerTriangular if full else Affine)(latent_dim, features, hidden_dims=())
        gaussian.params.net[-1].reset_parameters()  # from zero, all data would start alike and learn slowly
        self.transform = Compose([gaussian] if flow is None else [gaussian, build(flow, latent_dim, features)])

    def forward(self, x: Tensor) -> FlowDistribution:
        """The distribution of the latents of each row, of batch shape ``(rows,)``."""
        self._check(x)
        h = self.net(x)
        if h.shape != (len(x), self.features):
            raise ValueError(
                f"FlowEncoder expected a net that gives features of shape ({len(x)}, {self.features}) for "
                f"{len(x)} rows, got {tuple(h.shape)}"
            )
        return FlowDistribution(transform=self.transform.condition(h))

    def _check(self, x: Tensor) -> None:
        own = next((p.dtype for p in self.net.parameters() if p.is_floating_point()), x.dtype)
        if x.is_floating_point() and x.dtype != own and not is_autocast(x):
            raise TypeError(
                f"FlowEncoder expected data of {own}, the dtype of its net, got {x.dtype}: convert them by .to({own}), "
                f"or the encoder by .to({x.dtype})"
            )
