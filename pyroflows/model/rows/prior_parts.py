"""The Gaussian part of the rows' prior: read off distributions that are known, else off the density's curvature."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.distributions import Distribution

from ..sites import innermost
from .row_runs import RowRuns
from .row_site import RowSite

# Gives a function of globals ``(Dg,)``, rows ``(R, d)`` and which these are at many of them.
Many = Callable[[Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, ...]], Tensor, Tensor, Tensor | None], Any]
# Precision times mean ``(S, R, d)`` and precision ``(S, R, d, d)``.
Parts = tuple[Tensor, Tensor]
# Of which unconstrained numbers are Gaussian, with these as loc and scale.
FAMILIES = (dist.Normal, dist.LogNormal)
# Parts that differ by less, relative to one, are the same but for rounding.
CLOSE = 1e-4


def known(runs: RowRuns, many: Many, names: set[str], index: Tensor | None) -> set[str]:
    """Sites whose distribution says what their curvature is: not if they are scaled, masked or moved by others."""
    zero = runs.structure.start.new_zeros
    g = torch.stack([runs.structure.outer.start, runs.structure.outer.start + 0.3])
    found = set()
    for name in sorted(names):
        trace, *_ = runs.trace(g[0], runs.structure.start, index)
        if _of(trace.nodes[name]["fn"], _site(runs, name)) is None:
            continue
        z = zero(len(g), *runs.structure.start.shape)
        told, seen = (by(runs, many, {name}, g, z, index) for by in (by_formula, by_curvature))
        if all(torch.allclose(a, b, rtol=CLOSE, atol=CLOSE) for a, b in zip(told, seen, strict=True)):
            found.add(name)
    return found


def by_formula(runs: RowRuns, many: Many, names: set[str], g: Tensor, zero: Tensor, index: Tensor | None) -> Parts:
    """The parts of sites that are known, at globals ``(S, Dg)``, with zeros ``(S, R, d)``."""

    def parts(g: Tensor, z: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        nodes = runs.trace(g, z, index)[0].nodes
        pull, precision = z, torch.zeros((*z.shape, z.shape[-1]), dtype=z.dtype, device=z.device)
        for site in runs.structure.inner:
            if site.name in names:
                own, bend = _of(nodes[site.name]["fn"], site)
                rest = z.shape[-1] - site.start - site.size
                pull = pull + torch.nn.functional.pad(own, (site.start, rest))
                precision = precision + torch.nn.functional.pad(bend, (site.start, rest, site.start, rest))
        return pull, precision

    pull, precision = many(parts, g, zero, index)
    return pull, precision


def by_curvature(runs: RowRuns, many: Many, names: set[str], g: Tensor, zero: Tensor, index: Tensor | None) -> Parts:
    """Those of sites whose density is quadratic, whatever it is called."""

    def prior(g: Tensor, z: Tensor, index: Tensor | None) -> tuple[Tensor]:
        return (sum(runs.by_site(g, z, index, names)[1].values(), z[:, 0] * 0),)

    graph = torch.is_grad_enabled()
    if is_batchedtensor(g):  # autograd cannot be called inside of vmap, but functorch, which takes long to import
        slope, pull = torch.func.vjp(torch.func.grad(lambda z: many(prior, g, z, index)[0].sum()), zero)
        bends = [pull(one.expand(zero.shape))[0] for one in torch.eye(zero.shape[-1]).to(g)]
    else:
        with torch.enable_grad():
            zero = zero.requires_grad_()
            (slope,) = torch.autograd.grad(many(prior, g, zero, index)[0].sum(), zero, create_graph=True)
            kept = {"create_graph": graph, "retain_graph": True, "materialize_grads": True}
            columns = slope.unbind(-1) if slope.requires_grad else ()
            bends = [torch.autograd.grad(column.sum(), zero, **kept)[0] for column in columns]
    bend = torch.stack(bends or [torch.zeros_like(slope)] * slope.shape[-1], -1)
    return (slope, -bend) if graph else (slope.detach(), -bend.detach())


def _site(runs: RowRuns, name: str) -> RowSite:
    return next(site for site in runs.structure.inner if site.name == name)


def _of(fn: Distribution, site: RowSite) -> Parts | None:
    """Precision times mean ``(R, size)`` and precision ``(R, size, size)``; None where no formula is known."""
    shape, fn = fn.batch_shape + fn.event_shape, innermost(fn)
    if isinstance(fn, FAMILIES):
        loc, weight = (site.flat(value.expand(shape)) for value in (fn.loc, fn.scale.pow(-2)))
        return loc * weight, torch.diag_embed(weight)
    if isinstance(fn, dist.MultivariateNormal) and site.inner == shape[-1:]:  # rows, then the event, and nothing else
        precision = fn.precision_matrix.expand(shape + shape[-1:])
        return (precision @ fn.loc.expand(shape)[..., None])[..., 0], precision
    return None
