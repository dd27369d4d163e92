"""Loops in which something changes between traced steps: does any of them end with other numbers, and not say so?

Each loop is run twice from the same noise, with plain steps and with traced ones. A loop is *right* where loss and
parameters end alike, *said* where they do not but a warning was given, and *silent* where none was. Numbers in some
90 places change once (at step 100), in stairs (every 40 steps), or by the model itself, which counts its runs there and
goes another way after 100 of them; then come changes of networks, and of what SVI and its optimizers honour.

    python benchmarks/changes.py [--steps 600] [--only WORD] [--kinds CompiledTrace_ELBO,CompiledSVI,TracedLoss,VAE.fit]
"""

import argparse
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import torch
from changes_cases import NETS, PLACES, STEPPERS, Case, Run
from pyro.infer import SVI, Trace_ELBO
from timing import table
from torch import Tensor, nn

from pyroflows import VAE, CompiledSVI, CompiledTrace_ELBO, FlowEncoder, FlowPrior, flows
from pyroflows.compile import TracedLoss

Y = torch.tensor([30.0, 50.0])
ELBOS = "CompiledTrace_ELBO", "CompiledSVI"
KINDS = *ELBOS, "TracedLoss", "VAE.fit"
# A change comes after a sixth of the steps, or there are so many, or the model itself goes another way after some runs.
LATE, STAIRS, RUNS = 6, 15, 100
WITH_VAE = "once", "net"  # whose steps take longest


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Every loop, by name; the word before the colon is its family."""
    for name, make in PLACES.items():
        yield f"once: {name}", lambda make=make: once(*make())
        yield f"stairs: {name}", lambda make=make: stairs(*make())
        yield f"model: {name}", lambda make=make: counted(*make())
    yield from NETS.items()
    yield from STEPPERS.items()


def once(get: Callable[[], float], put: Callable[[float], object]) -> Case:
    put(1.0)
    return Case(get, lambda run: put(2.0))


def stairs(get: Callable[[], float], put: Callable[[float], object]) -> Case:
    put(1.0)
    return Case(get, lambda run: put(1.0 + run.step / run.steps), stairs=True)


def counted(get: Callable[[], float], put: Callable[[float], object]) -> Case:
    put(1.0)  # a tensor of no entries would have no mean

    def read() -> float:
        put(get() + 1.0)
        return 1.0 if get() <= RUNS + 1 else 2.0

    return Case(read, tolerance=0.03)  # tracing runs the model as well


def changes(case: Case, run: Run, step: int) -> None:
    """Seeds a step, and makes the change that is due before it."""
    run.step = step
    torch.manual_seed(step)
    if step and step % (run.steps // STAIRS) == 0 if case.stairs else step == run.steps // LATE:
        case.change(run)


def by_svi(case: Case, kind: str | None, steps: int) -> list[Tensor]:
    def model(y: Tensor) -> None:
        if case.net is not None:
            pyro.module("net", case.net)
        at = pyro.sample("at", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(at * case.read(), 1.0).expand([2]).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("at", dist.Delta(pyro.param("start", torch.tensor(0.5)) * case.other()))

    pyro.clear_param_store()
    made = SVI if kind in (None, ELBOS[0]) else CompiledSVI
    elbo = Trace_ELBO(max_plate_nesting=1) if kind is None else CompiledTrace_ELBO(max_plate_nesting=1, compile=False)
    svi = made(case.model or model, case.guide or guide, case.optim(), elbo)
    run = Run(steps, svi=svi, elbo=elbo, leaves=lambda: [leaf for _, leaf in pyro.get_param_store().named_parameters()])
    for step in range(steps):
        changes(case, run, step)
        loss = run.svi.step(Y)
    return [torch.tensor(loss), *(leaf.detach() for leaf in run.leaves())]


def by_loss(case: Case, kind: str | None, steps: int) -> list[Tensor]:
    start = torch.tensor(0.5, requires_grad=True)
    weights = [start, *(case.net.parameters() if case.net is not None else ())]

    def loss(y: Tensor) -> Tensor:
        return (start * case.read() * case.other() - y).square().mean()

    loss, optimizer = loss if kind is None else TracedLoss(loss, weights), torch.optim.Adam(weights, 0.003)
    run = Run(steps, leaves=lambda: weights)
    for step in range(steps):
        changes(case, run, step)
        optimizer.zero_grad()
        value = loss(Y)
        value.backward()
        optimizer.step()
    return [value.detach(), *(w.detach() for w in weights)]


class Decoder(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.linear, self.case = nn.Linear(1, 2), case
        if case.net is not None:
            self.net = case.net

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) * self.case.read() * self.case.other()


class Loader:
    """One batch again and again, before each of which what is due changes."""

    def __init__(self, case: Case, run: Run, steps: int) -> None:
        self.case, self.run, self.steps = case, run, steps

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.steps):
            changes(self.case, self.run, step)
            yield torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])


def by_vae(case: Case, kind: str | None, steps: int) -> list[Tensor]:
    torch.manual_seed(0)
    encoder = FlowEncoder(nn.Linear(2, 4), 4, 1)
    vae = VAE(encoder, Decoder(case), FlowPrior(1, lambda dim: flows.realnvp(dim, layers=1, hidden_dims=(2,))))
    run = Run(steps, leaves=lambda: list(vae.decoder.parameters()))
    log = vae.fit(Loader(case, run, steps), 1, progress=False, trace=kind is not None)
    return [torch.tensor(log.train[-1]), *(p.detach() for p in vae.parameters())]


LOOPS = dict(zip(KINDS, (by_svi, by_svi, by_loss, by_vae), strict=True))


def outcome(case: Case, kind: str, steps: int, expected: list[Tensor]) -> str:
    """What comes of a loop: right, said or silent."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = finished(case, kind, steps)
        except (RuntimeError, ValueError) as error:
            print(f"raised: {kind}, {error}")
            return "said"
    if alike(found, expected, case.tolerance):
        return "right"
    words = "CompiledTrace_ELBO", "CompiledSVI", "TracedLoss"
    return "said" if any(word in str(each.message) for each in caught for word in words) else "silent"


def finished(case: Case, kind: str | None, steps: int, loop: Callable | None = None) -> list[Tensor]:
    """The loss and the parameters after so many steps, plain ones where there is no kind."""
    try:
        return (loop or LOOPS[kind])(case, kind, steps)
    finally:
        case.restore()


def alike(found: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    both = list(zip(found, expected, strict=False))
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a, b.to(a), rtol=tolerance, atol=tolerance, equal_nan=True)
        for a, b in both
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", default="")
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    begin = time.perf_counter()
    for name, make in cases():
        family = name.partition(":")[0]
        if given.only not in name:
            continue
        expected: dict[Callable, list[Tensor]] = {}
        for kind in given.kinds.split(","):
            run = LOOPS[kind]
            if (make().only_svi and run is not by_svi) or (run is by_vae and family not in WITH_VAE):
                continue
            if run not in expected:
                expected[run] = finished(make(), None, given.steps, run)
            found = outcome(make(), kind, given.steps, expected[run])
            counts[family][kind][found] += 1
            if found == "silent" or given.only:
                print(f"{found}: {kind}, {name}", flush=True)
    rows = [
        [family, *(" / ".join(str(found[kind][what]) for what in ("right", "said", "silent")) for kind in KINDS)]
        for family, found in counts.items()
    ]
    print(table(["right / said / silent", *KINDS], rows))
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
