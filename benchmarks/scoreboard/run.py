"""One run in a process of its own, started by ``posteriors.py``: appends its results to a file.

Only ``fit`` and what refines it share a process: they share the fit.
"""

import argparse
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
from check_models import density_of
from models import POSTERIORS

from . import nuts, own, peers
from .clock import Clock
from .metrics import Draws, judge, kurtosis
from .results import append


def runs(options: argparse.Namespace, clock: Clock) -> Iterator[own.Found]:
    """Each method with its clock, its draws and what is known of its run."""
    posterior, name = POSTERIORS[options.posterior], options.methods[0]
    if name in (own.FIT, *own.REFINED):
        yield from own.run(*posterior.load(options.data), clock, options.methods)
        return
    density = density_of(posterior, options.data)
    if name == "NUTS":
        found = nuts.run(density, clock, options.limit)
    elif name == "zuko":
        found = peers.zuko(density, clock, options.budget)
    else:
        found = peers.guide(name, density, clock, options.budget)
    yield name, clock, *found


def judged(name: str, data: str, draws: Draws) -> dict[str, Any]:
    """The metrics of draws from a posterior."""
    posterior = POSTERIORS[name]
    args, density = posterior.load(data)[1], density_of(posterior, data)
    known = posterior.reference_draws(data)
    tails = {} if known is None else kurtosis(posterior.quantities(known, *args))
    tails |= {name: value for name, (*_, value) in posterior.exact.items()}

    def quantities(z: torch.Tensor) -> dict[str, torch.Tensor]:
        return posterior.quantities(density.constrain(z), *args)

    return {"D": density.size, **judge(draws, density, quantities, posterior.reference(data), tails)}


def main() -> None:
    """Runs the methods and appends a record for each, whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--began", type=float, required=True, help="time.time() before the process was started")
    parser.add_argument("--posterior", required=True)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=0.0, help="seconds of training, from the start of the process")
    parser.add_argument("--limit", type=float, required=True, help="seconds after which NUTS is not finished")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    clock = Clock(options.began)
    clock.lap("import")
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(options.seed)
    base = {"posterior": options.posterior, "seed": options.seed, "threads": options.threads}
    base |= {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "torch": torch.__version__, "pyro": version("pyro-ppl")}
    left, status = list(options.methods), "done"
    try:
        for method, timed, draws, facts in runs(options, clock):
            record = base | {"method": method, "status": "done", **timed.record(), **facts}
            append(options.results, record | judged(options.posterior, options.data, draws))
            left.remove(method)
    except nuts.NotFinished as reached:
        status, base = "not finished", base | {"reached": str(reached), **clock.record()}
    except Exception as error:
        status = f"failed: {type(error).__name__}: {error}".splitlines()[0]
    for method in left:
        append(options.results, base | {"method": method, "status": status})


if __name__ == "__main__":
    main()
