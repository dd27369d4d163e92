"""Times SVI steps: Pyro's Trace_ELBO against CompiledTrace_ELBO and CompiledSVI, replayed and compiled.

The models are the eight schools and a logistic regression of the size of the German credit data, by default on data
drawn from it; --data names a CSV file of numbers instead, the answer (0 or 1) in the last column.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive, affine_coupling, iterated
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoNormal, AutoNormalizingFlow
from timing import clock, interleaved, table
from torch import Tensor

from pyroflows import AutoFlow, CompiledSVI, CompiledTrace_ELBO, flows

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SD = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
ROWS, COLUMNS = 1000, 25
HEADERS = [
    "guide",
    "particles",
    "Trace_ELBO, ms",
    "CompiledTrace_ELBO, ms",
    "CompiledSVI replayed, ms",
    "CompiledSVI, ms",
    "Pyro / replayed",
    "Pyro / ours",
    "first step replayed, s",
    "first step compiled, s",
]


def schools(y: Tensor, sd: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sd), obs=y)


def credit(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    logits = (beta @ x.mT).reshape(*beta.shape[:-2], len(x))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def credit_data(file: str | None) -> list[Tensor]:
    """Standardised columns with a constant one, and the answers."""
    if file:
        values = torch.as_tensor(np.genfromtxt(file, delimiter=","), dtype=torch.float32)
        x, y = values[:, :-1], values[:, -1]
        return [torch.cat([torch.ones(len(x), 1), (x - x.mean(0)) / x.std(0)], 1), y]
    generator = torch.Generator("cpu").manual_seed(0)  # the same data on every device
    x = torch.randn(ROWS, COLUMNS, generator=generator, device="cpu")
    x[:, 0] = 1.0
    beta = 0.5 * torch.randn(COLUMNS, generator=generator, device="cpu")
    return [x, torch.bernoulli(torch.sigmoid(x @ beta), generator=generator)]


def pyro_flow(transform: Callable, layers: int, model: Callable) -> AutoNormalizingFlow:
    return AutoNormalizingFlow(model, partial(iterated, layers, transform, hidden_dims=[64, 64]))


def our_flow(recipe: Callable, layers: int, model: Callable) -> AutoFlow:
    return AutoFlow(model, partial(recipe, layers=layers, hidden_dims=[64, 64]))


@dataclass
class Work:
    """A model with its data, and the guide in Pyro and here."""

    name: str
    model: Callable
    theirs: Callable[[Callable], AutoGuide]
    ours: Callable[[Callable], AutoGuide]
    particles: int

    def data(self, args: argparse.Namespace) -> list[Tensor]:
        found = [Y, SD] if self.model is schools else credit_data(args.data)
        return [tensor.to(args.device) for tensor in found]


IAF = partial(pyro_flow, affine_autoregressive, 3), partial(our_flow, flows.iaf, 3)
REALNVP = partial(pyro_flow, affine_coupling, 6), partial(our_flow, flows.realnvp, 6)
WORK = [
    Work("AutoNormal", schools, AutoNormal, AutoNormal, 16),
    Work("3 x IAF", schools, *IAF, 1),
    Work("3 x IAF", schools, *IAF, 64),
    Work("credit, 6 x realnvp", credit, *REALNVP, 64),
]


def svi_steps(kind: type[SVI], work: Work, make: Callable, elbo: Trace_ELBO, data: list[Tensor]) -> Callable:
    """Steps of SVI whose guide keeps its own parameters, whatever other guides do in between."""
    guide, state = make(work.model), {"params": {}, "constraints": {}}
    svi = kind(work.model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)

    def run(count: int) -> None:
        with pyro.get_param_store().scope(state):
            if kind is CompiledSVI:
                svi.run(count, *data)
            else:
                for _ in range(count):
                    svi.step(*data)

    return run


def prepare(work: Work, args: argparse.Namespace) -> tuple[dict[str, Callable[[int], None]], dict[str, float]]:
    """Steps by kind, and the seconds of the first step of ours."""
    data, count = work.data(args), work.particles
    plain = Trace_ELBO(count, vectorize_particles=True, max_plate_nesting=1)
    kinds = {
        "elbo": (SVI, CompiledTrace_ELBO(count, strict=True, mode=args.mode)),
        "replayed": (CompiledSVI, CompiledTrace_ELBO(count, compile=False, strict=True, mode=args.mode)),
        "ours": (CompiledSVI, CompiledTrace_ELBO(count, strict=True, mode=args.mode)),
    }
    steps, first = {"plain": svi_steps(SVI, work, work.theirs, plain, data)}, {}
    for key, (kind, elbo) in kinds.items():
        steps[key], start = svi_steps(kind, work, work.ours, elbo, data), clock()
        steps[key](1)
        first[key] = clock() - start
    return steps, first


def measure(work: Work, args: argparse.Namespace) -> list:
    steps, first = prepare(work, args)
    times = interleaved({key: partial(run, args.steps) for key, run in steps.items()}, repeats=args.repeats)
    ms = {key: 1000 * times[key] / args.steps for key in steps}
    ratios = ms["plain"] / ms["replayed"], ms["plain"] / ms["ours"]
    return [work.name, work.particles, *ms.values(), *ratios, first["replayed"], first["ours"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50, help="steps in each timing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", help="CSV file for the regression")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default=None, help="as in torch.compile; reduce-overhead uses CUDA graphs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.device != "cpu":  # a default device costs time at every call of torch
        torch.set_default_device(args.device)
    print(table(HEADERS, [measure(work, args) for work in WORK]))


if __name__ == "__main__":
    main()
