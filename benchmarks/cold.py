"""Times the first step of CompiledSVI: with the compiler's cache empty, and again in a new process that finds it full.

Each run is a process of its own. Its seconds include tracing and, for processor time, the C++ compiler. Precompiled
headers, which the compiler keeps elsewhere and makes once for each machine, are made beforehand.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from functools import partial

import pyro
import torch
from elbo import WORK, Work, our_flow, pyro_flow, schools, svi_steps
from pyro.distributions.transforms import affine_coupling
from timing import clock, table

from pyroflows import CompiledSVI, CompiledTrace_ELBO, flows

HEADERS = ["guide", "particles", "cold: processor s", "cold: wall s", "warm: processor s", "warm: wall s"]
THEIRS = partial(pyro_flow, affine_coupling, 8)  # not run here
DEEP = [
    Work("8 x realnvp", schools, THEIRS, partial(our_flow, flows.realnvp, 8), 64),
    Work("6 x nsf", schools, THEIRS, partial(our_flow, flows.nsf, 6), 64),
]
ROWS = [*WORK, *DEEP]


def first_step(work: Work, args: argparse.Namespace) -> tuple[float, float]:
    """Processor and wall seconds of the first step."""
    pyro.set_rng_seed(0)
    elbo = CompiledTrace_ELBO(work.particles, strict=True)
    run = svi_steps(CompiledSVI, work, work.ours, elbo, work.data(args))
    before, start = processor(), clock()
    run(1)
    return processor() - before, clock() - start


def processor() -> float:
    """Seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def in_process(row: int, folder: str) -> list[float]:
    """The same in a new process whose compiler keeps its files in a folder."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--row", str(row)]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return [float(word) for word in out.split()[-2:]]


def main() -> None:
    """Prints the table, or, with ``--row``, the seconds of one first step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", type=int, help="only this guide, in this process")
    parser.add_argument("--data", help="CSV file for the regression")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.row is not None:
        print(*first_step(ROWS[args.row], args))
        return
    with tempfile.TemporaryDirectory() as folder:
        in_process(0, folder)  # makes the headers
    lines = []
    for index, work in enumerate(ROWS):
        with tempfile.TemporaryDirectory() as folder:
            lines.append([work.name, work.particles, *in_process(index, folder), *in_process(index, folder)])
    print(table(HEADERS, lines))


if __name__ == "__main__":
    main()
