"""Two-dimensional toy densities: each named flow beside the flow of that name in zuko, nflows and normflows.

All learn the same rows with the same optimizer for the same number of steps, at their libraries' defaults but for the
widths of networks and the number of layers. A cell is the mean log density of fresh rows, the mean of some seeds and
half of their range; in brackets the processor seconds over those of ours.
"""

import argparse
import math
import time
from collections.abc import Callable

import normflows
import torch
import zuko
from nflows.flows import MaskedAutoregressiveFlow
from timing import table
from torch import Tensor, nn

from pyroflows import FlowDistribution, flows

WIDTHS = (64, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toys", nargs="*", default=list(TOYS), choices=list(TOYS))
    parser.add_argument("--flows", nargs="*", default=list(FLOWS), choices=list(FLOWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.steps} steps of 256 of {args.rows} rows, {args.seeds} seeds\n")
    libraries = list(dict.fromkeys(library for name in args.flows for library in FLOWS[name]))
    rows = []
    for toy in args.toys:
        for name in args.flows:
            found = {library: fits(toy, make, args) for library, make in FLOWS[name].items()}
            ours = found["pyroflows"][1]
            rows.append([toy, name, *(cell(found.get(library), ours) for library in libraries)])
    print(table(("density", "flow", *libraries), rows))


def cell(found: tuple[list[float], float] | None, ours: float) -> str:
    """The mean of scores, half of their range, and time over ours."""
    if found is None:
        return "-"
    scores, seconds = found
    spread = (max(scores) - min(scores)) / 2
    return f"{sum(scores) / len(scores):.3f} +- {spread:.3f} ({seconds / ours:.2f})"


def fits(toy: str, make: Callable[[], Callable], args: argparse.Namespace) -> tuple[list[float], float]:
    """Test scores of each seed, and the processor seconds of all."""
    start, scores = time.process_time(), []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        train, test = TOYS[toy](args.rows), TOYS[toy](10_000)
        scores.append(fit(make(), train, test, args.steps))
    return scores, time.process_time() - start


def fit(model: nn.Module, train: Tensor, test: Tensor, steps: int) -> float:
    """The mean log density of test rows after some steps of Adam whose rate falls to zero."""
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        loss = -model(train[torch.randint(len(train), (256,))]).mean()
        if loss.isfinite():
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            adam.step()
        schedule.step()
    with torch.no_grad():
        return model(test).mean().item()


class Scored(nn.Module):
    """A flow of any library, called for log densities."""

    def __init__(self, flow: nn.Module, log_prob: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.flow, self.log_prob = flow, log_prob

    def forward(self, x: Tensor) -> Tensor:
        return self.log_prob(self.flow, x)


def ours(recipe: Callable, **options: object) -> Scored:
    return Scored(recipe(2, **options), lambda flow, x: FlowDistribution(transform=flow).log_prob(x))


def theirs(recipe: Callable, **options: object) -> Scored:
    return Scored(recipe(2, **options), lambda flow, x: flow().log_prob(x))


def in_normflows(layers: list[nn.Module]) -> Scored:
    base = normflows.distributions.DiagGaussian(2)
    return Scored(normflows.NormalizingFlow(base, layers), lambda flow, x: flow.log_prob(x))


def residual_block() -> nn.Module:
    net = normflows.nets.LipschitzMLP([2, *WIDTHS, 2], init_zeros=True, lipschitz_const=0.9)
    return normflows.flows.Residual(net, reduce_memory=False)


def in_nflows() -> Scored:
    made = MaskedAutoregressiveFlow(2, 64, num_layers=3, num_blocks_per_layer=2, batch_norm_between_layers=False)
    return Scored(made, lambda flow, x: flow.log_prob(x))


NET = {"hidden_features": WIDTHS}
FLOWS: dict[str, dict[str, Callable[[], Scored]]] = {
    "maf": {
        "pyroflows": lambda: ours(flows.maf, layers=3),
        "zuko": lambda: theirs(zuko.flows.MAF, transforms=3, **NET),
        "nflows": in_nflows,
    },
    "naf": {
        "pyroflows": lambda: ours(flows.naf, layers=2),
        "zuko": lambda: theirs(zuko.flows.NAF, transforms=2, **NET),
    },
    "unaf": {
        "pyroflows": lambda: ours(flows.unaf, layers=2),
        "zuko": lambda: theirs(zuko.flows.UNAF, transforms=2, **NET),
    },
    "sospf": {
        "pyroflows": lambda: ours(flows.sospf, layers=3),
        "zuko": lambda: theirs(zuko.flows.SOSPF, transforms=3, **NET),
    },
    "bpf": {
        "pyroflows": lambda: ours(flows.bpf, layers=2),
        "zuko": lambda: theirs(zuko.flows.BPF, transforms=2, **NET),
    },
    "gaussianization": {
        "pyroflows": lambda: ours(flows.gaussianization, layers=6),
        "zuko": lambda: theirs(zuko.flows.GF, transforms=6),
    },
    "bnaf": {"pyroflows": lambda: ours(flows.bnaf)},
    "flowpp": {"pyroflows": lambda: ours(flows.flowpp)},
    "planar": {
        "pyroflows": lambda: ours(flows.planar, fast="inverse"),
        "normflows": lambda: in_normflows([normflows.flows.Planar((2,), act="leaky_relu") for _ in range(16)]),
    },
    "radial": {"pyroflows": lambda: ours(flows.radial, fast="inverse")},
    "sylvester": {"pyroflows": lambda: ours(flows.sylvester, fast="inverse")},
    "residual": {
        "pyroflows": lambda: ours(flows.residual),
        "normflows": lambda: in_normflows([residual_block() for _ in range(6)]),
    },
}


def eight_gaussians(rows: int) -> Tensor:
    angle = torch.randint(8, (rows,)) * (math.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.25 * torch.randn(rows, 2)


def checkerboard(rows: int) -> Tensor:
    x = 4 * torch.rand(rows) - 2
    y = torch.rand(rows) + torch.randint(2, (rows,)) * 2 + x.floor() % 2 - 2
    return torch.stack([x, y], -1)


def pinwheel(rows: int) -> Tensor:
    radius, across = 1.2 + 0.4 * torch.randn(rows), 0.15 * torch.randn(rows)
    angle = torch.randint(5, (rows,)) * (2 * math.pi / 5) + 0.6 * radius
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([radius * cos - across * sin, radius * sin + across * cos], -1)


def rings(rows: int) -> Tensor:
    radius = 0.6 * torch.randint(1, 5, (rows,)) + 0.06 * torch.randn(rows)
    angle = 2 * math.pi * torch.rand(rows)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def two_spirals(rows: int) -> Tensor:
    angle = torch.rand(rows).sqrt() * 3 * math.pi
    side = (torch.randint(2, (rows,)) * 2 - 1) * angle / 5
    return torch.stack([side * angle.cos(), side * angle.sin()], -1) + 0.1 * torch.randn(rows, 2)


def moons(rows: int) -> Tensor:
    angle, upper = math.pi * torch.rand(rows), torch.randint(2, (rows,))
    sign = 2.0 * upper - 1
    at = torch.stack([sign * (angle.cos() - 0.5), sign * (angle.sin() - 0.25)], -1)
    return 1.5 * at + 0.1 * torch.randn(rows, 2)


TOYS: dict[str, Callable[[int], Tensor]] = {
    made.__name__: made for made in (eight_gaussians, checkerboard, pinwheel, rings, two_spirals, moons)
}

if __name__ == "__main__":
    main()
