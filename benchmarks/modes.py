"""Posteriors with several modes, and some with one, by ``fit`` as it is called by default, over many seeds.

Each case says to which of its modes a draw belongs, and their true masses. A fit is right if all masses are within
0.03, or if it says "do not trust". Of a posterior with one mode it may not say that there are others.

    python benchmarks/modes.py [CASE ...] --seeds 20
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import pyro
import pyro.distributions as dist
import torch
from timing import table
from torch import Tensor

import pyroflows as pf

CLOSE = 0.03
COLUMNS = ("case", "seeds", "modes", "largest error of a mass", "good", "usable", "do not trust", "right", "seconds")
Draws = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model with its data, the mode of each draw as a number, and the masses of the modes; one mode needs neither."""

    model: Callable[..., None]
    args: tuple = ()
    mode: Callable[[Draws], Tensor] | None = None
    masses: tuple[float, ...] = (1.0,)


def mixture(y: Tensor, count: int, learnt: bool) -> None:
    """Components without an order, whose labels can be exchanged; with weights and scales or only with means."""
    weights, scales = torch.ones(count) / count, torch.ones(count)
    if learnt:
        weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(count)))
        scales = pyro.sample("scales", dist.HalfNormal(2.0).expand([count]).to_event(1))
    means = pyro.sample("means", dist.Normal(0.0, 5.0).expand([count]).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, scales)), obs=y)


def bumps(at: Tensor, scales: Tensor, masses: Tensor) -> None:
    """Gaussians at ``(K, D)`` with scales ``(K,)``."""
    z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), at.shape[1:]))
    parts = dist.Normal(at, scales[:, None]).log_prob(z).sum(-1) + masses.log()
    pyro.factor("bumps", parts.logsumexp(-1))


def factors(y: Tensor) -> None:
    """Loadings that are known up to a common sign."""
    loadings = pyro.sample("loadings", dist.Normal(0.0, 2.0).expand([y.shape[1]]).to_event(1))
    with pyro.plate("row", len(y)):
        cov = loadings[:, None] * loadings + 0.25 * torch.eye(len(loadings))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(loadings)), cov), obs=y)


def groups(y: Tensor, centred: bool) -> None:
    """Eight schools."""
    mean, scale = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, scale) if centred else dist.Normal(0.0, 1.0))
        spread = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        pyro.sample("y", dist.Normal(effect if centred else mean + scale * effect, spread), obs=y)


def funnel() -> None:
    scale = pyro.sample("scale", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(5), (scale / 2).exp()).to_event(1))


def logistic(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 2.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


def order(draws: Draws) -> Tensor:
    """Which permutation sorts the means."""
    found = draws["means"].argsort(-1)
    known = torch.tensor([*permutations(range(found.shape[1]))])
    return (found[:, None] == known).all(-1).long().argmax(-1)


def nearest(at: Tensor) -> Callable[[Draws], Tensor]:
    """Which of some places is nearest."""
    return lambda draws: torch.cdist(draws["z"], at.to(draws["z"])).argmin(-1)


def apart(size: int, scales: tuple[float, ...], masses: tuple[float, ...]) -> Case:
    """As many bumps as masses, far from each other, in so many dimensions."""
    at = torch.randn(len(masses), size, generator=torch.Generator().manual_seed(7))
    at = 6.0 * at / at.norm(dim=-1, keepdim=True) + 3.0 * torch.arange(len(masses))[:, None] / size**0.5
    return Case(bumps, (at, torch.tensor(scales), torch.tensor(masses)), nearest(at), masses)


def cases() -> dict[str, Case]:
    """By name."""
    noise = torch.Generator().manual_seed(5)
    two = torch.cat([torch.randn(50, generator=noise) - 2.0, torch.randn(50, generator=noise) + 2.0])
    uneven = torch.cat([torch.randn(70, generator=noise) / 2 - 2.0, torch.randn(30, generator=noise) + 2.0])
    three = torch.cat([torch.randn(30, generator=noise) + at for at in (-5.0, 0.0, 5.0)])
    rows = torch.randn(100, 1, generator=noise) * torch.tensor([1.0, -1.0, 2.0, 0.5]) + torch.randn(100, 4) / 2
    square = torch.cartesian_prod(*[torch.tensor([-3.0, 3.0])] * 2)
    x = torch.randn(200, 4, generator=noise)
    y = torch.bernoulli((x.sum(-1) - 0.5).sigmoid(), generator=noise)
    schools = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    grid = torch.tensor([0.4, 0.1, 0.4, 0.1])
    return {
        "two labels": Case(mixture, (two, 2, False), order, (0.5, 0.5)),
        "two labels, all learnt": Case(mixture, (uneven, 2, True), order, (0.5, 0.5)),
        "three labels": Case(mixture, (three, 3, False), order, (1 / 6,) * 6),
        "sign of loadings": Case(factors, (rows,), lambda draws: (draws["loadings"][:, 0] > 0).long(), (0.5, 0.5)),
        "0.8 and 0.2, D = 1": apart(1, (1.0, 1.0), (0.8, 0.2)),
        "0.8 and 0.2, D = 5": apart(5, (1.0, 0.3), (0.8, 0.2)),
        "three, D = 10": apart(10, (1.0, 0.5, 0.7), (0.5, 0.3, 0.2)),
        "two, D = 20": apart(20, (1.0, 0.8), (0.6, 0.4)),
        "two by two": Case(bumps, (square, torch.ones(4), grid), nearest(square), tuple(grid.tolist())),
        "eight schools": Case(groups, (schools, True)),
        "eight schools, not centred": Case(groups, (schools, False)),
        "funnel": Case(funnel),
        "logistic regression": Case(logistic, (x, y)),
    }


def run(case: Case, seed: int, steps: int) -> tuple[str, float, bool, float]:
    """Grade, largest error of a mass, whether all is right, and seconds."""
    pyro.set_rng_seed(seed)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = pf.fit(case.model, *case.args, steps=steps, progress=False)
    seconds, grade, error = time.perf_counter() - began, posterior.diagnostics.grade, 0.0
    if case.mode is None:
        return grade, error, not posterior.diagnostics.missed and posterior.guide.base is None, seconds
    found = torch.bincount(case.mode(posterior.sample(20_000, seed=seed)), minlength=len(case.masses)) / 20_000
    error = (found - torch.tensor(case.masses)).abs().max().item()
    return grade, error, error <= CLOSE or grade == "do not trust", seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = cases()
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(known))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.cases or known:
        found = []
        for seed in range(args.seeds):
            found.append(run(known[name], seed, args.steps))
            print(name, seed, *found[-1], sep=" | ", flush=True)
        grades, errors, right, seconds = zip(*found, strict=True)
        counts = [grades.count(grade) for grade in ("good", "usable with weights", "do not trust")]
        cells = len(known[name].masses), f"{max(errors):.3f}", *counts, f"{sum(right)} of {len(right)}"
        rows.append((name, args.seeds, *cells, f"{min(seconds):.0f} to {max(seconds):.0f}"))
    print("\n" + table(COLUMNS, rows))


if __name__ == "__main__":
    main()
