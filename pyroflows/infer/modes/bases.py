"""Bases with a component at each of several modes, or along each of several directions, and their masses."""

import torch
from torch import Tensor

from ...distributions import ComponentBase, FlowDistribution, MixtureBase, ProductBase
from ..starts.gaussian import Gaussian, LogDensity, values

# Components on an axis, draws that compare bases, and steps of the fit to a scan.
ON_AXIS, DRAWS, ROUNDS = 8, 4096, 100
# Directions count as separate whose cosine, where the first mode is round, is below this.
ASIDE = 0.2
# A scan goes so many standard deviations beyond the outermost modes, in steps of so many, and has so many points.
BEYOND, STEP, POINTS = 8.0, 0.2, 2000

Start = tuple[Gaussian, ComponentBase]


@torch.no_grad()
def base_at(log_density: LogDensity, modes: list[tuple[float, Gaussian]], most: int) -> Start:
    """The base for several modes, and the Gaussian that whitens its coordinates: of two kinds the better by ELBO.

    A mixture with a component at each mode, or a product of mixtures, which has all combinations of modes that differ
    along separate directions.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``.
        modes: ELBOs and Gaussians, as :func:`~pyroflows.infer.find_modes` returns them.
        most: how many components the mixture may have.
    """
    starts = [mixture_at(modes[:most]), product_at(log_density, modes)]
    return max(starts, key=lambda start: _elbo(log_density, *start))


def _elbo(log_density: LogDensity, overall: Gaussian, base: ComponentBase) -> float:
    """The ELBO of a base, where it has its place, up to a constant."""
    x = base.rsample((DRAWS,))
    level = values(log_density, overall.loc + x @ overall.scale_tril.mT) - base.log_prob(x)
    return (level.mean() + overall.scale_tril.diagonal().log().sum()).nan_to_num(-torch.inf).item()


def mixture_at(modes: list[tuple[float, Gaussian]]) -> tuple[Gaussian, MixtureBase]:
    """The Gaussian with the moments of a mixture, and the mixture in the coordinates that this Gaussian whitens.

    Args:
        modes: log masses and Gaussians, as :func:`find_modes` returns them.
    """
    logits = torch.stack([g.loc.new_tensor(level) for level, g in modes]).log_softmax(0)
    locs, roots = torch.stack([g.loc for _, g in modes]), torch.stack([g.scale_tril for _, g in modes])
    masses = logits.exp()[:, None]
    center = (masses * locs).sum(0)
    off = locs - center
    covariance = (masses[..., None] * (roots @ roots.mT + off[:, :, None] * off[:, None])).sum(0)
    overall = Gaussian(center, torch.linalg.cholesky(covariance))
    to_base = torch.linalg.inv(overall.scale_tril)
    return overall, MixtureBase(logits, off @ to_base.mT, to_base @ roots)


def product_at(log_density: LogDensity, modes: list[tuple[float, Gaussian]]) -> Start:
    """The same for a product of mixtures along the directions in which other modes lie, seen from the first.

    Each direction is scanned through the first mode, and a mixture of eight Gaussians fitted to the log density
    along it. In all other directions the product is the Gaussian of the first mode.

    Args:
        log_density: maps ``(B, D)`` to ``(B,)``.
        modes: at least two, as :func:`~pyroflows.infer.find_modes` returns them.
    """
    (_, top), *others = modes
    offsets = torch.stack([g.loc for _, g in others]) - top.loc
    offsets = torch.linalg.solve_triangular(top.scale_tril, offsets.mT, upper=False).mT
    axes = _axes(offsets)
    count, size = len(axes), len(top.loc)
    full = torch.linalg.qr(axes.mT, mode="complete").Q
    full[:, :count] *= (full[:, :count] * axes.mT).sum(0).sign()
    reach = (offsets @ full[:, :count]).abs().amax(0) + BEYOND
    logits, loc, scale = (t.expand(size, ON_AXIS).clone() for t in top.loc.new_tensor([[0.0], [0.0], [1.0]]))
    for row in range(count):
        at = torch.linspace(-1, 1, min(POINTS, int(2 * reach[row] / STEP))).to(reach) * reach[row]
        heights = values(log_density, top.loc + at[:, None] * (top.scale_tril @ full[:, row]))
        logits[row], loc[row], scale[row] = _fitted(at, heights.softmax(0))
    masses = logits.softmax(-1)
    center = (masses * loc).sum(-1)
    spread = (masses * (scale**2 + (loc - center[:, None]) ** 2)).sum(-1).sqrt()
    root = top.scale_tril @ full * spread
    overall = Gaussian.from_root(top.loc + top.scale_tril @ (full @ center), root)
    axes = torch.linalg.solve_triangular(overall.scale_tril, root, upper=False)
    return overall, ProductBase(logits, (loc - center[:, None]) / spread[:, None], scale / spread[:, None], axes)


def _axes(offsets: Tensor) -> Tensor:
    """Unit vectors to the nearest other modes that lie in separate directions: ``(M, D)`` of offsets ``(K, D)``."""
    axes: list[Tensor] = []
    for offset in offsets[offsets.norm(dim=-1).argsort()]:
        unit = offset / offset.norm()
        if all((unit @ axis).abs() < ASIDE for axis in axes):
            axes.append(unit)
    return torch.stack(axes[: offsets.shape[1]])


def _fitted(at: Tensor, masses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and scales ``(K,)`` of a mixture with these masses at these points, both of shape ``(N,)``."""
    step = at[1] - at[0]
    # Roots of the masses, so that small modes get a component, too.
    quantiles = ((torch.arange(ON_AXIS) + 0.5) / ON_AXIS).to(at)
    rank = torch.searchsorted((masses.sqrt() / masses.sqrt().sum()).cumsum(0), quantiles).clamp_max(len(at) - 1)
    loc, scale, logits = at[rank], torch.ones_like(quantiles), torch.zeros_like(quantiles)
    for _ in range(ROUNDS):
        parts = logits - scale.log() - ((at[:, None] - loc) / scale) ** 2 / 2
        shares = masses[:, None] * parts.softmax(-1)
        total = shares.sum(0).clamp_min(1e-12)
        loc = (shares * at[:, None]).sum(0) / total
        scale = ((shares * (at[:, None] - loc) ** 2).sum(0) / total).sqrt().clamp_min(step)
        logits = total.log()
    return logits, loc, scale


@torch.no_grad()
def balance(posterior: FlowDistribution, log_density: LogDensity, num: int = 1024) -> None:
    """Moves the masses of a flow's mixture halfway to what importance weights ask for.

    The new mass of a component, on each axis of a product, is its share of the weights of all draws. Repeated, this
    climbs to the masses that minimise the forward KL divergence, which has no trap in which a mode is lost.

    Args:
        posterior: a flow over a :class:`~pyroflows.distributions.ComponentBase`, whose ``logits`` are changed in place.
        log_density: maps ``(B, D)`` to ``(B,)``.
        num: how many draws.

    References:
        Adaptive importance sampling in general mixture classes. Cappé, Douc, Guillin, Marin, Robert, 2008.
        https://arxiv.org/abs/0710.4242
    """
    base = posterior.base
    chosen, planned = base.strata(num)
    x = base.draw(chosen)
    z, ladj = posterior.transform.call_and_ladj(x)
    weights = (values(log_density, z) - base.log_prob(x) + ladj + planned).softmax(0)
    asked = torch.tensordot(weights.to(x), base.shares(x), 1)
    if asked.isfinite().all():
        # No component is given up for good while the flow still learns.
        base.logits.copy_((0.5 * base.logits.softmax(-1) + 0.5 * asked).clamp_min(1e-4).log())
