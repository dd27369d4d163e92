"""Estimates of the ELBO whose gradients train a flow."""

from collections.abc import Callable

from torch import Tensor

from ..distributions import FlowDistribution


def log_weights(
    posterior: FlowDistribution, density: Callable[[Tensor], Tensor], num_particles: int, path: bool
) -> Tensor:
    """``log p(z, data) - log q(z)`` at draws of ``q``; their mean estimates the ELBO, also in its gradient.

    Args:
        posterior: the flow distribution ``q`` over the unconstrained vector.
        density: the log joint ``p``, a map of ``(B, D)`` to ``(B,)``.
        num_particles: how many draws.
        path: leave the score of ``q`` out of the gradient. Its mean is zero, and without it the gradient's
            variance vanishes as ``q`` becomes exact; it costs a pass of the inverse, except for couplings.

    Returns:
        Shape ``(num_particles,)``, in nats.

    References:
        Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference.
        Roeder, Wu, Duvenaud, 2017. https://arxiv.org/abs/1703.09194
    """
    if not path:
        z, log_q = posterior.rsample_and_log_prob((num_particles,))
        return density(z) - log_q
    z, log_q, score = posterior.rsample_and_score((num_particles,))
    # Zeros whose gradient is that of log q(z) through z alone.
    through_z = (score * (z - z.detach())).sum(-1)
    return density(z) - log_q - through_z
