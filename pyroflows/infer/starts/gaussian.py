"""A full-rank Gaussian, and how a log density is evaluated where it may fail."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of one vector.

    Args:
        loc: mean, of shape ``(D,)``.
        scale_tril: lower triangular factor of the covariance, of shape ``(D, D)``, with a positive diagonal.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> q = Gaussian(torch.zeros(2), torch.eye(2))
        >>> q.sample(5).shape, q.log_prob(torch.zeros(3, 2))
        (torch.Size([5, 2]), tensor([-1.8379, -1.8379, -1.8379]))
    """

    loc: Tensor
    scale_tril: Tensor

    def __post_init__(self) -> None:
        if self.loc.dim() != 1 or self.scale_tril.shape != 2 * self.loc.shape:
            raise ValueError(
                f"Gaussian expected loc of shape (D,) and scale_tril of shape (D, D), got {tuple(self.loc.shape)} "
                f"and {tuple(self.scale_tril.shape)}"
            )

    @classmethod
    def from_root(cls, loc: Tensor, root: Tensor) -> "Gaussian":
        """The Gaussian of covariance ``root root'``, for any square matrix ``root`` of full rank."""
        upper = torch.linalg.qr(root.mT, mode="r").R
        return cls(loc, upper.mT * upper.diagonal().sign())

    @classmethod
    def of(cls, draws: Tensor) -> "Gaussian":
        """The Gaussian with the moments of draws ``(N, D)``, or only their variances where there are less than 2 D."""
        off = (draws - draws.mean(0)) / len(draws) ** 0.5
        if len(draws) > 2 * draws.shape[1]:
            return cls.from_root(draws.mean(0), torch.linalg.qr(off, mode="r").R.mT)
        return cls(draws.mean(0), off.norm(dim=0).diag())

    def sample(self, n: int) -> Tensor:
        """Draws of shape ``(n, D)``."""
        noise = torch.randn(n, len(self.loc), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + noise @ self.scale_tril.mT

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at ``(B, D)``, of shape ``(B,)``."""
        u = torch.linalg.solve_triangular(self.scale_tril, (z - self.loc).mT, upper=False)
        log_det = self.scale_tril.diagonal().log().sum()
        return -0.5 * u.square().sum(0) - log_det - 0.5 * len(self.loc) * math.log(2 * math.pi)


def elbo(log_density: LogDensity, gaussian: Gaussian, num: int = 512) -> float:
    """The mean of ``log_density(z) - log q(z)`` over draws of a Gaussian ``q``, in nats.

    Draws come in pairs on opposite sides of the mean, which takes out the noise of its first order. Where the log
    density is not finite at a draw, NaN included, the ELBO is ``-inf``.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``.
        gaussian: the distribution ``q``.
        num: how many draws, an even number.

    Example:
        >>> q = Gaussian(torch.zeros(2), torch.eye(2))
        >>> elbo(lambda z: q.log_prob(z) + 3.0, q)
        3.0
    """
    z = gaussian.sample(num // 2)
    z = torch.cat([z, 2 * gaussian.loc - z])
    mean = (values(log_density, z) - gaussian.log_prob(z)).mean().item()
    return mean if math.isfinite(mean) else -math.inf


@torch.no_grad()
def values(log_density: LogDensity, z: Tensor) -> Tensor:
    """The log density at ``(B, D)``, of shape ``(B,)``; ``-inf`` where it is not finite or cannot be factorised."""
    found = _evaluate(log_density, z)
    return torch.where(found.isfinite(), found, -math.inf)


def score(log_density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log density and its gradient, row by row.

    A row whose value or gradient is not finite, or at which a matrix of the model cannot be factorised, gets the
    value ``-inf`` and the gradient zero; the other rows do not notice.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``, each row by itself; differentiable.
        z: points of shape ``(B, D)``.

    Returns:
        Values of shape ``(B,)`` and gradients of shape ``(B, D)``.

    Raises:
        ValueError: if ``log_density`` returns another shape.

    Example:
        >>> score(lambda z: z.log().sum(-1), torch.tensor([[0.5], [-1.0]]))
        (tensor([-0.6931,    -inf]), tensor([[2.],
                [0.]]))
    """
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        found = _evaluate(log_density, z)
        (grads,) = torch.autograd.grad(found.sum(), z)
    good = found.isfinite() & grads.isfinite().all(-1)
    return torch.where(good, found, -math.inf).detach(), torch.where(good[:, None], grads, 0.0)


def _evaluate(log_density: LogDensity, z: Tensor) -> Tensor:
    try:
        found = log_density(z)
    except torch.linalg.LinAlgError:
        # One bad matrix fails the whole batch: halve until it is alone.
        if len(z) == 1:
            return 0.0 * z[:, 0] - math.inf
        return torch.cat([_evaluate(log_density, half) for half in z.tensor_split(2)])
    if found.shape != z.shape[:1]:
        raise ValueError(
            f"expected log_density to map {tuple(z.shape)} to ({len(z)},), got {tuple(found.shape)}: sum over the "
            f"last dimension"
        )
    return found
