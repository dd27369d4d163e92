"""``fit`` on minibatches of large data, against all the data: errors of means and sds, the verdict, seconds, noise.

The reference is the Gaussian at the mode of all the data by Newton's method, corrected by importance weights. Errors
are the largest over all scalars, of means in posterior sds and of sds as shares. Seconds are those of the processor.
"Noise" is that of one gradient by one latent, in posterior sds, of a batch as it is and with the control variates of a
fit.

    python benchmarks/large_data.py [--rows 100000] [--batch 500] [--coefficients 15] [--seeds 0 1 2] [--threads 1]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from timing import table
from torch import Tensor

import pyroflows
from pyroflows.infer import Anchored, Gaussian
from pyroflows.model import AllRows, LogJoint

# Draws of the reference, of which so many are scored at once.
DRAWS, SCORED = 2000, 50
LIKELIHOODS = {
    "logistic": lambda eta, sd: dist.Bernoulli(logits=eta),
    "Poisson": lambda eta, sd: dist.Poisson(eta.exp()),
    "normal, sd unknown": lambda eta, sd: dist.Normal(eta, sd),
}


def model(kind: str, x: Tensor, y: Tensor, size: int | None) -> None:
    """A regression with a learnt intercept, and a learnt sd where the likelihood has one."""
    slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(x.shape[1]), 2.0).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(x.new_zeros(()), 1.0)) if kind.startswith("normal") else None
    with pyro.plate("row", len(x), subsample_size=size) as rows:
        pyro.sample("y", LIKELIHOODS[kind](x[rows] @ slopes, sd), obs=y[rows])


def data(kind: str, rows: int, coefficients: int) -> tuple[Tensor, Tensor]:
    """Standard normal columns beside ones, and what the model draws from small slopes."""
    generator = torch.Generator().manual_seed(90210)
    x = torch.randn(rows, coefficients, generator=generator)
    x[:, 0] = 1.0
    slopes = torch.randn(coefficients, generator=generator) / coefficients**0.5
    with pyro.util.ignore_jit_warnings(), torch.random.fork_rng():
        torch.manual_seed(90211)
        return x, LIKELIHOODS[kind](x @ slopes, torch.tensor(0.7)).sample()


def reference(density: LogJoint) -> tuple[Gaussian, Tensor, Tensor]:
    """The Gaussian at the mode, and mean and sd of the posterior, in unconstrained space."""
    z = density.space.start.double()

    def total(z: Tensor) -> Tensor:
        return density(z[None])[0]

    for _ in range(50):
        hessian = torch.func.hessian(total)(z)
        curvature, axes = torch.linalg.eigh(hessian)
        step = axes @ (axes.mT @ torch.func.grad(total)(z) / curvature.abs())
        z = z + step / max(1.0, float(step.abs().max()))
        if step.abs().max() < 1e-9:
            break
    around = Gaussian(z, torch.linalg.cholesky(torch.linalg.inv(-hessian)))
    draws = around.sample(DRAWS)
    with torch.no_grad():
        weights = torch.cat([density(part) for part in draws.split(SCORED)]) - around.log_prob(draws)
    weights = weights.softmax(0)
    # Moments of the draws without weights are known: only what the weights change is estimated.
    mean = z + (weights - 1 / DRAWS) @ draws
    spread = (weights - 1 / DRAWS) @ (draws - z).square() - (mean - z).square()
    return around, mean, (around.scale_tril.square().sum(1) + spread).sqrt()


def noise(density: Callable[[Tensor], Tensor], around: Gaussian, batches: int = 100) -> float:
    """The sd over batches of a gradient in units of the posterior, root mean square over latents and places."""
    z = around.sample(8)
    found = []
    for _ in range(batches):
        z = z.detach().requires_grad_()
        found.append(torch.autograd.grad(density(z).sum(), z)[0] @ around.scale_tril)
    return torch.stack(found).var(0).mean().sqrt().item()


def rows_of(kind: str, options: argparse.Namespace) -> Iterator[list[str]]:
    """A line of the table for each seed."""
    x, y = data(kind, options.rows, options.coefficients)
    run = partial(model, kind)
    around, mean, sd = reference(LogJoint(run, (x.double(), y.double(), None), {}))
    part = LogJoint(run, (x.double(), y.double(), options.batch), {})
    noises = [noise(part.batch, around), noise(Anchored(AllRows(part.batch, part.plates), around), around)]
    for seed in options.seeds:
        pyro.set_rng_seed(seed)
        start = time.process_time()
        posterior = pyroflows.fit(run, x, y, options.batch, progress=False)
        seconds = time.process_time() - start
        z = posterior.vectors[0].double()
        errors = ((z.mean(0) - mean) / sd).abs().max().item(), (z.std(0) / sd - 1).abs().max().item()
        found = posterior.diagnostics
        judged = [found.grade, f"{found.log_weight_sd:.3f}", str(len(posterior.history.elbo)), f"{seconds:.0f}"]
        line = [kind, str(seed), *(f"{error:.3f}" for error in errors), *judged, *(f"{value:.3f}" for value in noises)]
        print(*line, file=sys.stderr, flush=True)  # the table comes at the end
        yield line


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--coefficients", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=[*LIKELIHOODS], choices=[*LIKELIHOODS])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = ["likelihood", "seed", "mean error / sd", "sd error", "grade", "sd(log w)", "steps", "seconds"]
    lines = [line for kind in options.kinds for line in rows_of(kind, options)]
    print(table([*head, "noise of a batch", "of a step"], lines))


if __name__ == "__main__":
    main()
