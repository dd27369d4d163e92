"""Many short chains at once, for posteriors of which only moments are known."""

import torch
from torch import Tensor

from pyroflows.compile import Graph, capture
from pyroflows.model import LogJoint

# Each trajectory has so many steps of a length that most proposals are accepted with.
LEAPS, ACCEPTANCE = 12, 0.8


def sample(density: LogJoint, start: Tensor, chains: int = 100, warmup: int = 250, keep: int = 500) -> Tensor:
    """Hamiltonian Monte Carlo in the coordinates that the curvature at ``start`` whitens.

    Args:
        density: the log joint.
        start: an unconstrained vector near the middle of the posterior.
        chains: chains that are run together, from around the start.
        warmup: iterations that tune the step and are dropped.
        keep: iterations that are kept.

    Returns:
        Unconstrained vectors, ``(chains, keep, D)``.
    """
    scale = whitening(density, start)
    x, step, kept = 0.3 * torch.randn(chains, len(start)), 0.1, []
    graph = capture(lambda x: _total(density, start + x @ scale.T), [x.clone().requires_grad_()], has_aux=True)
    value, slope = _evaluate(graph, x)
    for iteration in range(warmup + keep):
        momentum = torch.randn_like(x)
        proposal, proposed, new_slope, new_momentum = x, value, slope, momentum
        length = step * (0.5 + float(torch.rand(())))  # no trajectory closes on itself for long
        for _ in range(LEAPS):
            half = new_momentum + length / 2 * new_slope
            proposal = proposal + length * half
            proposed, new_slope = _evaluate(graph, proposal)
            new_momentum = half + length / 2 * new_slope
        gain = proposed - value + (momentum.square() - new_momentum.square()).sum(-1) / 2
        chance = gain.exp().clamp(max=1).nan_to_num(0.0)
        taken = torch.rand(chains) < chance
        value = torch.where(taken, proposed, value)
        x, slope = (torch.where(taken.unsqueeze(-1), *pair) for pair in ((proposal, x), (new_slope, slope)))
        if iteration < warmup:
            step *= 1.1 if chance.mean() > ACCEPTANCE else 1 / 1.1
        else:
            kept.append(start + x @ scale.T)
    return torch.stack(kept, dim=1)


def whitening(density: LogJoint, z: Tensor, step: float = 1e-4) -> Tensor:
    """A root of the inverse of the absolute curvature, ``(D, D)``, by differences of the score."""
    moves = step * torch.eye(len(z))
    points = torch.cat([z + moves, z - moves]).requires_grad_()
    up, down = torch.autograd.grad(density(points).sum(), points)[0].chunk(2)
    curvature = (up - down) / (2 * step)
    values, vectors = torch.linalg.eigh((curvature + curvature.T) / 2)
    return vectors / values.abs().sqrt()


def _total(density: LogJoint, z: Tensor) -> tuple[Tensor, Tensor]:
    values = density(z)
    return values.sum(), values


def _evaluate(graph: Graph, x: Tensor) -> tuple[Tensor, Tensor]:
    (_, values), (slope,) = graph(x)
    return values, slope
