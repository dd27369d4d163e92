"""Splines under stress in float32: how far a value lands from where it started, and what is not finite.

Each seed draws the raw parameters of one spline, 16 bins on [-4, 4], from N(0, 3^2), and maps inputs forward
and back, and back and forward: first a grid over [-6, 6], then the knots and the floats next to them. Every
library makes its own curve of its raw parameters. The largest abs(ladj) says how steep it dares to be, and a
steep curve loses more digits whoever computes it. A trip that hits an assertion is not in the columns before
it. The last column maps a batch of -1e10, 0 and 1e10: the ends must stay, ladj and gradient be finite.
"""

import argparse
from collections.abc import Callable
from math import log
from typing import NamedTuple

import torch
from nflows.transforms.splines import unconstrained_rational_quadratic_spline as nflows_rqs
from normflows.utils.splines import unconstrained_rational_quadratic_spline as normflows_rqs
from pyro.distributions.transforms.spline import ConditionedSpline
from timing import table
from torch import Tensor
from torch.nn.functional import softplus
from zuko.transforms import MonotonicRQSTransform

from pyroflows.bijectors import RQSpline

BINS, BOUND, SPREAD = 16, 4.0, 3.0
HEADERS = (
    "spline",
    "worst round trip",
    "largest abs(ladj)",
    "seeds not finite: value",
    "ladj",
    "gradient",
    "seeds with an assertion error",
    "seeds that fail at 1e10",
)
Pair = tuple[Tensor, Tensor]
Map = Callable[[Tensor, list[Tensor], bool], Pair]  # z, raw parameters, inverse -> value, ladj


class Spline(NamedTuple):
    """A library's spline and how it turns raw widths or heights into fractions of the whole."""

    map: Map
    fractions: Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.seeds} seeds, {BINS} bins, parameters ~ N(0, {SPREAD:g}^2)")
    for at_knots, title in ((False, "On a grid"), (True, "At the knots")):
        rows = [stress(name, spline, args.seeds, at_knots) for name, spline in splines().items()]
        print(f"\n{title}:\n\n{table(HEADERS, rows)}")


def splines() -> dict[str, Spline]:
    """The splines compared, by name."""
    ours = RQSpline(BINS, BOUND)

    def pyroflows(z: Tensor, raw: list[Tensor], inverse: bool) -> Pair:
        return ours.apply(z, raw[:3], inverse)

    def zuko(z: Tensor, raw: list[Tensor], inverse: bool) -> Pair:
        transform = MonotonicRQSTransform(*raw[:3], bound=BOUND)
        return (transform.inv if inverse else transform).call_and_ladj(z)

    return {
        "pyroflows": Spline(pyroflows, floored(ours.min_bin / BINS)),
        "zuko": Spline(zuko, lambda raw: (raw / (1 + (2 * raw / log(1e-3)).abs())).softmax(-1)),
        "nflows": Spline(durkan(nflows_rqs), floored(1e-3)),
        "normflows": Spline(durkan(normflows_rqs), floored(1e-3)),
        "Pyro, quadratic": Spline(pyro("quadratic"), floored(1e-3)),
        "Pyro, linear": Spline(pyro("linear"), floored(1e-3)),
    }


def floored(smallest: float) -> Callable[[Tensor], Tensor]:
    """A softmax no fraction of which is below ``smallest``."""
    return lambda raw: smallest + (1 - BINS * smallest) * raw.softmax(-1)


def durkan(function: Callable[..., Pair]) -> Map:
    """The function that nflows and normflows have in common: it wants a row of parameters for each z."""

    def mapped(z: Tensor, raw: list[Tensor], inverse: bool) -> Pair:
        rows = [r.expand(len(z), -1) for r in raw[:3]]
        return function(z, *rows, inverse=inverse, tail_bound=BOUND)

    return mapped


def pyro(order: str) -> Map:
    """Pyro's spline of one dimension, its raw parameters activated as Pyro's own ``Spline`` does."""

    def mapped(z: Tensor, raw: list[Tensor], inverse: bool) -> Pair:
        widths, heights, slopes, lambdas = (r.unsqueeze(0) for r in raw)
        lambdas = lambdas.sigmoid() if order == "linear" else None
        params = (widths.softmax(-1), heights.softmax(-1), softplus(slopes), lambdas)
        spline = ConditionedSpline(params, bound=BOUND, order=order)
        value, ladj = spline.spline_op(z.unsqueeze(-1), inverse=inverse)
        return value.squeeze(-1), ladj.squeeze(-1)

    return mapped


def stress(name: str, spline: Spline, seeds: int, at_knots: bool) -> tuple:
    """One row of a table."""
    results = torch.stack([one_seed(spline, seed, at_knots) for seed in range(seeds)])
    worst, steepest = results[:, :2].amax(0).tolist()
    return name, worst, steepest, *results[:, 2:].sum(0).long().tolist()


def one_seed(spline: Spline, seed: int, at_knots: bool) -> Tensor:
    """The seven numbers of a row for one spline; what went wrong is 1, else 0."""
    torch.manual_seed(seed)
    raw = [SPREAD * torch.randn(size) for size in (BINS, BINS, BINS - 1, BINS)]
    z = torch.linspace(-1.5 * BOUND, 1.5 * BOUND, 2001)
    if at_knots:
        knots = torch.cat([2 * BOUND * spline.fractions(r).cumsum(-1) - BOUND for r in raw[:2]])
        z = torch.cat([knots, *(knots.nextafter(torch.tensor(side)) for side in (-9.0, 9.0))])
    trips = torch.stack([trip(spline.map, raw, z, inverse) for inverse in (False, True)]).amax(0)
    return torch.cat([trips, torch.tensor([float(fails_far_out(spline.map, raw))])])


def trip(function: Map, raw: list[Tensor], z: Tensor, inverse: bool) -> Tensor:
    """Goes there and back: the largest error and abs(ladj), what is not finite, and an assertion error."""
    try:
        there, *rest = visit(function, raw, z, inverse)
        back, *rest_back = visit(function, raw, there, not inverse)
    except AssertionError:
        return torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    groups = [torch.cat(pair) for pair in zip((there, *rest), (back, *rest_back), strict=True)]
    broken = [float(not group.isfinite().all()) for group in groups]
    largest = [float(t.abs().nan_to_num(0.0, 0.0, 0.0).max()) for t in (back - z, groups[1])]
    return torch.tensor([*largest, *broken, 0.0])


def fails_far_out(function: Map, raw: list[Tensor]) -> bool:
    """Whether a huge value moves, or makes a ladj or a gradient that is not finite."""
    z = torch.tensor([-1e10, 0.0, 1e10])
    for inverse in (False, True):
        try:
            value, *rest = visit(function, raw, z, inverse)
        except AssertionError:
            return True
        if not value[::2].equal(z[::2]) or not torch.cat(rest).isfinite().all():
            return True
    return False


def visit(function: Map, raw: list[Tensor], z: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The value, the ladj, and the gradient of the sum of both for ``z`` and every raw parameter."""
    leaves = [t.clone().requires_grad_() for t in (z, *raw)]
    value, ladj = function(leaves[0], leaves[1:], inverse)
    grads = torch.autograd.grad((value + ladj).sum(), leaves, allow_unused=True)
    return value.detach(), ladj.detach(), torch.cat([grad for grad in grads if grad is not None])


if __name__ == "__main__":
    main()
