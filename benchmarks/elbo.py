"""Times SVI steps on the eight schools: Pyro's Trace_ELBO against CompiledTrace_ELBO, replayed and compiled."""

import argparse
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoNormal, AutoNormalizingFlow
from timing import clock, interleaved, table
from torch import Tensor

from pyroflows import AutoFlow, flows
from pyroflows.infer import CompiledTrace_ELBO

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SD = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
HEADERS = [
    "guide",
    "particles",
    "Trace_ELBO, ms",
    "replayed, ms",
    "compiled, ms",
    "compiled and fused Adam, ms",
    "Pyro / compiled and fused",
    "first step replayed, s",
    "first step compiled, s",
]


def schools(y: Tensor, sd: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sd), obs=y)


def pyro_flow(model: Callable) -> AutoNormalizingFlow:
    return AutoNormalizingFlow(model, partial(iterated, 3, affine_autoregressive, hidden_dims=[64, 64]))


def our_flow(model: Callable) -> AutoFlow:
    return AutoFlow(model, partial(flows.iaf, layers=3, hidden_dims=[64, 64]))


def svi_steps(make: Callable[[Callable], AutoGuide], elbo: Trace_ELBO, data: list[Tensor]) -> Callable[[int], None]:
    """Steps of SVI whose guide keeps its own parameters, whatever other guides do in between."""
    guide, state = make(schools), {"params": {}, "constraints": {}}
    svi = SVI(schools, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)

    def run(count: int) -> None:
        with pyro.get_param_store().scope(state):
            for _ in range(count):
                svi.step(*data)

    return run


def torch_steps(make: Callable[[Callable], AutoGuide], elbo: Trace_ELBO, data: list[Tensor]) -> Callable[[int], None]:
    """Steps of torch's own optimizer on the module form."""
    guide, state = make(schools), {"params": {}, "constraints": {}}
    loss = elbo(schools, guide)
    with pyro.get_param_store().scope(state):
        loss(*data)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-3, fused=True)

    def run(count: int) -> None:
        with pyro.get_param_store().scope(state):
            for _ in range(count):
                optimizer.zero_grad()
                loss(*data).backward()
                optimizer.step()

    return run


def prepare(
    theirs: Callable, ours: Callable, num_particles: int, args: argparse.Namespace
) -> tuple[dict[str, Callable[[int], None]], dict[str, float]]:
    """Steps by kind, and the seconds of the first step of ours."""
    data = [Y.to(args.device), SD.to(args.device)]
    plain = Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=1)
    replayed = CompiledTrace_ELBO(num_particles, compile=False, strict=True)
    compiled, fused = (CompiledTrace_ELBO(num_particles, strict=True, mode=args.mode) for _ in range(2))
    steps, first = {"plain": svi_steps(theirs, plain, data)}, {}
    for key, elbo in {"replayed": replayed, "compiled": compiled}.items():
        steps[key], start = svi_steps(ours, elbo, data), clock()
        steps[key](1)
        first[key] = clock() - start
    return {**steps, "fused": torch_steps(ours, fused, data)}, first


def measure(name: str, theirs: Callable, ours: Callable, num_particles: int, args: argparse.Namespace) -> list:
    steps, first = prepare(theirs, ours, num_particles, args)
    times = interleaved({key: partial(run, args.steps) for key, run in steps.items()}, repeats=args.repeats)
    ms = [1000 * times[key] / args.steps for key in steps]
    return [name, num_particles, *ms, ms[0] / ms[-1], first["replayed"], first["compiled"]]


WORK = [
    ("AutoNormal", AutoNormal, AutoNormal, 16),
    ("3 x IAF [64, 64] (Pyro: AutoNormalizingFlow)", pyro_flow, our_flow, 1),
    ("3 x IAF [64, 64] (Pyro: AutoNormalizingFlow)", pyro_flow, our_flow, 64),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50, help="steps in each timing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default=None, help="as in torch.compile; reduce-overhead uses CUDA graphs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.device != "cpu":  # a default device costs time at every call of torch
        torch.set_default_device(args.device)
    print(table(HEADERS, [measure(*row, args) for row in WORK]))


if __name__ == "__main__":
    main()
