"""What the data of each row say of its latents, as a Gaussian, and how that moves with the globals."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...model.rows import RowJoint
from .marginal import modes
from .quadrature import Rule, row_moments
from .rows import curved
from .start import Start

# Curvatures of a row's data count as at least this share of its prior precision, or of the largest of them.
FLATTEST = 1e-3
# A site moves at most so far, in its units, as a global moves by a standard deviation.
STEEPEST = 1.0
# Newton steps that follow the rows' modes along a change of the globals.
FOLLOW = 4
# Slopes for each row and each global are kept up to so many numbers; beyond, their mean is.
SLOPES = 50_000_000


class Found(NamedTuple):
    """Gaussian sites of all rows at some globals: precision times mean ``(R, d)``, and precision ``(R, d, d)``."""

    pull: Tensor
    precision: Tensor


@torch.no_grad()
def sites_at(joint: RowJoint, g: Tensor, z: Tensor) -> Found:
    """What the data of the rows say, expanded around latents ``(R, d)`` at globals ``(Dg,)``."""
    pull, precision = torch.zeros_like(z), z.new_zeros((*z.shape, z.shape[-1]))
    for some in joint.passes:

        def rest(z: Tensor, index: Tensor | None = some.index) -> Tensor:
            return joint(g[None], z[None], index).rest[0]

        at = some.of(z)
        found = curved(rest, at)
        by_prior = joint.prior_parts(g[None], some.index)[1][0]
        own = _positive(-found.bend, by_prior)
        precision = some.put(precision, own)
        pull = some.put(pull, (own @ at[..., None])[..., 0] + found.slope)
    return Found(pull, precision)


def _positive(precision: Tensor, by_prior: Tensor) -> Tensor:
    """Precisions whose eigenvalues are at least a share of those of the prior, or of the largest where it has none."""
    floor = FLATTEST * by_prior.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    if precision.shape[-1] == 1:
        return precision.maximum(floor[..., None].clamp_min(torch.finfo(precision.dtype).tiny ** 0.5))
    values, vectors = torch.linalg.eigh((precision + precision.mT) / 2)
    floor = floor.maximum(FLATTEST * values.abs().amax(-1, keepdim=True)).clamp_min(1e-12)
    return (vectors * values.maximum(floor)[..., None, :]) @ vectors.mT


@torch.no_grad()
def matched_at(rule: Rule, joint: RowJoint, g: Tensor, z: Tensor) -> Found:
    """The sites that give rows their means and covariances at globals ``(Dg,)``, by a rule around their modes.

    Where the model has no values at some node, sites are those at the modes.
    """
    pull, precision = torch.zeros_like(z), z.new_zeros((*z.shape, z.shape[-1]))
    for some in joint.passes:
        mean, covariance = row_moments(rule, joint, g, some, some.of(z))
        if not covariance.isfinite().all():
            return sites_at(joint, g, z)
        prior_pull, by_prior = (part[0] for part in joint.prior_parts(g[None], some.index))
        own = _positive(torch.linalg.inv(covariance) - by_prior, by_prior)
        precision = some.put(precision, own)
        pull = some.put(pull, ((own + by_prior) @ mean[..., None])[..., 0] - prior_pull)
    return Found(pull, precision)


class Expanded(NamedTuple):
    """Sites as a function of the globals, to first order.

    Args:
        centre: ``F^-1`` times precision times mean, ``(R, d)``.
        root: lower triangular root ``F`` of the precision, ``(R, d, d)``.
        slopes: of centre, in units, and of the logs of sizes along the columns of ``F``, by globals in units of their
            standard deviations, ``(R, 2 d, Dg)``.
        unit: what moves a row by about a standard deviation, ``(R, d)``.
    """

    centre: Tensor
    root: Tensor
    slopes: Tensor
    unit: Tensor


@torch.no_grad()
def expanded(joint: RowJoint, start: Start) -> Expanded:
    """Sites at the start, and their slopes by differences: two searches for the rows' modes for each global."""
    g, around = start.outer.loc, start.outer.scale_tril
    at = _sites(joint, g, start.z, start.rule)
    root = torch.linalg.cholesky(at.precision)
    centre = _solve(root, at.pull)
    prior = torch.zeros_like(at.precision)
    for some in joint.passes:
        prior = some.put(prior, joint.prior_parts(g[None], some.index)[1][0])
    unit = (1 + torch.linalg.solve_triangular(root, prior, upper=False).diagonal(dim1=-2, dim2=-1).abs()).clamp_max(50)
    slopes = []
    for axis in around.mT:
        ends = [_end(joint, g + side * axis, start, root) for side in (0.5, -0.5)]
        slopes.append(torch.cat([(ends[0][0] - ends[1][0]) / unit, ends[0][1] - ends[1][1]], -1))
    found = torch.stack(slopes, -1).clamp(-STEEPEST, STEEPEST)
    if found.numel() > SLOPES:
        found = found.mean(0, keepdim=True).expand(found.shape)
    return Expanded(centre, root, found, unit)


def _sites(joint: RowJoint, g: Tensor, z: Tensor, rule: Rule | None) -> Found:
    return sites_at(joint, g, z) if rule is None else matched_at(rule, joint, g, z)


def _end(joint: RowJoint, g: Tensor, start: Start, root: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and log sizes of the sites at other globals, along the columns of the roots at the start."""
    at = _sites(joint, g, modes(joint, g, start.z, FOLLOW), start.rule)
    half = torch.linalg.solve_triangular(root, at.precision, upper=False)
    along = torch.linalg.solve_triangular(root, half.mT, upper=False)
    sizes = along.diagonal(dim1=-2, dim2=-1).clamp_min(FLATTEST).log()
    return _solve(root, at.pull) * (-sizes).exp(), sizes


def _solve(root: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(root, x[..., None], upper=False)[..., 0]
