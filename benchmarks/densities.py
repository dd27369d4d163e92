"""Test log-likelihood of FlowDensity, Gaussian mixtures and kernel densities on real tables, in nats a row.

Mixtures and kernels work on standardised columns, with settings chosen by 3-fold cross-validation on the training
rows; FlowDensity has its defaults. breast_cancer and digits (with uniform noise, so that whole numbers have a density)
come with scikit-learn and are split five times; MINIBOONE is fitted to its 3,284 validation rows and scored on its
3,648 test rows, where its file is given.

    python benchmarks/densities.py [--data ../shared/data] [--splits 5]
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler
from timing import table

from pyroflows import FlowDensity

MIXTURES = {
    "n_components": [1, 2, 3, 5, 8, 16, 32],
    "covariance_type": ["full", "tied", "diag"],
    "reg_covar": [1e-6, 1e-3, 1e-2, 1e-1],
}
KERNELS = {"bandwidth": np.geomspace(0.05, 2, 20), "kernel": ["gaussian", "exponential"]}
METHODS: dict[str, Callable[[int], BaseEstimator]] = {
    "FlowDensity": lambda seed: FlowDensity(random_state=seed),
    "GaussianMixture": lambda seed: GridSearchCV(GaussianMixture(random_state=seed), MIXTURES, cv=3),
    "KernelDensity": lambda seed: GridSearchCV(KernelDensity(), KERNELS, cv=3),
}


def splits(name: str, data: Path, count: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Training and test rows."""
    if name == "MINIBOONE":
        rows = np.load(data / "tabular" / "miniboone_val_test.npz")
        yield rows["val"].astype(float), rows["test"].astype(float)
        return
    rows = {"breast_cancer": load_breast_cancer, "digits": load_digits}[name]().data
    for seed in range(count):
        noise = np.random.default_rng(seed).random(rows.shape) if name == "digits" else 0.0
        yield tuple(train_test_split(rows + noise, test_size=0.2, random_state=seed))


def score(method: str, train: NDArray, test: NDArray, seed: int) -> float:
    """Mean log density of the test rows in the data's own units."""
    scaler = StandardScaler().fit(train)
    model = METHODS[method](seed).fit(scaler.transform(train))
    best = getattr(model, "best_estimator_", model)
    return best.score_samples(scaler.transform(test)).mean() - np.log(scaler.scale_).sum()


def row(name: str, data: Path, count: int) -> list[str]:
    """One line of the table: the mean over splits, its standard error, and the seconds of one fit."""
    cells = []
    for method in METHODS:
        start = time.perf_counter()
        found = [score(method, *split, seed) for seed, split in enumerate(splits(name, data, count))]
        error = f" +- {np.std(found, ddof=1) / len(found) ** 0.5:.2f}" if len(found) > 1 else ""
        cells.append(f"{np.mean(found):.2f}{error} ({(time.perf_counter() - start) / len(found):.0f} s)")
        print(name, method, cells[-1], flush=True)
    return [name, *cells]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with tabular/miniboone_val_test.npz")
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    names = ["breast_cancer", "digits", *(["MINIBOONE"] if options.data else [])]
    print(table(["data", *METHODS], [row(name, options.data, options.splits) for name in names]))


if __name__ == "__main__":
    main()
