"""A model that is only a simulator: its posterior learnt from simulations, and its likelihood for Pyro's NUTS.

Two moons, whose posterior is known. C2ST is the accuracy of a network that tells draws from exact ones: 0.5 is best.

python examples/likelihood_free.py [--smoke] [--out .]
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale
from torch import Tensor

from pyroflows import FlowDensity, flows

Simulator = Callable[[Tensor], Tensor]


def crescent(rows: int) -> Tensor:
    angle, radius = torch.pi * (torch.rand(rows) - 0.5), 0.1 + 0.01 * torch.randn(rows)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)


def moons(theta: Tensor) -> Tensor:
    return crescent(len(theta)) + torch.stack([-theta.sum(-1).abs(), theta[:, 1] - theta[:, 0]], -1) / 2**0.5


def moons_posterior(rows: int) -> Tensor:
    """Exact draws for data of zero: the simulator solved for its parameters."""
    across, up = crescent(rows).unbind(-1)
    across = across * (2 * torch.randint(2, (rows,)) - 1)
    return torch.stack([across + up, across - up], -1) / 2**0.5


def learn(values: Tensor, given: Tensor, epochs: int) -> FlowDensity:
    return FlowDensity(partial(flows.nsf, bins=16), epochs=epochs, batch_size=256).fit(values, context=given)


def npe(prior: dist.Distribution, simulate: Simulator, x: Tensor, simulations: int, epochs: int, draws: int) -> Tensor:
    """Neural posterior estimation: ``p(theta | x)`` for all data at once, then draws for the data seen."""
    theta = prior.sample((simulations,))
    drawn = learn(theta, simulate(theta), epochs).sample(draws, context=x)
    return torch.tensor(drawn, dtype=torch.float32)


def snl(
    prior: dist.Distribution, simulate: Simulator, x: Tensor, simulations: int, epochs: int, draws: int, rounds: int = 3
) -> Tensor:
    """Sequential neural likelihood: ``p(x | theta)``, learnt where the rounds before found the posterior."""
    tried = theta = prior.sample((simulations // rounds,))
    seen = simulate(theta)
    for _ in range(rounds - 1):
        theta = nuts(prior, learn(seen, tried, epochs), x, simulations // rounds)
        tried, seen = torch.cat([tried, theta]), torch.cat([seen, simulate(theta)])
    return nuts(prior, learn(seen, tried, epochs), x, draws)


def nuts(prior: dist.Distribution, likelihood: FlowDensity, x: Tensor, draws: int, chains: int = 100) -> Tensor:
    """The posterior under a learnt likelihood: chains side by side, begun at weighted draws of the prior."""

    def model() -> None:
        with pyro.plate("chains", chains):
            theta = pyro.sample("theta", prior)
            pyro.sample("x", likelihood.distribution(theta), obs=x)

    tried = prior.sample((20_000,))
    with torch.no_grad():
        weight = likelihood.distribution(tried).log_prob(x).softmax(0)
    begin = init_to_value(values={"theta": tried[weight.multinomial(chains, replacement=True)]})
    kernel, steps = NUTS(model, init_strategy=begin, max_tree_depth=5), -(-draws // chains)
    mcmc = MCMC(kernel, num_samples=steps, warmup_steps=3 * steps, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["theta"].flatten(0, 1)[-draws:]


def c2st(a: Tensor, b: Tensor) -> float:
    rows, label = scale(torch.cat([a, b]).double().numpy()), np.repeat([0, 1], [len(a), len(b)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return cross_val_score(MLPClassifier((20, 20), max_iter=1000, random_state=0), rows, label, cv=folds).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few simulations, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    simulations, epochs, draws, rounds = (200, 2, 50, 2) if options.smoke else (9000, 40, 2000, 3)
    prior = dist.Uniform(-torch.ones(2), 1.0).to_event(1)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained", sharex=True, sharey=True)
    found = {"exact": moons_posterior(draws)}
    for name, way in (("neural posterior", npe), ("neural likelihood, NUTS", partial(snl, rounds=rounds))):
        found[name] = way(prior, moons, torch.zeros(2), simulations, epochs, draws)
    for ax, (name, theta) in zip(axes, found.items(), strict=True):
        ax.plot(*theta.T, ".", ms=3, alpha=0.4, color="#4c1d95")
        ax.set(title=f"{name}: C2ST {c2st(theta, moons_posterior(draws)):.3f}", aspect="equal", xlabel="parameter 1")
        print(ax.get_title())
    axes[0].set(xlim=(-0.4, 0.4), ylim=(-0.4, 0.4), ylabel="parameter 2")
    figure.savefig(options.out / "likelihood_free.png", dpi=100)
    print(f"wrote {options.out / 'likelihood_free.png'}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    main()
