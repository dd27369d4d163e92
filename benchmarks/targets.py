"""Densities with known answers as Pyro models: funnel, banana, the four of Rezende and Mohamed, and double wells."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

Answers = Callable[[dict[str, Tensor], Tensor], float]


@dataclass(frozen=True)
class Target:
    """A model, its log evidence, and the error of weighted draws in a number that is known."""

    name: str
    model: Callable[[], None]
    log_z: float
    error: Answers | None = None


def funnel() -> None:
    """Neal's, in ten dimensions."""
    x0 = pyro.sample("x0", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (x0 / 2).exp()).to_event(1))


def banana() -> None:
    x0 = pyro.sample("x0", dist.Normal(0.0, 10.0))
    pyro.sample("x", dist.Normal(0.03 * (x0**2 - 100), 1.0))


def wells(copies: int) -> None:
    """Pairs of a coordinate with two wells and one without: ``2 ** copies`` modes."""
    with pyro.plate("copy", copies):
        d = pyro.sample("d", dist.ImproperUniform(constraints.real, (), ()))
        v = pyro.sample("v", dist.ImproperUniform(constraints.real, (), ()))
        pyro.factor("energy", d / 2 + 6 * d**2 - d**4 - v**2 / 2)


def energy(kind: str, z: Tensor) -> Tensor:
    """U1 to U4 of *Variational Inference with Normalizing Flows*, 2015, https://arxiv.org/abs/1505.05770, table 1."""
    x, y = z[..., 0], z[..., 1]

    def bumps(*at: tuple[Tensor, float]) -> Tensor:
        return -torch.logsumexp(torch.stack([-0.5 * (off / width) ** 2 for off, width in at]), 0)

    if kind == "U1":
        return 0.5 * ((z.norm(dim=-1) - 2) / 0.4) ** 2 + bumps((x - 2, 0.6), (x + 2, 0.6))
    off = y - (2 * math.pi * x / 4).sin()
    if kind == "U2":
        return bumps((off, 0.4))
    if kind == "U3":
        return bumps((off, 0.35), (off + 3 * (-0.5 * ((x - 1) / 0.6) ** 2).exp(), 0.35))
    return bumps((off, 0.4), (off + 3 * ((x - 1) / 0.3).sigmoid(), 0.35))


def planar(kind: str) -> None:
    """U1 on the plane, the others, which have no end, on a square."""
    support = constraints.real if kind == "U1" else constraints.interval(-4.0, 4.0)
    z = pyro.sample("z", dist.ImproperUniform(constraints.independent(support, 1), (), (2,)))
    pyro.factor("energy", -energy(kind, z))


def moments(mean: dict[str, float], sd: dict[str, float]) -> Answers:
    """The largest error of a mean, in standard deviations."""

    def error(draws: dict[str, Tensor], weights: Tensor) -> float:
        return max(
            float(((weights @ draws[n].double().reshape(len(weights), -1) - mean[n]).abs() / sd[n]).max()) for n in mean
        )

    return error


def right_well(draws: dict[str, Tensor], weights: Tensor) -> float:
    """The largest error of the mass of a right well."""
    d = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    density = (d / 2 + 6 * d**2 - d**4).exp()
    exact = density[d > 0].sum() / density.sum()
    return float((weights @ (draws["d"] > 0).double() - exact).abs().max())


FUNNEL = moments({"x0": 0.0, "x": 0.0}, {"x0": 3.0, "x": math.exp(2.25)})
BANANA = moments({"x0": 0.0, "x": 0.0}, {"x0": 10.0, "x": math.sqrt(1 + 0.03**2 * 2e4)})
TARGETS = {
    t.name: t
    for t in (
        Target("funnel", funnel, 0.0, FUNNEL),
        Target("banana", banana, 0.0, BANANA),
        Target("U1", partial(planar, "U1"), 1.877502),
        Target("U2", partial(planar, "U2"), 2.082089),
        Target("U3", partial(planar, "U3"), 2.641705),
        Target("U4", partial(planar, "U4"), 2.684568),
        Target("double well", partial(wells, 1), 10.293480, right_well),
        Target("many well", partial(wells, 16), 164.695675, right_well),
    )
}
