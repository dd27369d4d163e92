"""The mode of every row's latents given the globals, for all rows at once by Newton's method."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Most steps, halvings of a step, and the gain in nats from which a row is done.
STEPS, HALVINGS, GAIN = 60, 12, 1e-9
# Curvatures count as at least this share of the largest of their row.
FLATTEST = 1e-8
# Values that differ by less than this power of the distance between numbers, relative to their size, are the same but
# for rounding.
ROUNDING = 0.75

Rows = Callable[[Tensor], Tensor]


class Curved(NamedTuple):
    """A log density of rows at a point: values ``(R,)``, slopes ``(R, d)`` and curvatures ``(R, d, d)``."""

    value: Tensor
    slope: Tensor
    bend: Tensor


def curved(rows: Rows, z: Tensor, graph: bool = False) -> Curved:
    """Value, slope and curvature of each row; as rows are independent, ``d`` passes backward do for all.

    Args:
        rows: maps latents ``(R, d)`` to log densities ``(R,)``, each row by itself.
        z: where, ``(R, d)``.
        graph: make them differentiable by what else moves ``rows``, and by ``z`` where that has a graph.
    """
    with torch.enable_grad():
        at = z if z.requires_grad else z.detach().requires_grad_()
        value = rows(at)
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True, materialize_grads=True)
        if slope.requires_grad:
            bends = [
                torch.autograd.grad(column.sum(), at, create_graph=graph, retain_graph=True, materialize_grads=True)[0]
                for column in slope.unbind(-1)
            ]
            bend = torch.stack(bends, -1)
        else:
            bend = z.new_zeros((*z.shape, z.shape[-1]))
    found = Curved(value, slope, bend)
    return found if graph else Curved(*(part.detach() for part in found))


def newton(rows: Rows, z: Tensor, steps: int = STEPS) -> Tensor:
    """The mode of each row, uphill from ``z``; a row whose step does not lead up takes a shorter one.

    Example:
        >>> newton(lambda z: -(z - torch.tensor([[1.0], [2.0]])).square().sum(-1), torch.zeros(2, 1))
        tensor([[1.],
                [2.]])
    """
    z = z.detach()
    for _ in range(steps):
        value, slope, bend = curved(rows, z)
        step = uphill(slope, bend)
        gain, least = 0.5 * (step * slope).sum(-1), GAIN + _rounding(value)
        if not (gain > least).any():
            break
        z, found = _search(rows, z, value, step, gain > least)
        if ((found - value - gain).abs() <= least).all():
            break  # as of a parabola, whose mode is one step away
    return z


def negative(bend: Tensor) -> Tensor:
    """Minus curvatures ``(R, d, d)``, with sizes in place of those that point up, positive definite."""
    size, vectors = _sizes(bend)
    return (vectors * size[..., None, :]) @ vectors.mT


def _sizes(bend: Tensor) -> tuple[Tensor, Tensor]:
    """The sizes of curvatures ``(R, d)``, of which none is next to zero, along axes ``(R, d, d)``."""
    if bend.shape[-1] == 1:
        values, vectors = bend[..., 0], torch.ones_like(bend)
    else:
        values, vectors = torch.linalg.eigh((bend + bend.mT) / 2)
    size = values.abs()
    least = FLATTEST * size.amax(-1, keepdim=True)
    return size.maximum(least).clamp_min(torch.finfo(size.dtype).tiny ** 0.5), vectors


def uphill(slope: Tensor, bend: Tensor) -> Tensor:
    """Newton's step ``(R, d)``, with the sizes of curvatures in place of those that point up."""
    size, vectors = _sizes(bend)
    along = (vectors.mT @ slope[..., None])[..., 0] / size
    return (vectors @ along[..., None])[..., 0]


@torch.no_grad()
def _search(rows: Rows, z: Tensor, value: Tensor, step: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of rows that lead up, each cut until its own does, and the values there."""
    length = moving.to(z)
    for _ in range(HALVINGS):
        trial = z + length[:, None] * step
        found = rows(trial)
        short = moving & ~(found >= value - _rounding(value))
        if not short.any():
            return trial, found
        length = torch.where(short, 0.4 * length, length)
    return torch.where(short[:, None], z, trial), torch.where(short, value, found)


def _rounding(value: Tensor) -> Tensor:
    return torch.finfo(value.dtype).eps ** ROUNDING * (1 + value.abs())
