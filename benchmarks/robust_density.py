"""What wild rows and heavy tails cost FlowDensity: test log densities, in nats a row, medians over seeds.

Two moons (1,500 rows) with wild rows, in the data or in the context, against the fit without them; and heavy tails
(3,000 rows) against the mean of their own log density. A number is the score less what it is measured against.

    python benchmarks/robust_density.py [--seeds 3] [--epochs 300]
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import make_moons
from timing import table

from pyroflows import FlowDensity

Score = Callable[..., float]
HEAVY = {
    "Cauchy": stats.cauchy(),
    "lognormal(2.5)": stats.lognorm(2.5),
    "Student(1.5)": stats.t(1.5),
    "Pareto(1)": stats.pareto(1.0),
    "-lognormal(1)": stats.lognorm(1.0),
    "normal": stats.norm(3.0, 2.0),
}


def spoil(rows: NDArray, count: int, size: float) -> NDArray:
    """The same rows with ``count`` of them far out, in all columns."""
    rows = rows.copy()
    rows[:count] = size * np.array([1.0, -0.7, 0.4])[:count, None]
    return rows


def wild(seed: int, fit: Score) -> Iterator[tuple[str, float]]:
    """The loss to wild rows."""
    train, test = (make_moons(1500, noise=0.05, random_state=10 * seed + i)[0] for i in range(2))
    clean = fit(train, test)
    yield "moons, clean", clean
    for size in (1e1, 1e2, 1e3, 1e6, 1e9):
        yield f"1 wild row at {size:.0e}", fit(spoil(train, 1, size), test) - clean
    yield "3 wild rows at 1e+06", fit(spoil(train, 3, 1e6), test) - clean
    given, context = (part[:, 1:] for part in (train, test))
    clean = fit(train[:, :1], test[:, :1], given, context)
    for size in (1e3, 1e9):
        spoilt = fit(train[:, :1], test[:, :1], spoil(given, 1, size), context)
        yield f"1 wild row of the context at {size:.0e}", spoilt - clean


def heavy(seed: int, fit: Score) -> Iterator[tuple[str, float]]:
    """The loss to heavy tails, in one column, and in two that depend on each other."""
    for name, law in HEAVY.items():
        train, test = (law.rvs((rows, 1), np.random.default_rng(2 * seed + i)) for i, rows in enumerate((3000, 20_000)))
        sign = -1 if name.startswith("-") else 1
        yield name, fit(sign * train, sign * test) - law.logpdf(test).mean()
    joint = stats.multivariate_t(np.zeros(2), [[1.0, 0.8], [0.8, 1.0]], df=1)
    train, test = (joint.rvs(rows, random_state=2 * seed + i) for i, rows in enumerate((3000, 20_000)))
    yield "Cauchy in two columns", fit(train, test) - joint.logpdf(test).mean()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--only", choices=["heavy", "wild"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):

        def fit(train: NDArray, test: NDArray, *contexts: NDArray, seed: int = seed) -> float:
            given, context = contexts or (None, None)
            return (
                FlowDensity(epochs=options.epochs, random_state=seed).fit(train, None, given).score(test, None, context)
            )

        for part in [p for p in (heavy, wild) if options.only in (None, p.__name__)]:
            for name, value in part(seed, fit):
                print(seed, name, f"{value:.3f}", flush=True)
                found.setdefault(name, []).append(value)
    print(table(["case", "median", "least"], [[k, f"{np.median(v):.3f}", f"{min(v):.3f}"] for k, v in found.items()]))


if __name__ == "__main__":
    main()
