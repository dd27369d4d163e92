"""Where to start with globals that are a hierarchy themselves: the mode of the scales, the effects integrated out."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...model.rows import RowJoint
from ..starts.gaussian import Gaussian
from .climb import APART, Level, climb, root_at
from .marginal import laplace_marginal

# Newton steps that follow the effects as the scales move, and the gain in nats that ends them.
FOLLOW, DONE = 6, 1e-3


class Effects(NamedTuple):
    """What is carried from scales to scales: all globals as they are ``(Dg,)``, and the rows' modes ``(R, d)``."""

    g: Tensor
    z: Tensor


class Scales:
    """The density of those globals that no others scale, with rows and effects integrated out by Gaussians.

    The effects' curvature is that of their data, which hardly changes with the scales, and that of their prior.

    Args:
        joint: the model, its globals as they are.
        bend: minus the curvature of the data's log density by the effects, ``(E, E)``.
    """

    def __init__(self, joint: RowJoint, bend: Tensor) -> None:
        self.joint, self.bend, self.relative = joint, bend, joint.structure.outer.relative
        self.effects = self.relative.scaled
        self.own = torch.ones(len(joint.start[0]), dtype=torch.bool, device=bend.device)
        self.own[self.effects] = False

    def __call__(self, h: Tensor, carried: Effects) -> Level:
        """Value, gradient and the effects' modes at scales ``(H,)``."""
        g = carried.g.clone()
        g[self.own] = h
        at, spread = laplace_marginal(self.joint, g, carried.z), self.spread(g)
        for _ in range(FOLLOW):
            slope = at.grad[self.effects]
            step = spread @ slope
            if not step @ slope > DONE:
                break
            there = g.index_add(0, self.effects, step)
            found = laplace_marginal(self.joint, there, at.carried)
            if not found.value > at.value:
                break
            g, at = there, found
        variance = spread.diagonal()
        with torch.enable_grad():
            moving = g.clone().requires_grad_()
            (wider,) = torch.autograd.grad(-0.5 * (variance * self._by_prior(moving)).sum(), moving)
        value = at.value + 0.5 * torch.linalg.slogdet(spread).logabsdet
        return Level(value, (at.grad + wider)[self.own], Effects(g, at.carried))

    def spread(self, g: Tensor) -> Tensor:
        """Covariance of the effects ``(E, E)`` given the scales of globals ``(Dg,)``."""
        return torch.linalg.inv(self.bend + self._by_prior(g).diag())

    def _by_prior(self, g: Tensor) -> Tensor:
        """Precisions of the effects' priors, ``(E,)``."""
        return (-2 * self.relative.prior(g)[1][self.effects]).exp()


@torch.no_grad()
def scales_start(joint: RowJoint, g: Tensor, z: Tensor, metric: Tensor) -> tuple[Gaussian, Tensor, float]:
    """The globals as a Gaussian, in coordinates that suit it and are set; the rows' modes; the value.

    The joint mode of scales and effects will not do: it is at a scale of zero if the effects are centred, and at one
    that is too large if they are not, where each of them has the narrowest density.

    Args:
        joint: the model, its globals not centred.
        g: globals from where to climb.
        z: the rows' modes there.
        metric: an inverse curvature there.
    """
    outer = joint.structure.outer
    g = outer.settled(g)[0]
    outer.relative.as_they_are()
    scales = Scales(joint, _data_bend(joint, g, z))
    own, effects = scales.own, scales.effects
    h, at, metric = climb(scales, g[own], Effects(g, z), metric[own][:, own])
    root = root_at(scales, h, at.carried, metric)
    ends = [[scales(h + side * axis, at.carried).carried.g for side in (0.5, -0.5)] for axis in root.mT]
    g, spread = at.carried.g, scales.spread(at.carried.g)
    outer.relative.centre(g, spread.diagonal().sqrt())
    size = outer.relative.log_scale[effects].exp()
    rooted = g.new_zeros(len(g), len(g))  # of scales first, then effects, which move with them
    rooted[: len(h), : len(h)] = root
    rooted[len(h) :, : len(h)] = torch.stack(
        [(outer.unsettled(ahead)[0] - outer.unsettled(back)[0])[effects] for ahead, back in ends], -1
    )
    rooted[len(h) :, len(h) :] = torch.linalg.cholesky(spread / (size[:, None] * size))
    order = torch.cat([own.nonzero()[:, 0], effects]).argsort()
    return Gaussian.from_root(outer.unsettled(g)[0], rooted[order]), at.carried.z, float(at.value)


def _data_bend(joint: RowJoint, g: Tensor, z: Tensor) -> Tensor:
    """Minus the curvature of the data's log density by the effects, by differences of gradients."""
    effects = joint.structure.outer.relative.scaled
    log_scale = joint.structure.outer.relative.prior(g)[1][effects]
    bend = []
    for place, by in zip(effects.tolist(), APART / 2 * log_scale.exp(), strict=True):
        away = torch.zeros_like(g)
        away[place] = by
        ahead, back = (laplace_marginal(joint, g + side * away, z).grad[effects] for side in (1.0, -1.0))
        bend.append((back - ahead) / (2 * by))
    bend = torch.stack(bend)
    values, vectors = torch.linalg.eigh((bend + bend.mT) / 2 - (-2 * log_scale).exp().diag())
    return (vectors * values.clamp_min(0.0)) @ vectors.mT
