"""Guides in plain loops of Pyro's SVI, with no safeguards: the ELBO reached, or the step at which the loss was NaN.

Optimizers and particles are those that users take. Every cell has the seeds in order, then the milliseconds of a step.

    python benchmarks/plain_svi.py [--steps 1500] [--seeds 3]
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from elbo import SD, schools
from elbo import Y as EFFECTS
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal
from timing import table

from pyroflows import AutoFlow, flows

GROUPS, ROWS = 30, 150
GENERATOR = torch.Generator().manual_seed(3)
GROUP, X = torch.arange(ROWS) % GROUPS, torch.randn(ROWS, generator=GENERATOR)
TRUTH = torch.randn(2, GROUPS, generator=GENERATOR) * torch.tensor([[0.7], [0.3]]) + torch.tensor([[1.0], [-0.5]])
Y = TRUTH[0, GROUP] + TRUTH[1, GROUP] * X + 0.5 * torch.randn(ROWS, generator=GENERATOR)


def varying_slopes() -> None:
    """A line for each of 30 groups: 65 latents, centred."""
    means = [pyro.sample(f"mean_{name}", dist.Normal(0.0, 3.0)) for name in ("height", "slope")]
    sds = [pyro.sample(f"sd_{name}", dist.HalfNormal(2.0)) for name in ("height", "slope", "noise")]
    with pyro.plate("group", GROUPS):
        height = pyro.sample("height", dist.Normal(means[0], sds[0]))
        slope = pyro.sample("slope", dist.Normal(means[1], sds[1]))
    with pyro.plate("row", ROWS):
        pyro.sample("y", dist.Normal(height[..., GROUP] + slope[..., GROUP] * X, sds[2]), obs=Y)


def degrees_of_freedom() -> None:
    """A line with errors of Student's t: a latent for each kind of support."""
    df, scale = pyro.sample("df", dist.Gamma(1.0, 1.0)), pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    height, slope = (pyro.sample(name, dist.Normal(0.0, 3.0)) for name in ("height", "slope"))
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    with pyro.plate("row", 60):
        pyro.sample("y", dist.StudentT(2 + df, height + slope * share * X[:60], scale), obs=Y[:60])


MODELS = {
    "eight schools": partial(schools, EFFECTS, SD),
    "varying slopes": varying_slopes,
    "Student's t": degrees_of_freedom,
}
LOOPS = {
    "ClippedAdam 5e-3, 8 particles": (pyro.optim.ClippedAdam, 5e-3, 8),
    "Adam 1e-2, 1 particle": (pyro.optim.Adam, 1e-2, 1),
    "Adam 3e-3, 16 particles": (pyro.optim.Adam, 3e-3, 16),
}
GUIDES = {
    "AutoFlow (iaf)": AutoFlow,
    "AutoFlow, with_tails": lambda model: AutoFlow(model, flows.with_tails),
    "AutoFlow, nsf": lambda model: AutoFlow(model, flows.nsf),
    "AutoIAFNormal": AutoIAFNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
}


def elbo(particles: int) -> Trace_ELBO:
    """Pyro's, with its particles in one batch."""
    batch = {"vectorize_particles": True, "max_plate_nesting": 1} if particles > 1 else {}
    return Trace_ELBO(num_particles=particles, **batch)


def cell(model: Callable, make: Callable, loop: tuple, args: argparse.Namespace) -> str:
    """The ends of all seeds, and the time of a step."""
    kind, rate, particles = loop
    ends, spent, made = [], 0.0, 0
    for seed in range(args.seeds):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = make(model)
        svi, start, loss = SVI(model, guide, kind({"lr": rate}), elbo(particles)), time.process_time(), 0.0
        for step in range(args.steps):
            loss = svi.step()
            if not math.isfinite(loss):
                ends.append(f"NaN at {step}")
                break
        spent, made = spent + time.process_time() - start, made + step + 1
        if math.isfinite(loss):
            with torch.no_grad():
                ends.append(f"{-elbo(args.draws).loss(model, guide):.2f}")
    return f"{', '.join(ends)} ({1000 * spent / made:.1f})"


def main() -> None:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=4000, help="for the ELBO at the end")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)  # a value that is not finite shall not raise
    for name, model in MODELS.items():
        lines = [[guide, *(cell(model, make, loop, args) for loop in LOOPS.values())] for guide, make in GUIDES.items()]
        print(f"{name}:\n\n{table(['guide', *LOOPS], lines)}\n", flush=True)


if __name__ == "__main__":
    main()
