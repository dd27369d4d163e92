"""The page of results: sentences that count, and tables."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from models import POSTERIORS
from timing import table

from .results import Key, Record, chosen

Found = Mapping[Key, Record]
# By posterior, in the order of their seeds.
Fits = Mapping[str, Sequence[Record]]
# Errors and k-hats that are counted.
CLOSE, FAIR, KHAT = 0.05, 0.1, 0.7
TITLE = """# Twenty posteriors

`pyroflows.fit(model, *args)` with nothing but the model and its data, on real posteriors with references, beside Pyro's
guides, zuko and NUTS. dmean and dsd are the largest over a posterior's scalars of |mean difference| / sd and of
|sd ratio - 1|, from 20,000 draws as they are; "weighted" with their PSIS weights. The floor is what as many exact draws
would score in the mean, given the noise of the reference. Seconds are from the start of a process to the posterior,
imports and, from an empty cache, compilers included; judging the draws is not.

References are as published, but for one number: the sd of `m` in `sv` is 1.3356 by quadrature
(`python benchmarks/volatility.py`), not the published 1.187 of Markov chains, which seldom visit its heavy tails."""
FITS = """Medians over the seeds, the worst in brackets. k-hat, sd(log w), ESS/S, ELBO and evidence (by importance
sampling) are from the 20,000 draws."""
PEERS = """Pyro's guides are trained on the models as they are, for the seconds that `fit` took with the same seed:
`Trace_ELBO`, with 64 particles in one batch where that computes the right log joint, else 4 in a loop, as models are
written for one particle; Adam with a rate that falls from 3e-3 to 3e-5, steps that are not finite dropped.
AutoNormalizingFlow has 4 `affine_autoregressive` layers. A guide named "+batched" gets 64 particles on pyroflows'
batched log joint instead, and so does zuko's inverse autoregressive flow of 4 layers, by `ZukoToPyro`. NUTS is Pyro's,
one chain of 1,000 draws after 1,000 of warm-up. For `fit` the medians over the seeds are shown."""


def page(found: Found, note: str = "") -> str:
    """The text of docs/scoreboard.md; ``note`` says what else the reader should know of the runs."""
    names = [name for name in POSTERIORS if any(key[0] == name for key in found)]
    fits = {name: records for name in names if (records := chosen(found, "fit", name))}
    methods = sorted({key[1] for key in found})
    peers, refined = [m for m in methods if "fit" not in m], [m for m in methods if m.startswith("fit+")]
    parts = [TITLE, measured(found), note]
    if fits:
        parts += [
            "## In short",
            summary(fits, found),
            "![Errors against seconds](scoreboard.png)",
            "## The default fit",
        ]
        parts += [FITS, accuracy(fits), "Seconds, medians over the seeds:", times(fits), verdicts(fits)]
    if peers:
        parts += ["## Beside the peers", PEERS, particles(found), "The larger of dmean and dsd:"]
        parts += [grid(names, peers, found, error, 3)]
        parts += ["ELBO in nats:", grid(names, peers, found, lambda r: r.get("elbo"), 3)]
        parts += ["Seconds:", grid(names, peers, found, seconds, 1)]
        parts += ["Steps, of NUTS its draws:", grid(names, peers, found, lambda r: r["steps"], 0)]
    if refined:
        parts += ["## Refined", "The larger of dmean and dsd, and the floor of as many independent draws:"]
        parts += [refinements(names, refined, found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured(found: Found) -> str:
    """When and with what the runs were made."""
    seen = {
        name: sorted({str(r[name]) for r in found.values() if name in r})
        for name in ("date", "torch", "pyro", "threads")
    }
    listed = {name: ", ".join(values) for name, values in seen.items()}
    return (
        f"Measured by `python benchmarks/posteriors.py`, {len(found)} runs, from {seen['date'][0]} to "
        f"{seen['date'][-1]}, with torch {listed['torch']} and Pyro {listed['pyro']} on a CPU, threads: "
        f"{listed['threads']}."
    )


def error(record: Record) -> float:
    """The larger of both errors of the draws as they are."""
    return larger(record, "dmean", "dsd")


def larger(record: Record, *names: str) -> float:
    """The largest of some numbers, infinite if one is not a number."""
    return max(math.inf if math.isnan(record[name]) else record[name] for name in names)


def seconds(record: Record) -> float:
    """From the start of a process to the posterior."""
    return record["seconds"]["total"]


def summary(fits: Fits, found: Found) -> str:
    """Counts of posteriors, by the median over seeds."""

    def count(limit: float, value: Callable[[Record], float]) -> str:
        return f"{sum(median(map(value, records)) <= limit for records in fits.values())} of {len(fits)}"

    def weighted(record: Record) -> float:
        return larger(record, "dmean_weighted", "dsd_weighted")

    below = math.nextafter(KHAT, 0)
    spent = [seconds(record) for records in fits.values() for record in records]
    lines = [
        f"dmean and dsd at most {CLOSE}: {count(CLOSE, error)} posteriors; at most {FAIR}: {count(FAIR, error)}.",
        f"Weighted, at most {CLOSE}: {count(CLOSE, weighted)}; at most {FAIR}: {count(FAIR, weighted)}.",
        f"k-hat below {KHAT}: {count(below, lambda r: r['khat'])}, of the draws behind the verdict: "
        f"{count(below, lambda r: r['khat_seen'])}.",
        *gaps(fits),
        f"Seconds of a fit: median {median(spent):.0f}, most {max(spent):.0f}.",
        *against_nuts(fits, found),
        *unfinished(found),
    ]
    return "\n".join(f"- {text}" for text in lines)


def gaps(fits: Fits) -> list[str]:
    """How far the ELBO is below the evidence, where that is known."""
    known = {name: POSTERIORS[name].log_evidence for name in fits if POSTERIORS[name].log_evidence is not None}
    found = [f"{name} {value - median(r['elbo'] for r in fits[name]):.3f}" for name, value in known.items()]
    return [f"Known log evidence less ELBO, in nats: {', '.join(found)}."] if found else []


def unfinished(found: Found) -> list[str]:
    """Fits without a result, and why."""
    ends = [f"{k[0]}, seed {k[2]}: {r['status']}" for k, r in found.items() if k[1] == "fit" and r["status"] != "done"]
    return [f"Fits without a result: {'; '.join(ends)}."] if ends else []


def against_nuts(fits: Fits, found: Found) -> list[str]:
    """How much longer NUTS takes; where it was cut off, at least."""
    spent = {name: [r for key, r in found.items() if key[:2] == (name, "NUTS") and "seconds" in r] for name in fits}
    ratios = {
        name: median(map(seconds, records)) / median(map(seconds, fits[name]))
        for name, records in spent.items()
        if records
    }
    if not ratios:
        return []
    cut = sum(any(r["status"] != "done" for r in spent[name]) for name in ratios)
    shortest, longest, faster = min(ratios.values()), max(ratios.values()), sum(x > 1 for x in ratios.values())
    return [
        f"NUTS takes {median(ratios.values()):.1f} times the seconds of a fit in the median of {len(ratios)} "
        f"posteriors, from {shortest:.1f} to {longest:.1f}, and more in {faster}; in {cut} it was cut off, and the "
        f"seconds until then count."
    ]


def spread(records: Iterable[Record], name: str, digits: int = 3) -> str:
    """Median and, in brackets, the largest."""
    values = [record[name] for record in records]
    return f"{median(values):.{digits}f} ({max(values):.{digits}f})"


def accuracy(fits: Fits) -> str:
    """One line for each posterior."""
    rows = []
    for name, records in fits.items():
        known, typical = POSTERIORS[name].log_evidence, {k: median(r[k] for r in records) for k in ("elbo", "steps")}
        floors = " / ".join(f"{median(r[f'floor_{k}'] for r in records):.3f}" for k in ("dmean", "dsd"))
        columns = [spread(records, k) for k in ("dmean", "dsd")] + [floors]
        columns += [spread(records, f"{k}_weighted") for k in ("dmean", "dsd")]
        columns += [spread(records, "khat", 2), spread(records, "sd_log_w", 2)]
        columns += [f"{min(r['efficiency'] for r in records):.2f}", f"{typical['elbo']:.3f}"]
        columns += [f"{median(r['log_evidence'] for r in records):.3f}", "" if known is None else f"{known:.3f}"]
        rows.append([name, records[0]["D"], *columns, f"{typical['steps']:.0f}"])
    headers = ["posterior", "D", "dmean", "dsd", "floors", "weighted dmean", "weighted dsd", "k-hat", "sd log w"]
    return table([*headers, "least ESS/S", "ELBO", "log evidence", "known", "steps"], rows)


def times(fits: Fits) -> str:
    """Where the seconds went."""
    laps = list(dict.fromkeys(lap for records in fits.values() for r in records for lap in r["seconds"]))
    rows = []
    for name, records in fits.items():
        spent = [f"{median(r['seconds'].get(lap, 0.0) for r in records):.1f}" for lap in laps]
        worst, cpu = max(map(seconds, records)), median(r["cpu"] for r in records)
        ways = ", ".join(dict.fromkeys(r["speed"].split(",")[0] for r in records))
        rows.append([name, *spent, f"{worst:.1f}", f"{cpu:.1f}", ways])
    return table(["posterior", *laps, "worst total", "CPU", "steps were run"], rows)


def verdicts(fits: Fits) -> str:
    """What users read in each fit that is not called good, and how far off its draws were."""
    rows = [
        [name, r["seed"], f"{error(r):.3f}", r["verdict"]]
        for name, records in fits.items()
        for r in records
        if "good" not in r["verdict"] or error(r) > FAIR
    ]
    text = f'Fits whose verdict is not "good", or with an error above {FAIR}, and what their user reads:'
    return f"{text}\n\n{table(['posterior', 'seed', 'error', 'verdict'], rows)}" if rows else ""


def particles(found: Found) -> str:
    """How the particles of each guide were run."""
    ways = [(key[1], r["particles"]) for key, r in found.items() if "particles" in r]
    counted = {way: ways.count(way) for way in dict.fromkeys(ways)}
    said = "; ".join(f"{method} {way} in {count} runs" for (method, way), count in counted.items())
    return f"Particles: {said}." if said else ""


Value = Callable[[Record], float | None]


def grid(names: Sequence[str], peers: Sequence[str], found: Found, value: Value, digits: int) -> str:
    """One number for each posterior and method."""
    rows = [[name, *(typical(name, method, found, value, digits) for method in ("fit", *peers))] for name in names]
    return table(["posterior", "fit", *peers], rows)


def typical(name: str, method: str, found: Found, value: Value, digits: int) -> str:
    """The median over seeds, or why there is none."""
    values = [v for record in chosen(found, method, name) if (v := value(record)) is not None]
    if values:
        middle = median(values)
        return f"{middle:.{digits}f}" if abs(middle) < 1e4 else f"{middle:.1e}"
    ends = [r.get("reached", r["status"].split(":")[0]) for key, r in found.items() if key[:2] == (name, method)]
    return ", ".join(dict.fromkeys(end for end in ends if end != "done"))


def refinements(names: Sequence[str], methods: Sequence[str], found: Found) -> str:
    """Errors of refined draws, weighted where they have weights, and the seconds with the fit."""

    def best(record: Record) -> float:
        return larger(record, *(n if f"{n}_weighted" not in record else f"{n}_weighted" for n in ("dmean", "dsd")))

    def floor(record: Record) -> float:
        return larger(record, "floor_dmean", "floor_dsd")

    kinds = {"error": (best, 3), "floor": (floor, 3), "seconds": (seconds, 1)}
    columns = {f"{method} {kind}": (method, kinds[kind]) for method in methods for kind in kinds}
    rows = [[name, *(typical(name, m, found, *shown) for m, shown in columns.values())] for name in names]
    return table(["posterior", *columns], rows)
