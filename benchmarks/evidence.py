"""Whether the error of the log evidence is honest: of 100 fits at most 5 may be off by more than twice of it.

The evidences are known: of normal, binomial and count data under conjugate priors, of a linear regression, of a
hierarchy by quadrature, and of Student and funnel priors without data, which is 0. Each model is fitted for a few steps
and for more, with a flow and with a Gaussian alone, so that there are poor fits among them. Counted apart are those
that are called "do not trust".

With ``--weights`` there are no fits, but so many sets of simulated weights, each as many as a second look draws.

    python benchmarks/evidence.py [--fits 100] [--first 0] [--weights 1000]
"""

import argparse
import math
import warnings
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from timing import table
from torch import Tensor

import pyroflows
from pyroflows import flows
from pyroflows.posterior import Diagnostics
from pyroflows.posterior.refine.judge import MANY

Known = tuple[Callable[[], None], float]
RECIPES = {"gaussian": flows.full_rank, "flow": flows.with_tails}


def normal(rng: torch.Generator) -> Known:
    """The mean of ten normal data."""
    y = 1.0 + torch.randn(10, generator=rng)

    def model() -> None:
        pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 2.0)), 1.0).expand([10]).to_event(1), obs=y)

    return model, gaussian(y, 4.0 * torch.ones(10, 10) + torch.eye(10))


def regression(rng: torch.Generator) -> Known:
    """Five coefficients and twenty data."""
    columns, y = torch.randn(20, 5, generator=rng), torch.randn(20, generator=rng)

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(columns @ w, 0.5).to_event(1), obs=y)

    return model, gaussian(y, columns @ columns.mT + 0.25 * torch.eye(20))


def binomial(rng: torch.Generator) -> Known:
    """The share of ten, of which few succeed."""
    hits = float(torch.randint(0, 4, (), generator=rng))

    def model() -> None:
        share = pyro.sample("share", dist.Beta(1.0, 2.0))
        pyro.sample("hits", dist.Binomial(10, share), obs=torch.tensor(hits))

    return model, float(dist.BetaBinomial(1.0, 2.0, 10).log_prob(torch.tensor(hits)))


def counts(rng: torch.Generator) -> Known:
    """The rates of three counts."""
    y = torch.randint(0, 9, (3,), generator=rng).float()

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.full((3,), 1.5), 0.5).to_event(1))
        pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)

    return model, float(dist.GammaPoisson(torch.full((3,), 1.5), 0.5).log_prob(y).sum())


def hierarchy(rng: torch.Generator) -> Known:
    """Six groups; their scale by quadrature over its logarithm."""
    y = 1.5 * torch.randn(6, generator=rng)

    def model() -> None:
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("group", 6):
            pyro.sample("y", dist.Normal(pyro.sample("e", dist.Normal(0.0, tau)), 1.0), obs=y)

    grid = torch.linspace(-8.0, 8.0, 20_001).double()
    sd = (1 + (2 * grid).exp()).sqrt()[:, None]
    terms = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(0.0, sd).log_prob(y.double()).sum(-1)
    return model, float(terms.logsumexp(0) + math.log(16.0 / 20_000))


def students(rng: torch.Generator) -> Known:
    """Heavy tails in four dimensions, and no data."""

    def model() -> None:
        pyro.sample("x", dist.StudentT(5.0, torch.zeros(4), 1.0).to_event(1))

    return model, 0.0


def funnel(rng: torch.Generator) -> Known:
    """Neal's funnel, of three dimensions, in the coordinates that are hard."""

    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 1.5))
        pyro.sample("x", dist.Normal(torch.zeros(2), (v / 2).exp()).to_event(1))

    return model, 0.0


Draw = Callable[[np.random.Generator], np.ndarray]


def lognormal(sd: float) -> Draw:
    """Log weights that are normal, of mean one."""
    return lambda rng: sd * rng.normal(size=MANY) - sd**2 / 2


def from_normal(target: dist.Distribution, dims: int) -> Draw:
    """Log weights of so many independent draws of a standard normal for a target."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        x = torch.from_numpy(rng.normal(size=(MANY, dims)))
        return (target.log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)).sum(1).numpy()

    return draw


def funnel_weights(sd: float) -> Draw:
    """Log weights of a normal for a funnel of three dimensions, of whose scale this is the sd."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        v, x = sd * rng.normal(size=MANY), rng.normal(size=(MANY, 2))
        return (x**2 * (1 - np.exp(-v))[:, None] - v[:, None]).sum(1) / 2

    return draw


WEIGHTS = {
    **{f"lognormal, sd {sd}": lognormal(sd) for sd in (0.2, 0.5, 1.0, 1.5, 2.0)},
    "normal of 0.6 times the sd": from_normal(dist.Normal(0.0, 1 / 0.6), 1),
    "Student t5, 1-D": from_normal(dist.StudentT(5.0), 1),
    "Student t5, 4-D": from_normal(dist.StudentT(5.0), 4),
    "funnel, sd 0.5": funnel_weights(0.5),
    "funnel, sd 0.7": funnel_weights(0.7),
    "funnel, sd 1.5": funnel_weights(1.5),
}


def simulated(repeats: int) -> None:
    """Prints a line for each kind of weights: how often they are off by more than two errors, how large these are."""
    lines = []
    for name, draw in WEIGHTS.items():
        runs = [Diagnostics.of(draw(np.random.default_rng(seed)))[0] for seed in range(repeats)]
        kept = [run for run in runs if run.grade != "do not trust"]
        parts = []
        for those in (kept, runs):
            off = np.array([abs(run.log_evidence) > 2 * run.log_evidence_error for run in those])
            parts += [f"{off.mean():.1%} of {len(off)}" if len(off) else "none"]
        numbers = [f"{np.median([run.khat for run in runs]):.2f}"]
        numbers += [f"{np.median(np.abs([run.log_evidence for run in runs])):.4f}"]
        numbers += [f"{np.median([run.log_evidence_error for run in runs]):.4f}"]
        lines.append([name, *parts, *numbers])
    head = ["weights", "off, where usable", "off, of all", "k-hat", "median of what it is off by", "of the error"]
    print(table(head, lines))


MODELS = (normal, regression, binomial, counts, hierarchy, students, funnel)


def gaussian(y: Tensor, covariance: Tensor) -> float:
    """The log density of a normal vector of mean zero."""
    return float(dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance.double()).log_prob(y.double()))


def main() -> None:
    """Prints a line for each fit, and how many are off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--weights", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.weights:
        simulated(options.weights)
        return
    off = {}
    for i in range(options.first, options.first + options.fits):
        make, recipe, steps = MODELS[i % len(MODELS)], list(RECIPES)[i // 7 % 2], (20, 100, 300)[i // 14 % 3]
        model, known = make(torch.Generator().manual_seed(i))
        pyro.clear_param_store()
        pyro.set_rng_seed(i)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = {"start": None, "full_rank": None, "noncentered": False} if recipe == "gaussian" else {}
            posterior = pyroflows.fit(
                model, flow=RECIPES[recipe], steps=steps, num_particles=8, progress=False, compile=False, **plain
            )
        found = posterior.diagnostics
        error = found.log_evidence - known
        off.setdefault(found.grade, []).append(abs(error) > 2 * found.log_evidence_error)
        print(
            f"{i:4} {make.__name__:11}{recipe:9}{steps:4} {found.grade:20} k-hat {found.khat:5.2f} off by {error:+.5f} "
            f"+- {found.log_evidence_error:.5f}{'  <--' * off[found.grade][-1]}",
            flush=True,
        )
    every = np.concatenate(list(off.values()))
    print(f"off by more than two errors: {every.sum()} of {len(every)}")
    for grade, those in off.items():
        print(f"  {grade}: {sum(those)} of {len(those)}")


if __name__ == "__main__":
    main()
