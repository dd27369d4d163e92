"""Means and standard deviations of rows' latents, gone through draw by draw so that no draws are kept."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions.transforms import identity_transform as IDENTITY

from ...guides import AutoPlateFlow
from ...guides.plates.row_form import Conditional
from ...model.rows import Pass, RowJoint
from .row_weights import AT_ONCE, scored

# Nodes of a quadrature over the bend of a normal.
NODES = 40
Moments = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def row_moments(guide: AutoPlateFlow, joint: RowJoint, g: Tensor) -> Moments:
    """Mean and sd of each row by site, ``(R, *shape)``, over draws ``(S, Dg)`` of the globals.

    Of a latent that is not transformed, the moments given each draw are known, and averaged; of another one, draws are.
    """
    totals = _Totals(joint, guide.loc)
    size = max(1, AT_ONCE // joint.numbers)
    drawn = any(site.transform != IDENTITY for site in joint.structure.inner)
    for some in joint.passes:
        bent = None
        for part in g.split(size):
            rows = guide.form.at(guide.given(joint, part, some.index))
            bent = _bent(rows) if bent is None else bent  # the same for all globals
            known = _known(rows, *bent)
            totals.add(some, rows.draw(torch.randn_like(rows.mean)) if drawn else known[0], known)
    return totals.read()


@torch.no_grad()
def weighted_moments(guide: AutoPlateFlow, joint: RowJoint, g: Tensor, each: int) -> Moments:
    """The same with the rows' latents weighed, ``each`` draws for every one of the globals, which count alike."""
    totals = _Totals(joint, guide.loc)
    size = max(1, AT_ONCE // (each * joint.numbers))
    for part in g.split(size):
        for some, z, log_w, _ in scored(guide, joint, part, each):
            totals.add(some, z.flatten(0, 1), weights=torch.softmax(log_w, 1).flatten(0, 1))
    return totals.read()


class _Totals:
    """Sums over draws of each row's latents and their squares."""

    def __init__(self, joint: RowJoint, like: Tensor) -> None:
        self.structure = joint.structure
        rows = self.structure.rows
        shapes = {site.name: site.shape[: site.axis] + site.shape[site.axis + 1 :] for site in self.structure.inner}
        self.sums = {name: [like.new_zeros(rows, *shape) for _ in range(2)] for name, shape in shapes.items()}
        self.counts = like.new_zeros(rows)

    def add(
        self, some: Pass, z: Tensor, known: tuple[Tensor, Tensor] | None = None, weights: Tensor | None = None
    ) -> None:
        """Takes draws ``(S, R, d)`` of rows, or mean and variance of what is not transformed, with weights."""
        weights = torch.ones_like(z[..., 0]) if weights is None else weights
        some.add(self.counts, weights.sum(0))
        for site in self.structure.inner:
            value = site.place(z)[0].movedim(1 + site.axis, 1)
            square = value.square()
            if known is not None and site.transform == IDENTITY:
                mean, variance = (part[..., site.columns].reshape(value.shape) for part in known)
                value, square = mean, variance + mean.square()
            for total, part in zip(self.sums[site.name], (value, square), strict=True):
                some.add(total, (weights[(..., *[None] * (part.dim() - 2))] * part).sum(0))

    def read(self) -> Moments:
        """Mean and sd by site."""
        found = {}
        for name, (first, second) in self.sums.items():
            count = self.counts.view(-1, *[1] * (first.dim() - 1))
            mean = first / count
            found[name] = mean, (second / count - mean.square()).clamp_min(0).sqrt()
        return found


def _bent(rows: Conditional) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(R, d)`` of bent standard normals, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    mean, square = 0.0, 0.0
    for node, weight in zip(nodes, weights / math.sqrt(2 * math.pi), strict=True):
        value, _ = rows.bend(torch.full_like(rows.bends[0], node), inverse=False)
        mean, square = mean + weight * value, square + weight * value.square()
    return mean, square - mean.square()


def _known(rows: Conditional, middle: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(S, R, d)`` of rows' latents given globals, unconstrained."""
    eye = torch.eye(rows.mean.shape[-1]).to(rows.mean)
    columns = [rows.root.solve_t(one.expand(rows.mean.shape)) for one in eye]
    across = (column.square() * variance[..., k : k + 1] for k, column in enumerate(columns))
    return rows.mean + rows.root.solve_t(middle.expand(rows.mean.shape)), sum(across)
