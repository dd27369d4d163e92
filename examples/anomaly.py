"""Finding what does not belong: flows fitted to normal rows score benign and malignant tumours, and wrong digits.

python examples/anomaly.py [--smoke] [--out .]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import roc_auc_score, roc_curve

from pyroflows import FlowDensity

KINDS = ("likelihood", "typicality")


def split(rows: NDArray, normal: NDArray, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Half of the normal rows to train on; the other half and all outliers to test, with labels."""
    order = np.random.default_rng(seed).permutation(normal.nonzero()[0])
    train, rest = np.split(order, [len(order) // 2])
    outliers = (~normal).nonzero()[0]
    return rows[train], rows[np.r_[rest, outliers]], np.repeat([0, 1], [len(rest), len(outliers)])


def tables() -> dict[str, tuple[NDArray, NDArray]]:
    """Rows by name, and which of them are normal."""
    tumours, benign = load_breast_cancer(return_X_y=True)
    digits, label = load_digits(return_X_y=True)
    digits = digits + np.random.default_rng(0).random(digits.shape)  # whole numbers have no density
    return {"malignant among benign tumours": (tumours, benign == 1)} | {
        f"other digits among {k}s": (digits, label == k) for k in (1, 8)
    }


def main() -> None:
    """Fits, prints the areas under the ROC curves, draws scores and curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few epochs, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    for (name, (rows, normal)), (above, below) in zip(tables().items(), axes.T, strict=True):
        train, test, outlier = split(rows, normal, seed=0)
        density = FlowDensity(epochs=1 if options.smoke else 300, random_state=0).fit(train)
        nats = density.outlier_score(test)
        least = nats.min() - 10  # most outliers are very far out: only a logarithmic axis holds them
        bins = np.geomspace(10, np.quantile(nats, 0.99) - least, 60)
        for label, what in enumerate(("normal", "outliers")):
            weights = np.full((outlier == label).sum(), 1 / (outlier == label).sum())
            above.hist(nats[outlier == label] - least, bins=bins, weights=weights, alpha=0.6, label=what)
        above.axvline(density.entropy_ - least, color="black", ls=":", label="entropy")
        above.set(title=name, xlabel="nats below the likeliest row, + 10", ylabel="share", xscale="log")
        above.legend()
        for kind in KINDS:
            score = density.outlier_score(test, kind=kind)
            area = roc_auc_score(outlier, score)
            below.plot(*roc_curve(outlier, score)[:2], label=f"{kind}, AUROC {area:.3f}")
            print(f"{name}: {kind:10s} AUROC {area:.3f}")
        below.plot([0, 1], [0, 1], color="0.7", ls=":")
        below.set(xlabel="normal rows flagged", ylabel="outliers found", aspect="equal")
        below.legend()
    figure.savefig(options.out / "anomaly.png", dpi=90)
    print(f"wrote {options.out / 'anomaly.png'}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
