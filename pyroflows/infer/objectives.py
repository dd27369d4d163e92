"""What a flow is trained for: divergences between guide and posterior whose gradients are low in noise.

An objective maps a flow distribution, a log density and a number of particles to that many numbers. Their values are
the log weights ``log p(z) - log q(z)`` at draws of the flow, whose mean estimates the ELBO whatever the objective; the
gradient of their mean is the one that improves the objective. Any function of this kind will do.

All but the plain reverse KL weigh the same thing, the path gradient of each particle's log weight: it flows through
the draw alone and is zero where the flow is exact, so that the noise of all of them vanishes there.

References:
    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives. Tucker, Lawson, Gu, Maddison, 2019.
    https://arxiv.org/abs/1810.04152
    On importance-weighted autoencoders. Finke, Thiery, 2019. https://arxiv.org/abs/1907.10477
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributions import FlowDistribution

Density = Callable[[Tensor], Tensor]
Objective = Callable[[FlowDistribution, Density, int], Tensor]


def log_weights(posterior: FlowDistribution, density: Density, num_particles: int, path: bool) -> Tensor:
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


@dataclass(frozen=True)
class ReverseKL:
    """``KL(q | p)``, the negative ELBO: seeks modes, and is what ``fit`` minimises by default. Unbiased.

    Args:
        path: the gradient through the draws alone, see :func:`log_weights`; None takes it where the flow is fast
            both ways.

    Example:
        >>> from pyroflows import FlowDistribution, flows
        >>> q = FlowDistribution(transform=flows.full_rank(2))
        >>> ReverseKL()(q, q.log_prob, 3).tolist()
        [0.0, 0.0, 0.0]
    """

    path: bool | None = None

    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """Log weights of shape ``(num_particles,)`` with the gradient of the ELBO."""
        path = posterior.transform.fast == "both" if self.path is None else self.path
        return log_weights(posterior, density, num_particles, path)


@dataclass(frozen=True)
class Renyi:
    """The variational Rényi bound of ``K`` particles: between the ELBO (alpha 1) and the evidence (alpha 0).

    ``log(mean(w ** (1 - alpha))) / (1 - alpha)`` of the weights of ``K`` draws; the smaller alpha, the more mass is
    covered. The gradient is doubly reparameterised and unbiased for the bound of ``K`` particles, which is itself
    below that of infinitely many.

    Args:
        alpha: the order, not negative.
        particles: the ``K`` that one bound takes; None takes all the particles of a step.

    Raises:
        ValueError: if alpha is negative; if ``particles`` does not divide the number of particles of a step.

    References:
        Rényi Divergence Variational Inference. Li, Turner, 2016. https://arxiv.org/abs/1602.02311
        Alpha-divergence Variational Inference Meets Importance Weighted Auto-Encoders: Methodology and Asymptotics.
        Daudel, Benton, Shi, Doucet, 2023. https://arxiv.org/abs/2210.06226
    """

    alpha: float = 0.5
    particles: int | None = None

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"Renyi expected alpha >= 0, got {self.alpha}: use ChiSquared for upper bounds")

    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """Log weights of shape ``(num_particles,)`` with the gradient of the mean bound."""
        size = self.particles or num_particles
        if num_particles % size:
            raise ValueError(f"expected num_particles to be a multiple of {size}, the size of a bound: {num_particles}")

        def weigh(values: Tensor) -> tuple[Tensor, Tensor]:
            share = ((1 - self.alpha) * values.view(-1, size)).softmax(-1).flatten() * size / num_particles
            return self.alpha * share + (1 - self.alpha) * share.square() * num_particles / size, share

        return _weighted(posterior, density, num_particles, weigh)


@dataclass(frozen=True)
class IWAE:
    """The importance-weighted bound of ``K`` particles, with the doubly reparameterised gradient (DReG). Unbiased.

    The same as ``Renyi(0, particles)``. The more particles, the less the guide itself has to be right; with very
    many it learns little. Parameters of the model climb the bound, too.

    Args:
        particles: the ``K`` of the bound, which divides the number of particles of a step.

    Raises:
        ValueError: if it does not.

    References:
        Importance Weighted Autoencoders. Burda, Grosse, Salakhutdinov, 2016. https://arxiv.org/abs/1509.00519
    """

    particles: int = 8

    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """Log weights of shape ``(num_particles,)`` with the gradient of the mean bound."""
        return Renyi(0.0, self.particles)(posterior, density, num_particles)


@dataclass(frozen=True, eq=False)
class ForwardKL:
    """``KL(p | q)``: covers all the mass, by importance sampling from the guide or on given samples of ``p``.

    Importance weights are normalised by their sum, which biases the gradient by ``O(1 / num_particles)``. It is the
    path gradient, weighted, and thus zero where the flow is exact. On given samples the gradient is that of their
    mean log density, unbiased for them, and asks for the flow's inverse; the model's own parameters stay.

    Args:
        samples: unconstrained vectors ``(N, D)``, as ``log_joint(model).unconstrain(values)`` makes them; a step takes
            ``num_particles`` of them at random.

    Example:
        >>> from pyroflows import FlowDistribution, flows
        >>> q = FlowDistribution(transform=flows.maf(2))
        >>> ForwardKL(torch.randn(100, 2))(q, q.log_prob, 3).shape
        torch.Size([3])
    """

    samples: Tensor | None = None

    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """Log weights of shape ``(num_particles,)`` with the gradient of the negative divergence."""
        if self.samples is None:
            return _weighted(posterior, density, num_particles, lambda values: 2 * (values.softmax(0),))
        with torch.no_grad():
            values = log_weights(posterior, density, num_particles, path=False)
        rows = torch.randint(len(self.samples), (num_particles,), device=self.samples.device)
        log_q = posterior.log_prob(self.samples[rows].to(posterior.sample()))
        return values + (log_q - log_q.detach())


@dataclass(frozen=True)
class ChiSquared:
    """The chi-squared upper bound of the evidence (CUBO): the guide that is best to draw importance samples from.

    ``log(E[w ** n]) / n`` is minimised; ``n`` = 2 is the variance of the weights. Powers of the weights are normalised
    by their sum, which biases the gradient by ``O(1 / num_particles)``, the more the further the guide is off: start
    from a good one. Parameters of the model climb the evidence, as with :class:`ForwardKL`.

    Args:
        power: the ``n``, above 1.

    Raises:
        ValueError: if it is not.

    References:
        Variational Inference via χ Upper Bound Minimization. Dieng, Tran, Ranganath, Paisley, Blei, 2017.
        https://arxiv.org/abs/1611.00328
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.power > 1:
            raise ValueError(f"ChiSquared expected a power above 1, got {self.power}")

    def __call__(self, posterior: FlowDistribution, density: Density, num_particles: int) -> Tensor:
        """Log weights of shape ``(num_particles,)`` with the negative gradient of the bound."""

        def weigh(values: Tensor) -> tuple[Tensor, Tensor]:
            return (self.power - 1) * (self.power * values).softmax(0), values.softmax(0)

        return _weighted(posterior, density, num_particles, weigh)


def _weighted(
    posterior: FlowDistribution,
    density: Density,
    num_particles: int,
    weigh: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Log weights of which each particle's gradient is weighed, separately for the path and for the model's own.

    ``weigh`` maps the log weights to two weights for each particle: of the gradient through its place, which trains
    the guide, and of the gradient of ``density`` at a fixed place, which trains parameters of the model.
    """
    z, log_q, score = posterior.rsample_and_score((num_particles,))
    fixed = z.detach().requires_grad_()
    log_p = density(fixed)
    (slope,) = torch.autograd.grad(log_p.sum(), fixed, retain_graph=True)
    values = log_p.detach() - log_q
    through_z, through_model = weigh(values)
    moved = ((slope - score) * (z - z.detach())).sum(-1)
    return values + num_particles * (through_z * moved + through_model * (log_p - log_p.detach()))
