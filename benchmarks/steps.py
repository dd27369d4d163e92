"""Training steps of a density, and of SVI, side by side with JAX: milliseconds and first calls.

Densities: every library trains a flow of the same size (D = 16, a batch of 512, 5 layers, hidden [64, 64], 8 bins) on
normal draws with Adam (torch's fused one, optax in JAX). normflows has residual networks only: one block of 64.
"Compiled" is torch.compile, ours with fullgraph=True. "One graph" is our loss, gradient and Adam as one graph, made by
pyroflows.compile.fuse and compiled. A first call compiles and makes the first step.

NumPyro and flowjax run in a process and an environment of their own; their steps take turns with ours. The process is
pinned to as many cores as it has threads.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain

import nflows.transforms
import normflows
import torch
import zuko
from elbo import WORK, Work, prepare
from jax_process import JaxProcess, versions
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.utils.torchutils import create_alternating_binary_mask
from normflows.flows.base import Reverse
from timing import clock, interleaved, table
from torch import Tensor, nn

from pyroflows import FlowDistribution, flows, transforms
from pyroflows.compile import capture, fuse, lay_flat
from pyroflows.compile.adam import Adam

DIM, BATCH, LAYERS, HIDDEN, BINS, BOUND = 16, 512, 5, [64, 64], 8, 4.0
LogProb = Callable[[Tensor], Tensor]
Model = tuple[LogProb, list[Tensor]]
Steps = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50, help="steps of SVI in each timing")
    parser.add_argument("--density-steps", type=int, default=10, help="steps of a density in each timing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=("density", "svi"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    args.mode, args.data = None if args.device == "cpu" else "reduce-overhead", None  # what elbo.py asks for
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        pin(args.threads)
    else:
        torch.set_default_device(args.device)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {versions()}, {args.threads} thread(s), medians of {args.repeats} rounds\n")
    with JaxProcess(args.threads, args.device) as jax:
        if args.only != "density":
            print(table(SVI_HEADERS, [svi(work, jax, args) for work in WORK]), end="\n\n", flush=True)
        if args.only != "svi":
            print(table(DENSITY_HEADERS, chain.from_iterable(density(name, jax, args) for name in OURS)))


def pin(threads: int) -> None:
    """Binds this process and its children to so many cores, which alone keeps XLA to them."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


SVI_HEADERS = [
    "guide",
    "particles",
    "Trace_ELBO, ms",
    "NumPyro, ms",
    "CompiledTrace_ELBO, ms",
    "CompiledSVI replayed, ms",
    "CompiledSVI, ms",
    "Pyro / replayed",
    "Pyro / ours",
    "ours / NumPyro",
    "first step: replayed, s",
    "compiled, s",
    "NumPyro, s",
]


def svi(work: Work, jax: JaxProcess, args: argparse.Namespace) -> list:
    """One line: Pyro, NumPyro and ours on the same model; "ours" is CompiledSVI."""
    in_jax = f"{work.name}, {work.particles}"
    first_jax = jax.run(in_jax, 1) / 1e3
    steps, first = prepare(work, args)
    steps = {"plain": steps.pop("plain"), "jax": jax.steps(in_jax), **steps}
    seconds = interleaved({key: partial(run, args.steps) for key, run in steps.items()}, args.repeats)
    ms = {key: 1e3 * value / args.steps for key, value in seconds.items()}
    ratios = ms["plain"] / ms["replayed"], ms["plain"] / ms["ours"], ms["ours"] / ms["jax"]
    return [work.name, work.particles, *ms.values(), *ratios, first["replayed"], first["ours"], first_jax]


DENSITY_HEADERS = ("flow", "library", "ms", "ratio to flowjax", "first call, s")


def density(name: str, jax: JaxProcess, args: argparse.Namespace) -> Iterable[list]:
    """One line for each library that has this flow."""
    torch.compiler.reset()  # else a library's second flow may reuse what its first compiled
    x, steps, first = torch.randn(BATCH, DIM), {"flowjax": jax.steps(name)}, {}
    ours, zukos = OURS[name], ZUKO[name]
    steps["pyroflows, eager"] = training(*ours(), x)
    steps["pyroflows, compiled"] = training(*ours(), x, fullgraph=True, mode=args.mode)
    steps["pyroflows, one graph"] = captured(*ours(), x, args.mode)
    steps["zuko, eager"] = training(*zukos(), x)
    steps["zuko, compiled"] = training(*zukos(), x, fullgraph=False, mode=args.mode)
    for library, models in {"nflows": NFLOWS, "normflows": NORMFLOWS}.items():
        steps[f"{library}, eager"] = training(*models[name](), x)
    for key, run in steps.items():
        start = clock()
        run(1)
        first[key] = clock() - start
    count = args.density_steps
    seconds = interleaved({key: partial(run, count) for key, run in steps.items()}, args.repeats)
    return [[name, key, 1e3 * s / count, s / seconds["flowjax"], first[key]] for key, s in seconds.items()]


def training(
    log_prob: LogProb, parameters: list[Tensor], x: Tensor, fullgraph: bool | None = None, mode: str | None = None
) -> Steps:
    """Steps of Adam on the mean negative log density, compiled unless ``fullgraph`` is None."""

    def loss(x: Tensor) -> Tensor:
        return -log_prob(x).mean()

    objective = loss if fullgraph is None else torch.compile(loss, fullgraph=fullgraph, dynamic=False, mode=mode)
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            objective(x).backward()
            optimizer.step()

    return run


def captured(log_prob: LogProb, parameters: list[Tensor], x: Tensor, mode: str | None) -> Steps:
    """The same steps as one graph of one vector, Adam included, traced and compiled at the first call."""
    ready: list[tuple] = []

    def begin() -> tuple:
        adam, flat = Adam(), lay_flat(parameters)
        state = [flat, *adam.start(flat)]

        def update(loss: Tensor, slope: Tensor, state: list[Tensor]) -> list[Tensor]:
            return [*adam(state[0], slope, flat.new_tensor([1e-4]), state[1:]), loss]

        graph = capture(lambda x: -log_prob(x).mean(), [x], parameters=parameters)
        return fuse(graph, parameters, update, state, [x]).compile([x], mode), state

    def run(count: int) -> None:
        if not ready:
            ready.append(begin())
        graph, state = ready[0]
        for _ in range(count):
            graph.run(*state, *graph.closed, x)

    return run


def our_flow(flow: transforms.Compose) -> Model:
    return FlowDistribution(transform=flow, validate_args=False).log_prob, list(flow.parameters())


def zuko_flow(flow: zuko.flows.Flow) -> Model:
    return lambda x: flow().log_prob(x), list(flow.parameters())


def nflows_flow(make: Callable[[int], nn.Module]) -> Model:
    flow = Flow(nflows.transforms.CompositeTransform([make(i) for i in range(LAYERS)]), StandardNormal([DIM]))
    return flow.log_prob, list(flow.parameters())


def normflows_flow(make: Callable[[int], nn.Module]) -> Model:
    flow = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(DIM, trainable=False), map(make, range(LAYERS))
    )
    return flow.log_prob, list(flow.parameters())


class Net(nn.Sequential):
    """The network of couplings in nflows: plain, with ReLU as its autoregressive ones."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers = (nn.Linear(i, o) for i, o in zip([inputs, *HIDDEN], [*HIDDEN, outputs], strict=True))
        super().__init__(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


PLAIN = {"hidden_features": HIDDEN[0], "num_blocks": len(HIDDEN) - 1, "use_residual_blocks": False}
SPLINE = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
BLOCKS = {"num_blocks": 1, "num_hidden_channels": HIDDEN[0], "num_bins": BINS, "tail_bound": BOUND}
WIDTHS = {"transforms": LAYERS, "hidden_features": HIDDEN}
OURS: dict[str, Callable[[], Model]] = {
    "NSF coupling": lambda: our_flow(flows.nsf(DIM, layers=LAYERS, bins=BINS, bound=BOUND)),
    "NSF autoregressive": lambda: our_flow(
        flows.nsf(DIM, structure="autoregressive", layers=LAYERS, bins=BINS, bound=BOUND)
    ),
    "MAF": lambda: our_flow(flows.maf(DIM, layers=LAYERS)),
}
ZUKO: dict[str, Callable[[], Model]] = {
    "NSF coupling": lambda: zuko_flow(zuko.flows.NSF(DIM, bins=BINS, passes=2, **WIDTHS)),
    "NSF autoregressive": lambda: zuko_flow(zuko.flows.NSF(DIM, bins=BINS, **WIDTHS)),
    "MAF": lambda: zuko_flow(zuko.flows.MAF(DIM, **WIDTHS)),
}
NFLOWS: dict[str, Callable[[], Model]] = {
    "NSF coupling": lambda: nflows_flow(
        lambda i: nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
            create_alternating_binary_mask(DIM, even=i % 2 == 0), Net, **SPLINE
        )
    ),
    "NSF autoregressive": lambda: nflows_flow(
        lambda _: nflows.transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(DIM, **PLAIN, **SPLINE)
    ),
    "MAF": lambda: nflows_flow(lambda _: nflows.transforms.MaskedAffineAutoregressiveTransform(DIM, **PLAIN)),
}
NORMFLOWS: dict[str, Callable[[], Model]] = {
    "NSF coupling": lambda: normflows_flow(
        lambda i: normflows.flows.CoupledRationalQuadraticSpline(DIM, reverse_mask=i % 2 == 0, **BLOCKS)
    ),
    "NSF autoregressive": lambda: normflows_flow(
        lambda _: normflows.flows.AutoregressiveRationalQuadraticSpline(DIM, **BLOCKS)
    ),
    "MAF": lambda: normflows_flow(
        lambda _: Reverse(normflows.flows.MaskedAffineAutoregressive(DIM, HIDDEN[0], num_blocks=1))
    ),
}


if __name__ == "__main__":
    main()
