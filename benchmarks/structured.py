"""``fit`` on models with plates against exact answers, and against NUTS of NumPyro where there are none.

Each fit and each run of NUTS is a process of its own, with empty caches; its seconds are those of the processor from
its start to the printed summary, imports and compilers included. NUTS is 4 x (1,000 + 1,000), one chain after the
other, in double precision; what it found is kept in ``results/structured_nuts.json``, and run again with ``--nuts``.

    python benchmarks/structured.py [--only normal100,radon] [--seeds 0,1] [--nuts]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from jax_process import python
from structured_models import CASES, Case, Moments, as_arrays, chosen
from timing import table

import pyroflows as pf

HERE = Path(__file__).parent
KEPT = HERE / "results" / "structured_nuts.json"
# Draws of the globals, and of rows whose moments are not known given the globals; and corrected draws.
DRAWS, REFINED = 20_000, 2000
EXACT_HEADERS = [
    "model",
    "seed",
    "grade",
    "sd(log w)",
    "evidence - ELBO",
    "globals: worst mean, sd",
    "rows: worst mean, sd",
    "rows: rms mean, sd",
    "fit s",
    "NUTS s",
    "fit / NUTS",
    "NUTS, globals: worst mean, sd",
    "NUTS, rows: worst mean, sd",
]
NUTS_HEADERS = [
    "model",
    "seed",
    "draws",
    "grade",
    "globals: worst mean, sd",
    "globals: rms mean, sd",
    "rows: worst mean, sd",
    "rows: rms mean, sd",
    "fit s",
    "NUTS s",
    "fit / NUTS",
    "NUTS: least ESS of globals, of rows",
]


def compared(found: Moments, true: Moments, names: Iterable[str]) -> dict[str, float]:
    """Errors of means in sds and of sds as ``|ratio - 1|``, worst and root mean square over all numbers of sites."""
    means, ratios = [], []
    for name in names:
        (mean, sd), (true_mean, true_sd) = found[name], true[name]
        free = np.asarray(true_sd) > 1e-8  # the first row of a Cholesky factor of correlations is constant
        means.append(np.abs(mean - true_mean)[free] / true_sd[free])
        ratios.append(np.abs(sd[free] / true_sd[free] - 1))
    mean, ratio = np.concatenate(means), np.concatenate(ratios)
    rms = [float(np.sqrt(np.mean(part**2))) for part in (mean, ratio)]
    return {"mean": float(mean.max()), "sd": float(ratio.max()), "rms mean": rms[0], "rms sd": rms[1]}


def both(found: Moments, true: Moments, rows: Iterable[str]) -> dict[str, dict[str, float]]:
    """The errors of globals and of rows."""
    return {
        "globals": compared(found, true, [name for name in true if name not in rows]),
        "rows": compared(found, true, rows),
    }


def raw(posterior: pf.PlatePosterior | pf.Posterior, case: Case, outer: list[str]) -> Moments:
    """Moments of the draws as they are."""
    chosen = {"sites": [*outer, *(case.rows if case.drawn else ())]}
    by_plate = isinstance(posterior, pf.PlatePosterior)
    draws = posterior.sample(DRAWS, seed=1, **(chosen if by_plate else {}))
    found = {name: (v.mean(0), v.std(0)) for name, v in draws.items()}
    found |= {} if case.drawn else posterior.moments(weighted=False)
    return {name: (mean.cpu().numpy(), sd.cpu().numpy()) for name, (mean, sd) in found.items()}


def corrected(posterior: pf.PlatePosterior | pf.Posterior, outer: list[str]) -> Moments:
    """Moments by weights, from refined draws where the model can be seen as a whole."""
    if not (isinstance(posterior, pf.PlatePosterior) and posterior.structure.is_subsampled):
        draws = posterior.refine("resample", num_draws=REFINED).sample(REFINED, seed=2)
        return {name: (v.mean(0).cpu().numpy(), v.std(0).cpu().numpy()) for name, v in draws.items()}
    lines = posterior.summary(weighted=True).rows
    found = {name: tuple(np.asarray(lines[name][part]) for part in ("mean", "sd")) for name in outer}
    rows = posterior.moments(weighted=True)
    return found | {name: (mean.cpu().numpy(), sd.cpu().numpy()) for name, (mean, sd) in rows.items()}


def fitted(name: str, seed: int, start: float) -> tuple[dict[str, Any], Moments, Moments | None]:
    """Fits and prints a summary: what was seen, moments of draws as they are, and corrected ones."""
    case = CASES[name]
    pyro.set_rng_seed(seed)
    began = time.time()
    posterior = pf.fit(case.model, *case.data().values(), **case.options, progress=False)
    fit_seconds = time.time() - began
    print(posterior.summary())
    seconds, processor = time.time() - start, processor_seconds()
    outer = [name for name in posterior.sample(2) if name not in case.rows]
    found = posterior.diagnostics
    seen = {"seconds": seconds, "processor": processor, "fit seconds": fit_seconds, "grade": found.grade}
    seen |= {"elbo": found.elbo, "evidence error": found.log_evidence_error}
    seen |= {"error": found.elbo_error, "evidence": found.log_evidence, "sd": found.log_weight_sd}
    seen |= {"khat": found.khat, "each": getattr(found, "each", 1), "steps": len(posterior.history.elbo)}
    better = corrected(posterior, outer) if found.grade != "good" else None
    seen |= {"all seconds": time.time() - start, "all processor": processor_seconds()}
    return seen, raw(posterior, case, outer), better


def processor_seconds() -> float:
    """Seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def worker(name: str, seed: int, start: float, answer: str) -> None:
    """One fit in this process; writes what the parent reads."""
    seen, *moments = fitted(name, seed, start)
    arrays = {
        f"{kind}:{part}:{site}": value
        for kind, found in zip(("raw", "better"), moments, strict=True)
        for site, pair in (found or {}).items()
        for part, value in zip(("mean", "sd"), pair, strict=True)
    }
    np.savez(answer, seen=json.dumps(seen), **arrays)


def unpacked(arrays: dict[str, np.ndarray], kind: str) -> Moments:
    """Moments that were written under names as ``raw:mean:theta``."""
    sites = [key.split(":")[2] for key in arrays if key.startswith(f"{kind}:mean:")]
    return {site: (arrays[f"{kind}:mean:{site}"], arrays[f"{kind}:sd:{site}"]) for site in sites}


def in_process(name: str, seed: int) -> tuple[dict[str, Any], Moments, Moments]:
    """A fit in a new process, whose compiler has an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        answer = f"{folder}/answer.npz"
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        command = [sys.executable, "-W", "ignore", __file__, "--worker", name, str(seed), str(time.time()), answer]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with np.load(answer) as loaded:
            arrays = dict(loaded)
    return json.loads(str(arrays["seen"])), unpacked(arrays, "raw"), unpacked(arrays, "better")


def nuts(name: str, again: bool) -> dict[str, Any]:
    """What NUTS found, from the file of results unless it is missing there or to be run again."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if again or name not in kept:
        kept[name] = run_nuts(CASES[name])
        KEPT.write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(kept[key])}" for key in kept) + "\n}\n")
    return kept[name]


def run_nuts(case: Case) -> dict[str, Any]:
    """Runs it in its own environment."""
    limits = {key: "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {**os.environ, **limits, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        data, answer = f"{folder}/data.npz", f"{folder}/answer.npz"
        np.savez(data, **as_arrays(case.data()))
        interpreter, script = str(python()), str(HERE / "structured_nuts.py")
        command = [interpreter, "-W", "ignore", script, case.family, data, answer]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with np.load(answer) as loaded:
            return summarized(dict(loaded), case)


def summarized(arrays: dict[str, np.ndarray], case: Case) -> dict[str, Any]:
    """What is kept of a run: few digits of means and sds, and the least effective draws."""
    sites = [key[5:] for key in arrays if key.startswith("mean:")]
    sites = [site for site in sites if site != "raw" and not site.endswith("_decentered")]  # of non-centred models
    ess = {site: float(np.nanmin(arrays[f"ess:{site}"])) for site in sites}
    return {
        "date": str(date.today()),
        "processor": round(float(arrays["processor"]), 1),
        "divergences": int(arrays["divergences"]),
        "rhat": round(max(float(np.nanmax(arrays[f"rhat:{site}"])) for site in sites), 4),
        "ess globals": round(min(ess[site] for site in sites if site not in case.rows)),
        "ess rows": round(min(ess[site] for site in sites if site in case.rows)),
        "mean": {site: np.vectorize(_short)(arrays[f"mean:{site}"]).tolist() for site in sites},
        "sd": {site: np.vectorize(_short)(arrays[f"sd:{site}"]).tolist() for site in sites},
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def reference(kept: dict[str, Any], case: Case) -> Moments:
    """The means and sds of NUTS of the sites of the model, in its order."""
    return {site: (np.asarray(kept["mean"][site]), np.asarray(kept["sd"][site])) for site in kept["mean"]}


def pair(errors: dict[str, float], of: str = "") -> str:
    """A cell with the error of means and the one of sds."""
    return f"{errors[f'{of}mean']:.3f}, {errors[f'{of}sd']:.3f}"


def exact_lines(name: str, seeds: list[int], again: bool) -> Iterable[list[object]]:
    """Rows of the table of models with exact answers."""
    case = CASES[name]
    true, evidence = case.exact(case.data())
    kept = nuts(name, again) if case.nuts else None
    theirs = both(reference(kept, case), true, case.rows) if kept else {}
    last = [pair(theirs[where]) if kept else "" for where in ("globals", "rows")]
    for seed in seeds:
        seen, found, better = in_process(name, seed)
        log(name, seed, seen)
        gap = f"{evidence - seen['elbo']:.4f} ± {seen['error']:.4f}"
        for kind, moments in (("", found), (", weighted", better)):
            if moments:
                errors = cells(both(moments, true, case.rows))
                start = [f"{case.label}{kind}", seed, seen["grade"], seen["sd"], gap, errors[0], *errors[2:]]
                yield [*start, *times(seen, kept, "all " if kind else ""), *last]


def nuts_lines(name: str, seeds: list[int], again: bool) -> Iterable[list[object]]:
    """Rows of the table of models that are compared with NUTS."""
    case = CASES[name]
    kept = nuts(name, again)
    true = reference(kept, case)
    ess = f"{kept['ess globals']}, {kept['ess rows']}"
    for seed in seeds:
        seen, found, better = in_process(name, seed)
        log(name, seed, seen)
        for kind, moments in (("as they are", found), ("refined", better)):
            if moments:
                errors = cells(both(moments, true, case.rows))
                spent = times(seen, kept, "all " if kind == "refined" else "")
                yield [case.label, seed, kind, seen["grade"], *errors, *spent, ess]


def times(seen: dict[str, Any], kept: dict[str, Any] | None, of: str) -> list[object]:
    """Processor seconds of the fit, of NUTS, and their ratio: other programs lengthen them less than a clock's."""
    ours = float(seen[f"{of}processor"])
    return [ours, kept["processor"], ours / kept["processor"]] if kept else [ours, "", ""]


def cells(errors: dict[str, dict[str, float]]) -> list[str]:
    """Worst and root mean square errors of globals, then of rows."""
    return [pair(errors[where], of) for where in ("globals", "rows") for of in ("", "rms ")]


def log(name: str, seed: int, seen: dict[str, Any]) -> None:
    """Says on stderr what a fit saw."""
    print(f"{name} seed {seed}: {json.dumps(seen)}", file=sys.stderr, flush=True)


def main() -> None:
    """Prints the tables, or, with ``--worker``, is one fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"some of {','.join(CASES)}")
    parser.add_argument("--seeds", default="0", help="seeds of the fit; the data are always the same")
    parser.add_argument("--nuts", action="store_true", help="run NUTS again")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, seed, start, answer = args.worker
        worker(name, int(seed), float(start), answer)
        return
    seeds, names = [int(seed) for seed in args.seeds.split(",")], chosen(args.only)
    exact = [line for name in names if CASES[name].exact for line in exact_lines(name, seeds, args.nuts)]
    others = [line for name in names if not CASES[name].exact for line in nuts_lines(name, seeds, args.nuts)]
    for headers, lines in ((EXACT_HEADERS, exact), (NUTS_HEADERS, others)):
        if lines:
            print(table(headers, lines), end="\n\n")


if __name__ == "__main__":
    main()
