"""A fit with one thread of torch and with all, while other programs are at work, with and without our choice.

python benchmarks/threads.py [--busy 1] [--limit 120]
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
from statistics import median

from timing import table

FIT = """
import sys, time
from unittest import mock

import pyro
import torch
from elbo import SD, Y, schools

import pyroflows

threads, chosen = map(int, sys.argv[1:])
torch.set_num_threads(threads)
pyro.set_rng_seed(0)
start = time.perf_counter()
with mock.patch.object(torch, "set_num_threads", torch.set_num_threads if chosen else lambda count: None):
    pyroflows.fit(schools, Y, SD, progress=False)
print(time.perf_counter() - start)
"""


def busy() -> None:
    """Keeps a core at work."""
    while True:
        pass


def seconds(threads: int, chosen: bool, limit: float) -> float:
    """Of a fit in a process of its own, at most the limit."""
    command = [sys.executable, "-W", "ignore", "-c", FIT, str(threads), str(int(chosen))]
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    try:
        done = subprocess.run(
            command, env=environment | {"PYTHONPATH": path}, timeout=limit, check=True, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return limit
    return float(done.stdout.split()[-1])


def repeated(threads: int, chosen: bool, args: argparse.Namespace) -> str:
    """The median of some fits."""
    found = median(seconds(threads, chosen, args.limit) for _ in range(args.repeats))
    return f"{found:.1f}" if found < args.limit else f"over {found:.0f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=1, help="most programs beside the fit")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a fit is broken off")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    most, lines = os.cpu_count() or 1, []
    for others in range(args.busy + 1):
        crowd = [multiprocessing.Process(target=busy, daemon=True) for _ in range(others)]
        for process in crowd:
            process.start()
        lines += [
            [others, threads, *(repeated(threads, chosen, args) for chosen in (False, True))] for threads in (1, most)
        ]
        for process in crowd:
            process.kill()
    print(table(["busy programs", "threads", "as they are, s", "chosen, s"], lines))


if __name__ == "__main__":
    main()
