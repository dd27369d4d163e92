"""Posteriors with known answers: log evidence, means or masses of modes, by ``fit`` alone and by its remedies.

Each target is fitted with no argument but the model; where modes are missed also with ``modes=8``, and the wells
by annealing, after which the same guide learns by the forward KL divergence. Errors, of the draws as they are and
of the weighted ones, are those of a mean in standard deviations (funnel, banana) or of the mass of a right well.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import pyro
import torch
from targets import TARGETS, Target, energy
from timing import table

import pyroflows as pf
from pyroflows.infer import Annealed, ForwardKL

SPLINES = partial(pf.flows.nsf, layers=2)
VARIANTS: dict[str, tuple[str, ...]] = {
    "": tuple(TARGETS),
    "modes=8": ("U1", "double well", "many well"),
    "Annealed(), nsf": ("double well", "many well"),
    "then ForwardKL()": ("double well", "many well"),
}
COLUMNS = ("target", "arguments", "ELBO - log Z", "evidence - log Z", "k-hat", "sd(log w)", "error", "told")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--picture", type=Path, help="where to draw U1 to U4, for example docs/synthetic.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), seed {args.seed}, at most {args.steps} steps\n")
    rows, best, last = [], {}, {}
    for variant, names in VARIANTS.items():
        for name in args.targets:
            if name in names:
                cells, last[name] = run(TARGETS[name], variant, last.get(name), args.seed, args.steps)
                posterior = last[name]
                best[name] = max(best.get(name, posterior), posterior, key=lambda found: found.diagnostics.elbo)
                rows.append(cells)
                print(*cells, sep=" | ", flush=True)
    print("\n" + table((*COLUMNS, "steps", "seconds"), rows))
    if args.picture:
        draw({name: found for name, found in best.items() if name.startswith("U")}, args.picture)


def run(target: Target, variant: str, last: pf.Posterior | None, seed: int, steps: int) -> tuple[tuple, pf.Posterior]:
    """One line of the table, and the posterior; the last one is trained further where the variant says so."""
    pyro.set_rng_seed(seed)
    options: dict[str, dict] = {
        "": {},
        "modes=8": {"modes": 8},
        "Annealed(), nsf": {"flow": SPLINES, "objective": Annealed()},
        "then ForwardKL()": {"objective": ForwardKL(), "num_particles": 512, "lr": 1e-3},
    }
    if variant == "then ForwardKL()":
        options[variant]["guide"], steps = last.guide, steps // 5
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        posterior = pf.fit(target.model, steps=steps, progress=False, **options[variant])
    seconds, found = time.perf_counter() - began, posterior.diagnostics
    weights = torch.as_tensor(posterior.weights, dtype=torch.float64)
    errors = ""
    if target.error is not None:
        raw, weighted = (
            target.error(posterior.draws, w) for w in (torch.full_like(weights, 1 / len(weights)), weights)
        )
        errors = f"{raw:.3f}, weighted {weighted:.3f}"
    modes = "yes" if any("there is mass around" in str(warning.message) for warning in told) else "no"
    quality = found.elbo - target.log_z, found.log_evidence - target.log_z
    spreads = (f"{x:.3g}" for x in (found.khat, found.log_weight_sd))
    cells = *(f"{x:+.3f}" for x in quality), *spreads, errors, modes
    return (target.name, variant, *cells, len(posterior.history.elbo), round(seconds)), posterior


def draw(posteriors: dict[str, pf.Posterior], path: Path) -> None:
    """Exact densities above, the flows' below."""
    import matplotlib.pyplot as plt

    side = torch.linspace(-4, 4, 200)
    grid = torch.cartesian_prod(side, side)
    figure, axes = plt.subplots(
        2, len(posteriors), figsize=(2 * len(posteriors), 4.1), layout="constrained", squeeze=False
    )
    for column, (name, posterior) in zip(axes.T, posteriors.items(), strict=True):
        inside = grid.clamp(-4 + 1e-4, 4 - 1e-4)
        exact = (-energy(name, inside) - TARGETS[name].log_z).exp()
        images = {f"{name}, exact": exact, "flow": posterior.log_prob({"z": inside}).exp()}
        for axis, (title, image) in zip(column, images.items(), strict=True):
            axis.imshow(image.view(200, 200).T, origin="lower", extent=(-4, 4, -4, 4), cmap="magma", vmax=exact.max())
            axis.set(xticks=(), yticks=(), title=title)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
