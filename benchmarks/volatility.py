"""Moments of the stochastic volatility posterior by quadrature, beside the published ones, which come from MCMC.

Given persistence, mean and shock scale the log volatility is a Markov chain of one real state, so a filter on a grid
integrates it out; three sums do the rest. A persistence near 1 leaves the mean to its Cauchy prior: its tails are
heavy, and chains seldom go there and stay long. ``--points`` says how fine the sums are: more should change nothing.

    python benchmarks/volatility.py [--data ../shared/data] [--points 40 12 49 200]
"""

import argparse
import math

import torch
from models import POSTERIORS
from timing import table
from torch import Tensor

CENTRE, SCALE, REACH = -7.7, 1.2, 9.0  # of the grid of means: CENTRE + SCALE sinh(t), |t| <= REACH


def grids(persistences: int, shocks: int, means: int, states: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log of one less the persistence, log shock scales, means and the log weights of their spacing, states."""
    t = torch.linspace(-REACH, REACH, means)
    return (
        torch.linspace(math.log(1e-6), math.log(0.7), persistences),
        torch.linspace(math.log(0.1), math.log(2.5), shocks),
        CENTRE + SCALE * t.sinh(),
        t.cosh().log(),
        torch.linspace(-18.0, 2.0, states),
    )


def log_likelihoods(y: Tensor, gap: float, shock: float, means: Tensor, h: Tensor) -> Tensor:
    """``log p(y | persistence, shock scale, mean)`` for all means by one filter over the states ``h``."""
    step, spread = float(h[1] - h[0]), shock / math.sqrt(gap * (2 - gap))
    emission = torch.distributions.Normal(0.0, (h / 2).exp()).log_prob(y.unsqueeze(-1)).exp()
    before = means.unsqueeze(-1)
    alive = density(h - before, spread) * step * emission[0]
    # In single precision, as this product is where the time goes.
    moves = (density(h.unsqueeze(-1) - means.view(-1, 1, 1) * gap - (1 - gap) * h, shock) * step).float()
    total = torch.zeros_like(means)
    for weight in emission[1:]:
        mass = alive.sum(-1, keepdim=True).clamp_min(1e-300)
        total, alive = total + mass.log().squeeze(-1), alive / mass
        alive = torch.bmm(moves, alive.float().unsqueeze(-1)).squeeze(-1).double() * weight
    return total + alive.sum(-1).clamp_min(1e-300).log()


def density(x: Tensor, scale: float) -> Tensor:
    """Of a normal distribution around 0."""
    return torch.exp(-0.5 * (x / scale) ** 2) / (scale * math.sqrt(2 * math.pi))


def log_weights(y: Tensor, points: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log posterior mass of each node, and the values of the parameters along the three dimensions."""
    gaps, shocks, means, spacing, h = grids(*points)
    rows = []
    for gap in gaps.exp():
        for shock in shocks.exp():
            prior = 19 * (1 - gap / 2).log() + 0.5 * (gap / 2).log() - (1 + (shock / 2) ** 2).log()
            prior = prior + gap.log() + shock.log() + spacing - (1 + (means / 5) ** 2).log()
            rows.append(log_likelihoods(y, float(gap), float(shock), means, h) + prior)
    found = torch.stack(rows).unflatten(0, (len(gaps), len(shocks)))
    return found, {"phi": (1 - gaps.exp()).view(-1, 1, 1), "s": shocks.exp().view(1, -1, 1), "m": means}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument(
        "--points", type=int, nargs=4, default=[40, 12, 49, 200], help="persistence, shock, mean, state"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    posterior = POSTERIORS["sv"]
    published = posterior.published(args.data)
    log_mass, values = log_weights(*posterior.load(args.data)[1], args.points)
    mass, lines = log_mass.flatten().softmax(0).view_as(log_mass), []
    for name, value in values.items():
        mean = (mass * value).sum()
        sd = (mass * (value - mean) ** 2).sum().sqrt()
        kurtosis = (mass * ((value - mean) / sd) ** 4).sum()
        numbers = (mean, sd, kurtosis, *published[name][:2])
        lines.append([name, *(f"{float(number):.4f}" for number in numbers)])
    print(table(["", "mean", "sd", "kurtosis", "published mean", "published sd"], lines))
    for reach in (5, 10, 30, 100):
        print(f"mass of |m - {CENTRE}| > {reach}: {float(mass[..., (values['m'] - CENTRE).abs() > reach].sum()):.2g}")


if __name__ == "__main__":
    main()
