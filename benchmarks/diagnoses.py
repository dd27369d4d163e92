"""What ``fit`` says is wrong with models: nothing of 40 proper ones, something of 10 improper or cut ones.

Fits are short, so that grades are bad and the log joints are looked at. Each is a line: the model, whether it is
proper, its grade, and what was said: "improper", "misses" or "not finite". Twenty of the proper ones are the posteriors
of the scoreboard, whose data are not ours; they are left out where there are none.

    python benchmarks/diagnoses.py [--data ../shared/data] [--models hier eight_c ...] [--steps 50]
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import pyro
import pyro.distributions as dist
import torch
from models import POSTERIORS
from torch import Tensor

import pyroflows

Model = Callable[[], None]
SAID = {"improper": "improper", "misses": "The gradient of", "not finite": "The log density of"}
FLAT = dist.ImproperUniform(dist.constraints.real, (), ())
Y = torch.tensor([1.0, 2.0, 4.0, 3.0, 2.5, 0.5, -1.0, 1.2])
X = torch.stack([torch.ones(8), torch.linspace(-1.0, 1.0, 8)], dim=-1)


def one(prior: dist.Distribution, likelihood: Callable[[Tensor], Tensor]) -> Model:
    """A latent ``x`` and a factor."""

    def model() -> None:
        pyro.factor("f", likelihood(pyro.sample("x", prior)).sum())

    return model


def about(data: float, sd: float = 1.0) -> Callable[[Tensor], Tensor]:
    """A normal datum."""
    return lambda x: dist.Normal(x, sd).log_prob(torch.tensor(data))


def effects(kind: str, centred: bool, scale: dist.Distribution) -> Model:
    """Eight groups with effects of one or two dimensions, whose scales are learnt."""

    def model() -> None:
        size = 1 if kind == "normal" else 2
        tau = pyro.sample("tau", scale.expand([size]).to_event(1))
        root = tau.diag_embed()
        if kind == "lkj":
            root = tau[:, None] * pyro.sample("corr", dist.LKJCholesky(2, 2.0))
        prior = dist.MultivariateNormal(torch.zeros(size), scale_tril=root if centred else torch.eye(size))
        with pyro.plate("row", len(Y)):
            e = pyro.sample("e", prior)
            e = e if centred else e @ root.mT
            pyro.sample("y", dist.Normal(e.sum(-1), 1.0), obs=Y)

    return model


def mixture(sd: float) -> Model:
    """Two normals of which only the locations are learnt."""

    def model() -> None:
        at = pyro.sample("at", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        parts = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(at, sd))
        pyro.sample("y", parts.expand([8]).to_event(1), obs=4 * Y.sign() + 0.3 * sd * Y)

    return model


def regression(prior: dist.Distribution, columns: Tensor, bernoulli: bool = False) -> Model:
    """Normal data, or whether they are larger than two, which the second column separates in the end."""

    def model() -> None:
        w = pyro.sample("w", prior.expand([columns.shape[1]]).to_event(1))
        mean = columns @ w
        if bernoulli:
            pyro.sample("y", dist.Bernoulli(logits=mean).to_event(1), obs=(columns[:, 1] > 0).to(mean))
        else:
            pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=Y.to(mean))

    return model


def flat(*shape: int) -> Model:
    """Nothing is said of a site."""

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("free", dist.ImproperUniform(dist.constraints.positive if shape else FLAT.support, shape, ()))

    return model


def creeping() -> None:
    """The prior 1 / tau of a hierarchy's scale, which holds infinite mass at zero."""
    tau = pyro.sample("log tau", FLAT).exp()
    with pyro.plate("row", 4):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(tau * effect, 1.0), obs=torch.tensor([0.1, 0.5, -0.3, 1.0]))


HALF = dist.HalfNormal(1.0)
WIDER = {"half-Cauchy": dist.HalfCauchy(5.0), "log-normal": dist.LogNormal(0.0, 1.0)}
KINDS = ("normal", "mvn", "lkj")
UNIT = dist.Normal(0.0, 1.0)
SEPARATED = torch.stack([torch.ones(8), torch.linspace(-2.0, 2.0, 8)], dim=-1)
PROPER = {
    **{f"centred, {kind}": effects(kind, True, HALF) for kind in KINDS},
    **{f"non-centred, {kind}": effects(kind, False, HALF) for kind in KINDS},
    **{f"centred, {name}": effects("normal", True, prior) for name, prior in WIDER.items()},
    **{f"mixture, sd {sd}": mixture(sd) for sd in (1.0, 0.1)},
    "y = 1e15": one(UNIT, about(1e15)),
    "y = 1e6": one(UNIT, about(1e6)),
    "prior 1e12": one(dist.Normal(0.0, 1e12), lambda x: 0 * x),
    "prior 1e12, data": one(dist.Normal(0.0, 1e12), about(3.0)),
    "prior 1e-12": one(dist.Normal(0.0, 1e-12), about(3.0)),
    "Cauchy 1e6": one(dist.Cauchy(0.0, 1e6), lambda x: 0 * x),
    "kink": one(UNIT, lambda x: -5 * x.abs()),
    "collinear, prior": regression(dist.Normal(0.0, 1e4), torch.cat([X, X[:, :1]], -1)),
    "separated, prior": regression(dist.Normal(0.0, 100.0), SEPARATED, bernoulli=True),
    "steep": one(UNIT, lambda x: -3 * (1e4 * x).sigmoid()),
}
FAULTY = {
    "flat": flat(),
    "flat and positive": flat(2),
    "rising": one(FLAT, lambda x: x),
    "collinear": regression(FLAT, torch.cat([X, X[:, :1]], -1)),
    "separated": regression(FLAT, SEPARATED, bernoulli=True),
    "scale to zero": creeping,
    "detach": one(UNIT, lambda x: -((x.detach() - 1) ** 2)),
    "rounding": one(UNIT, lambda x: -2 * x.floor().abs()),
    "step": one(UNIT, lambda x: torch.where(x > 0, 0.0, -2.0)),
    "half detached": one(UNIT, lambda x: -(x - 1) * (x.detach() - 1)),
}


def said(model: Callable, args: tuple, steps: int) -> tuple[str, list[str]]:
    """The grade of a short fit, or the error that it ends in, and what it says is wrong."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            options = {"steps": steps, "num_particles": 8, "progress": False, "compile": False}
            grade = pyroflows.fit(model, *args, **options).diagnostics.grade
            text = ""
        except (ValueError, FloatingPointError) as error:
            grade, text = type(error).__name__, str(error)
    text += " ".join(str(warning.message) for warning in caught)
    return grade, [name for name, words in SAID.items() if words in text]


def cases(data: Path) -> Iterator[tuple[str, bool, Callable[[], tuple[Callable, tuple]], bool]]:
    """Names, whether they are proper and whole, what gives models and arguments, whether in double precision."""
    for proper, models in ((True, PROPER), (False, FAULTY)):
        for name, model in models.items():
            yield name, proper, lambda model=model: (model, ()), False
    for name, posterior in POSTERIORS.items() if data.is_dir() else ():
        yield name, True, lambda posterior=posterior: posterior.load(data), True


def main() -> None:
    """Prints the table and counts what is wrong in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("PYROFLOWS_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--models", nargs="*", help="names, all by default")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, false, missed = [0, 0], [], []
    print(f"{'model':24}{'proper':8}{'grade':24}{'seconds':>8}  said")
    for name, proper, load, double in cases(options.data):
        if options.models and name not in options.models:
            continue
        torch.set_default_dtype(torch.float64 if double else torch.float32)
        model, args = load()
        began = perf_counter()
        grade, found = said(model, args, options.steps)
        count[proper] += 1
        if bool(found) == proper:
            (false if proper else missed).append(name)
        print(f"{name:24}{proper!s:8}{grade:24}{perf_counter() - began:8.0f}  {', '.join(found) or '-'}", flush=True)
    print(f"\nfalse: {len(false)} of {count[1]} {false}; missed: {len(missed)} of {count[0]} {missed}")


if __name__ == "__main__":
    main()
