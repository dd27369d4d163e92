"""Are the twenty models right, and what does their log joint cost?

Where reference draws are known, Stein's identity must hold under them: the score has mean 0, and its product with the
coordinate has mean -1, for each unconstrained coordinate. Shown is the largest |mean - expected| in standard errors.
Where only moments are known, means over 100 short chains are compared with the known ones, again in standard errors.
The evidence is a bridge estimate between all these draws and a Gaussian: good to 0.01 nats where the posterior is close
to one, to some tenths for sv and lorenz.

    python benchmarks/check_models.py --data ../shared/data [--only garch hmm]
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import hmc
import torch
from models import POSTERIORS, Posterior, standard_error
from timing import interleaved, table
from torch import Tensor
from torch.distributions import MultivariateNormal

import pyroflows
from pyroflows.compile import capture
from pyroflows.model import LogJoint

# Standard errors that chance alone hardly reaches in some 700 comparisons, and nats of error of an evidence.
LIMIT, NATS = 4.5, 0.05


def density_of(posterior: Posterior, data: str | Path) -> LogJoint:
    """The log joint of a posterior, set up as ``fit`` does it: flat priors cannot be sampled."""
    model, args = posterior.load(data)
    return LogJoint(model, args, {}, pyroflows.AutoFlow(model).setup(*args).space)


def scored(density: LogJoint, z: Tensor, rows: int = 500) -> tuple[Tensor, Tensor]:
    """Log joints ``(n,)`` and scores ``(n, D)``."""
    values, scores = [], []
    for part in z.split(rows):
        part = part.detach().requires_grad_()
        value = density(part)
        scores += torch.autograd.grad(value.sum(), part)
        values.append(value.detach())
    return torch.cat(values), torch.cat(scores)


def stein(z: Tensor, scores: Tensor, batches: int = 100) -> tuple[float, float]:
    """How far the means of the score and of score times coordinate are from 0 and -1, in standard errors."""
    products = scores * (z - z.mean(0)) + 1
    first, second = (x.mean(0) / standard_error(x, batches) for x in (scores, products))
    return float(first.abs().max()), float(second.abs().max())


def bridge(density: LogJoint, z: Tensor, log_joint: Tensor) -> float:
    """The log evidence from posterior draws: half of them fit a Gaussian, the others are the bridge's one end.

    References:
        X.-L. Meng, W. H. Wong, "Simulating ratios of normalizing constants via a simple identity", 1996,
        http://www3.stat.sinica.edu.tw/statistica/oldpdf/A6n43.pdf (equation 4.1).
    """
    q = MultivariateNormal(z[::2].mean(0), z[::2].T.cov())
    with torch.no_grad():
        proposals = q.sample((4 * len(z),))
        here = log_joint[1::2] - q.log_prob(z[1::2])
        there = torch.cat([density(part) for part in proposals.split(1000)]) - q.log_prob(proposals)
    there, found = there[there.isfinite()], here.median()
    total, share = math.log(len(here) + len(there)), (math.log(len(here)), math.log(len(there)))
    for _ in range(1000):
        below = [torch.logaddexp(share[0] - total + x, share[1] - total + found) for x in (here, there)]
        top, bottom = (there - below[1]).logsumexp(0) - share[1], (-below[0]).logsumexp(0) - share[0]
        found = top - bottom
    return float(found)


def moments(posterior: Posterior, data: str, chains: Tensor, density: LogJoint) -> float:
    """How far the means over chains ``(chains, draws, D)`` are from the known ones, in standard errors."""
    draws = posterior.quantities(density.constrain(chains.flatten(0, 1)), *posterior.load(data)[1])
    misses = []
    for name, (mean, _, error) in posterior.reference(data).items():
        own_error = standard_error(draws[name], batches=len(chains))
        misses.append(float((draws[name].mean() - mean).abs() / (own_error.square() + error**2).sqrt()))
    return max(misses)


def cost(density: LogJoint, z: Tensor) -> tuple[float, float, int]:
    """Milliseconds of the log joint and its gradient at all rows, plain and as a replayed graph; the graph's nodes."""
    z = z.detach().requires_grad_()
    graph = capture(lambda: density(z).sum(), parameters=[z])
    calls: dict[str, Callable] = {"plain": lambda: torch.autograd.grad(density(z).sum(), z), "replayed": graph}
    seconds = interleaved(calls)
    return 1e3 * seconds["plain"], 1e3 * seconds["replayed"], len(graph.module.graph.nodes)


def row(name: str, data: str) -> list[object]:
    """One line of the table."""
    posterior = POSTERIORS[name]
    density, draws = density_of(posterior, data), posterior.reference_draws(data)
    if draws is None:
        chains = hmc.sample(density, density.unconstrain(posterior.known_means(data)))
        z = chains.flatten(0, 1)
        log_joint, scores = scored(density, z)
        misses = "", "", moments(posterior, data, chains, density)
    else:
        z = density.unconstrain(draws)
        log_joint, scores = scored(density, z)
        misses = *stein(z, scores), ""
    finite, worst = bool(log_joint.isfinite().all() and scores.isfinite().all()), max(m for m in misses if m != "")
    evidence, known = bridge(density, z, log_joint), posterior.log_evidence
    right = finite and worst < LIMIT and (known is None or abs(evidence - known) < NATS)
    found = [name, density.size, finite, *misses, f"{evidence:.3f}", str(known or ""), *cost(density, z[:64])]
    return [*found, "right" if right else "WRONG"]


def main() -> None:
    """Prints the table; fails where a model is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--only", nargs="+", default=list(POSTERIORS), choices=POSTERIORS, metavar="NAME")
    options = parser.parse_args()
    if not (Path(options.data) / "posteriordb").is_dir():
        print(f"nothing to check: no data in {options.data}")
        return
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    rows = [row(name, options.data) for name in options.only]
    headers = ["posterior", "D", "finite", "score", "score x z", "means", "log evidence", "known"]
    print(table([*headers, "ms plain", "ms replayed", "nodes", "verdict"], rows))
    if any(line[-1] != "right" for line in rows):
        raise SystemExit("some models are wrong")


if __name__ == "__main__":
    main()
