"""Twenty real posteriors: ``fit`` with its defaults beside Pyro's guides, zuko and NUTS, against references.

Every run is a process of its own, so that its seconds include imports and, from an empty cache, compilers. Results are
lines of JSON; what is there is not run again, so that all can be interrupted at any time: give another file to
``--results``, or ``--again``, to measure anew. At the end docs/scoreboard.md and its picture are written from all
results. Peers get the seconds that ``fit`` took with the same seed.

    python benchmarks/posteriors.py --data ../shared/data [--only kilp earn] [--methods fit NUTS] [--report-only]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

from models import POSTERIORS
from scoreboard import pictures, table
from scoreboard.results import Key, Record, append, missing, read

HERE = Path(__file__).parent
# Methods with their seeds; those on a batched log joint run when they are asked for by name.
FIT = {"fit": (0, 1, 2), "fit+importance": (0, 1, 2), "fit+neutra": (0, 1, 2)}
GUIDES = ("AutoDiagonalNormal", "AutoMultivariateNormal", "AutoNormalizingFlow", "AutoIAFNormal")
METHODS = FIT | {"NUTS": (0,)} | dict.fromkeys(GUIDES, (0,)) | {"zuko": (0,)}
ON_REQUEST = {f"{name}+batched": (0,) for name in GUIDES}
BY_HAND = ("eight_c", "german")
# Seconds for judging draws, which no limit counts.
GRACE = 300


def wanted(options: argparse.Namespace) -> list[Key]:
    """All runs that are asked for, those that share a process side by side, ``fit`` first: others get its seconds."""
    seeds = {m: options.seeds or s for m, s in (METHODS | ON_REQUEST).items() if m in options.methods}
    keys = [
        (posterior, method, seed)
        for method in seeds
        for posterior in options.only
        for seed in seeds[method]
        if method != "zuko" or posterior in BY_HAND
    ]
    return sorted(keys, key=lambda key: (key[1] not in FIT, options.only.index(key[0]), process(key)))


def process(key: Key) -> tuple[str, str, int]:
    """Runs that share a process: a fit and what refines it."""
    posterior, method, seed = key
    return posterior, "fit" if method in FIT else method, seed


def run(keys: list[Key], options: argparse.Namespace) -> None:
    """One process for runs that share it; what it leaves without a result is not finished, or has failed."""
    (posterior, method, seed), before = process(keys[0]), read(options.results)
    budget = options.seconds or before.get((posterior, "fit", seed), {}).get("seconds", {}).get("total", 0.0)
    if method not in (*FIT, "NUTS") and not budget:
        print(f"{posterior} {method} {seed}: needs a result of fit, or --seconds", flush=True)
        return
    given = {"posterior": posterior, "seed": seed, "data": options.data, "results": options.results.resolve()}
    given |= {"budget": budget, "limit": options.limit, "threads": options.threads}
    command = [sys.executable, "-m", "scoreboard.run", "--methods", *(key[1] for key in keys)]
    command += [text for name, value in given.items() for text in (f"--{name}", str(value))]
    limit = options.limit * len(keys) + GRACE
    with tempfile.TemporaryDirectory() as cache:
        try:
            subprocess.run([*command, f"--began={time.time()}"], env=environment(options, cache), timeout=limit)
            end = {"status": "failed: the process died"}
        except subprocess.TimeoutExpired:
            end = {"status": "not finished", "seconds": {"total": limit}}
    after = read(options.results)
    for key in keys:
        if after.get(key) == before.get(key):
            names = dict(zip(("posterior", "method", "seed"), key, strict=True))
            append(options.results, names | end)
        print(line(read(options.results)[key]), flush=True)


def environment(options: argparse.Namespace, cache: str) -> dict[str, str]:
    """One place to import from, a number of threads, no warnings, and no compiled code of earlier runs."""
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")]))
    threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "MKL")}
    return os.environ | threads | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "TORCHINDUCTOR_CACHE_DIR": cache}


def line(record: Record) -> str:
    """One result for those who watch."""
    text = "{posterior} {method} {seed}: {status}".format(**record)
    if record["status"] != "done":
        return text
    return text + ", {0:.0f} s, dmean {dmean:.3f}, dsd {dsd:.3f}".format(record["seconds"]["total"], **record)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "posteriors.jsonl")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where the page is written")
    parser.add_argument("--only", nargs="+", default=list(POSTERIORS), choices=POSTERIORS, metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS | ON_REQUEST, metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, help="of all methods, by default 0 1 2 of fit and 0 of others")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one run")
    parser.add_argument("--seconds", type=float, help="seconds of the peers, by default those of fit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    parser.add_argument("--note", default="", help="a sentence for the page, as on the load of the machine")
    parser.add_argument("--report-only", action="store_true")
    return parser.parse_args(arguments)


def main() -> None:
    """Runs what is missing, then writes the page."""
    options = parsed()
    keys = [] if options.report_only else wanted(options)
    if keys and not (Path(options.data) / "posteriordb").is_dir():
        print(f"nothing to run: no data in {options.data}")
        keys = []
    if not options.again:
        keys = missing(keys, read(options.results))
    for _, shared in groupby(keys, key=process):
        run(list(shared), options)
    found = read(options.results)
    if found:
        (options.docs / "scoreboard.md").write_text(table.page(found, options.note))
        pictures.errors_against_seconds(found, options.docs / "scoreboard.png")


if __name__ == "__main__":
    main()
