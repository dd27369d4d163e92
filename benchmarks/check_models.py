"""Are the twenty models right, and what does their log joint cost?

Where reference draws are known, Stein's identity must hold under them: the score has mean 0, and its product with the
coordinate has mean -1, for each unconstrained coordinate. Shown is the largest |mean - expected| in standard errors.
The evidence is then a bridge estimate between these draws and a Gaussian. Where only moments are known, a flow is
fitted, started at the known means, and its importance-weighted means are compared with them in standard errors.

    python benchmarks/check_models.py --data ../shared/data [--only garch hmm] [--steps 3000]
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from models import POSTERIORS, Posterior, standard_error
from pyro.infer.autoguide.initialization import init_to_value
from timing import interleaved, table
from torch import Tensor
from torch.distributions import MultivariateNormal

import pyroflows
from pyroflows.infer import LogJoint, capture

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


def fitted(posterior: Posterior, data: str, steps: int) -> tuple[float, float]:
    """The worst importance-weighted mean of a fit, in standard errors, and its log evidence."""
    model, args = posterior.load(data)
    start = init_to_value(values=posterior.known_means(data))
    result = pyroflows.fit(model, *args, init_loc_fn=start, init_scale=0.02, steps=steps, progress=False)
    draws, weights = posterior.quantities(result.draws, *args), torch.as_tensor(result.weights)
    misses = []
    for name, (mean, _, error) in posterior.reference(data).items():
        own = (weights * draws[name]).sum()
        own_error = (weights * (draws[name] - own)).square().sum()
        misses.append(float((own - mean).abs() / (own_error + error**2).sqrt()))
    return max(misses), float(result.diagnostics.log_evidence)


def cost(density: LogJoint, z: Tensor) -> tuple[float, float, int]:
    """Milliseconds of the log joint and its gradient at all rows, plain and as a replayed graph; the graph's nodes."""
    z = z.detach().requires_grad_()
    graph = capture(lambda: density(z).sum(), parameters=[z])
    calls: dict[str, Callable] = {"plain": lambda: torch.autograd.grad(density(z).sum(), z), "replayed": graph}
    seconds = interleaved(calls)
    return 1e3 * seconds["plain"], 1e3 * seconds["replayed"], len(graph.module.graph.nodes)


def row(name: str, data: str, steps: int) -> list[object]:
    """One line of the table."""
    posterior = POSTERIORS[name]
    density, draws = density_of(posterior, data), posterior.reference_draws(data)
    if draws is None:
        moments, evidence = fitted(posterior, data, steps)
        z, finite, identities = density.space.start + 0.1 * torch.randn(64, density.size), "", ("", "")
        worst = moments
    else:
        z = density.unconstrain(draws)
        log_joint, scores = scored(density, z)
        identities, moments, evidence = stein(z, scores), "", bridge(density, z, log_joint)
        finite, worst = bool(log_joint.isfinite().all() and scores.isfinite().all()), max(identities)
    known = posterior.log_evidence
    right = worst < LIMIT and finite is not False and (known is None or abs(evidence - known) < NATS)
    found = [
        name,
        density.size,
        finite,
        *identities,
        moments,
        f"{evidence:.3f}",
        str(known or ""),
        *cost(density, z[:64]),
    ]
    return [*found, "right" if right else "WRONG"]


def main() -> None:
    """Prints the table; fails where a model is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--only", nargs="+", default=list(POSTERIORS), choices=POSTERIORS, metavar="NAME")
    parser.add_argument("--steps", type=int, default=3000, help="of the fits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    rows = [row(name, options.data, options.steps) for name in options.only]
    headers = ["posterior", "D", "finite", "score", "score x z", "means", "log evidence", "known"]
    print(table([*headers, "ms plain", "ms replayed", "nodes", "verdict"], rows))
    if any(line[-1] != "right" for line in rows):
        raise SystemExit("some models are wrong")


if __name__ == "__main__":
    main()
