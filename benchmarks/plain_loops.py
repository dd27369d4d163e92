"""AutoFlow in plain loops of SVI with one particle, beside Pyro's guides: how far from the answer a loop ends.

The error of a seed is the largest |mean - exact| / sd of any latent plus the largest |log(sd / exact sd)|, from 4,000
draws in unconstrained space; a cell is the mean over seeds. Exact answers are by quadrature, in closed form, or, for
the schools and the logistic regression, from weighted draws of a long `fit`.

    python benchmarks/plain_loops.py [--seeds 10] [--models all] [--rates 0.1,0.03,0.01,0.003] [--jobs 1]
        [--guides AutoFlow,AutoIAFNormal] [--pyro]
"""

import argparse
import math
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal
from timing import table
from torch import Tensor

import pyroflows as pf
from pyroflows import AutoFlow, CompiledTrace_ELBO, log_joint

STEPS = {0.1: 200, 0.03: 500, 0.01: 1000, 0.003: 2000}
GUIDES = {"AutoFlow": AutoFlow, "AutoIAFNormal": AutoIAFNormal, "AutoDiagonalNormal": AutoDiagonalNormal}
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]).double()
SD = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]).double()
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(50, 5, generator=GENERATOR).double()
X[:, 1] = X[:, 0] + 0.5 * X[:, 1]
LINE = X @ torch.tensor([1.0, -1.0, 2.0, 0.0, 0.5]).double()
NOISY = LINE + 0.5 * torch.randn(50, generator=GENERATOR).double()
ANSWERS = (torch.rand(50, generator=GENERATOR) < torch.sigmoid(LINE)).double()


def normals(size: int) -> None:
    """Each datum has a mean of its own."""
    with pyro.plate("row", size):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 0.1), obs=torch.full((size,), 4.0))


def one_normal() -> None:
    """Ten data and their mean."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 10):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.linspace(0.0, 2.0, 10))


def binomials() -> None:
    """Five rates of successes."""
    with pyro.plate("row", 5):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        pyro.sample("k", dist.Binomial(100, share), obs=torch.tensor([3.0, 20.0, 50.0, 70.0, 98.0]))


def counts() -> None:
    """Five rates of events."""
    with pyro.plate("row", 5):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("k", dist.Poisson(rate), obs=torch.tensor([0.0, 1.0, 3.0, 10.0, 20.0]))


def regression(logistic: bool) -> None:
    """Five coefficients, two of them of columns that go together."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(5), 3.0).to_event(1))
    mean = (X @ slopes.unsqueeze(-1)).squeeze(-1)
    with pyro.plate("row", 50):
        fn, obs = (dist.Bernoulli(logits=mean), ANSWERS) if logistic else (dist.Normal(mean, 0.5), NOISY)
        pyro.sample("y", fn, obs=obs)


def schools(centred: bool) -> None:
    """Eight schools, ten latents."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau) if centred else dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta if centred else mu + tau * theta, SD), obs=Y)


def own_schools() -> None:
    """Each school has all three: 24 latents in groups that do not meet."""
    with pyro.plate("school", 8):
        eta, mu = pyro.sample("eta", dist.Normal(0.0, 1.0)), pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(25.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, SD), obs=Y)


APART = {  # latents that are independent a posteriori
    "normal, 1": one_normal,
    "normal, 3": partial(normals, 3),
    "normal, 25": partial(normals, 25),
    "beta-binomial, 5": binomials,
    "gamma-Poisson, 5": counts,
}
TOGETHER = {
    "linear regression, 5": partial(regression, False),
    "logistic regression, 5": partial(regression, True),
    "schools, centred": partial(schools, True),
    "schools, non-centred": partial(schools, False),
    "schools, 24 latents": own_schools,
}
MODELS = APART | TOGETHER


def reference(name: str) -> tuple[Tensor, Tensor]:
    """Means and sds in unconstrained space."""
    density = log_joint(MODELS[name])
    if name in APART:
        grid = torch.linspace(-15.0, 15.0, 30001)
        points = torch.zeros(density.size, len(grid), density.size)
        points.diagonal(dim1=0, dim2=2).copy_(grid.unsqueeze(-1))
        with torch.no_grad():
            weights = torch.stack([density(rows) for rows in points]).softmax(-1)
        values = grid.expand_as(weights)
    else:
        posterior = pf.fit(MODELS[name], num_particles=64, progress=False)
        with torch.no_grad():
            z, log_q = posterior.guide.get_posterior().rsample_and_log_prob((100_000,))
            weights = (density(z.double()) - log_q).softmax(-1)
        values = z.mT
    mean = (weights * values).sum(-1)
    return mean, (weights * (values - mean.unsqueeze(-1)) ** 2).sum(-1).sqrt()


def cell(task: tuple) -> tuple[float, float]:
    """The error of a guide at the end of one loop, infinite where it is not a number, and its negative ELBO."""
    name, guide_name, rate, seed, compiled, (mean, sd) = task
    _quiet()
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = MODELS[name]
    guide = GUIDES[guide_name](model)
    elbo = CompiledTrace_ELBO(compile=False) if compiled else Trace_ELBO()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), elbo)
    for _ in range(STEPS[rate]):
        svi.step()
    with torch.no_grad():
        q = guide.get_posterior()
        z = q.sample((4000,))
        loss = Trace_ELBO(200).loss(model, guide)
    error = ((z.mean(0) - mean) / sd).abs().max() + (z.std(0) / sd).log().abs().max()
    return (error.item() if math.isfinite(error) else math.inf), loss


def _quiet() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    pyro.enable_validation(False)  # a value that is not finite shall not raise
    warnings.simplefilter("ignore")


def main() -> None:
    """Prints the table, and how many cells are no further from the answer than AutoIAFNormal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--models", default="all", help="numbers in the order of the table, for example 1,3")
    parser.add_argument("--rates", default=",".join(map(str, STEPS)))
    parser.add_argument("--guides", default=",".join(GUIDES))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--pyro", action="store_true", help="Trace_ELBO for all, in place of CompiledTrace_ELBO")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    _quiet()
    names = list(MODELS) if args.models == "all" else [list(MODELS)[int(n) - 1] for n in args.models.split(",")]
    guides = args.guides.split(",")
    rates = [float(rate) for rate in args.rates.split(",")]
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), initializer=_quiet) as pool:
        known = dict(zip(names, pool.map(reference, names), strict=True))
        tasks = [
            (name, guide, rate, seed, not args.pyro, known[name])
            for name in names
            for rate in rates
            for guide in guides
            for seed in range(args.seeds)
        ]
        done = {task[:4]: end for task, end in zip(tasks, pool.map(cell, tasks), strict=True)}
    rows, near, lost = [], 0, 0
    for name in names:
        for rate in rates:
            ends = {guide: [done[name, guide, rate, seed] for seed in range(args.seeds)] for guide in guides}
            errors = {guide: sum(error for error, _ in found) / len(found) for guide, found in ends.items()}
            losses = [f"{sum(loss for _, loss in found) / len(found):.2f}" for found in ends.values()]
            near += errors["AutoFlow"] <= errors.get("AutoIAFNormal", -math.inf)
            lost += sum(not math.isfinite(error) for error, _ in ends["AutoFlow"])
            rows.append([name, rate, *(f"{error:.2f}" for error in errors.values()), *losses])
    print(table(["model, latents", "rate", *guides, *(f"loss of {guide}" for guide in guides)], rows))
    print(f"\n{near} of {len(rows)} cells no further than AutoIAFNormal; NaN: {lost} of {len(rows) * args.seeds} loops")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
