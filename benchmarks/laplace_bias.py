"""How far the mode of the Laplace marginal is off for rows that are not Gaussian, by the number of rows.

Binomial rows with normal effects: the mode of the globals with each row integrated by a Gaussian at its own mode,
against that by quadrature, in posterior standard deviations.

    python benchmarks/laplace_bias.py
"""

from functools import partial

import torch
from structured_models import binomial_normal, binomial_normal_data
from timing import table

from pyroflows.guides import AutoPlateFlow
from pyroflows.infer.nested.climb import climb
from pyroflows.infer.nested.marginal import laplace_marginal
from pyroflows.infer.nested.start import nested_laplace


@torch.no_grad()
def bias(rows: int) -> list[float]:
    """Of the mean and the log of the spread."""
    joint = AutoPlateFlow(binomial_normal).read((binomial_normal_data(rows)["y"],), {}, torch.float64)
    by_nodes = nested_laplace(joint, torch.ones(2).double())
    covariance = by_nodes.outer.scale_tril @ by_nodes.outer.scale_tril.mT
    mode, *_ = climb(partial(laplace_marginal, joint), by_nodes.outer.loc, by_nodes.z, covariance)
    return ((mode - by_nodes.outer.loc) / covariance.diagonal().sqrt()).tolist()


def main() -> None:
    lines = [[f"{rows:,}", *(f"{off:.2f}" for off in bias(rows))] for rows in (500, 5000, 50_000)]
    print(table(["groups", "mean, sd off", "log spread, sd off"], lines))


if __name__ == "__main__":
    main()
