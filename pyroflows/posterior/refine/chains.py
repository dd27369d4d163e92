"""Corrections by Markov chains: Metropolis with the flow as proposal, NUTS in the base space of the flow."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ...arguments import check_counts
from ...guides import AutoFlow
from ...infer import score
from ...model import LogJoint
from ...model.replay import Replay
from ...seeds import seed_of, seeded
from ...training import Threads
from ..chain_diagnostics import ChainDiagnostics
from ..summary import labelled
from .potential import Potential
from .refined import Refined, propose

# r-hat splits each chain in two, and the tails of a chain need a few draws.
LEAST = {"num_draws": 8, "chains": 1, "warmup": 0}
# Gradients that NUTS takes for a draw of a nearly normal target.
GRADIENTS = 7


def imh(guide: AutoFlow, log_joint: LogJoint, *, num_draws: int = 1000, chains: int = 4, warmup: int = 100) -> Refined:
    """Independence Metropolis: the guide proposes, and a proposal is taken by the ratio of the weights.

    All proposals are drawn and scored at once; the chains run side by side.

    Args:
        guide: proposes the draws.
        log_joint: the model's log joint density.
        num_draws: draws kept of each chain.
        chains: how many chains.
        warmup: draws left out at the start of each.

    Raises:
        ValueError: if there are too few draws or chains.

    References:
        Markov Chains for Exploring Posterior Distributions. Tierney, 1994, section 2.3.3.
        https://doi.org/10.1214/aos/1176325750
    """
    check_counts("refine", LEAST, num_draws=num_draws, chains=chains, warmup=warmup)
    steps = warmup + num_draws
    z, log_w = propose(guide, log_joint, steps * chains)
    log_w = np.where(np.isnan(log_w), -np.inf, log_w).reshape(steps, chains)
    path, accepted = walk(log_w, torch.rand(steps, chains, dtype=torch.float64, device="cpu").log().numpy())
    index = torch.as_tensor(path[warmup:].T * chains + np.arange(chains)[:, None], device=z.device)
    weights = np.take_along_axis(log_w, path, 0)
    stats = {"accepted": accepted[warmup:].T, "log_weight": weights[warmup:].T}
    return _refined("imh", log_joint, z[index], stats, stats["accepted"].mean())


def walk(log_weights: NDArray, log_uniform: NDArray) -> tuple[NDArray, NDArray]:
    """Which proposal each chain stands at after each step, and whether it has just moved there.

    Args:
        log_weights: log weights of the proposals, ``(steps, chains)``.
        log_uniform: logs of uniform numbers, ``(steps, chains)``.
    """
    path, accepted = np.zeros(log_weights.shape, dtype=int), np.ones(log_weights.shape, dtype=bool)
    now = log_weights[0]
    with np.errstate(invalid="ignore"):  # from a weight of zero to another
        for step in range(1, len(path)):
            move = log_uniform[step] < log_weights[step] - now
            now = np.where(move, log_weights[step], now)
            path[step], accepted[step] = np.where(move, step, path[step - 1]), move
    return path, accepted


def neutra(
    guide: AutoFlow,
    log_joint: LogJoint,
    *,
    num_draws: int = 1000,
    chains: int = 4,
    warmup: int = 300,
    target_accept: float = 0.8,
    adapt_mass: bool = True,
    max_tree_depth: int = 10,
    compile: bool | None = None,
    progress: bool = False,
) -> Refined:
    """Pyro's NUTS in the base space of the flow, where the posterior is nearly the base; exact in the limit.

    Chains start at draws of the base and run one after another, in the precision of the log joint.

    Args:
        guide: maps the base space to the latents.
        log_joint: the model's log joint density.
        num_draws: draws kept of each chain.
        chains: how many chains.
        warmup: draws of each that adapt the step size and are left out.
        target_accept: mean acceptance that the step size aims at.
        adapt_mass: adapt a diagonal mass matrix; the flow whitens already.
        max_tree_depth: at most two to this power steps a draw.
        compile: compile the gradient; None where that pays.
        progress: show a progress bar for each chain.

    Raises:
        ValueError: if there are too few draws or chains, or ``target_accept`` is not between 0 and 1.

    References:
        NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport. Hoffman et al., 2019.
        https://arxiv.org/abs/1903.03704
    """
    check_counts("refine", LEAST, num_draws=num_draws, chains=chains, warmup=warmup, max_tree_depth=max_tree_depth)
    if not 0 < target_accept < 1:
        raise ValueError(f"refine expected target_accept between 0 and 1, got {target_accept}")
    options = {"adapt_mass_matrix": adapt_mass, "target_accept_prob": target_accept, "max_tree_depth": max_tree_depth}
    starts = guide.get_posterior().base.sample((chains,))
    precise = starts.to(log_joint.space.start)  # as Pyro's mass matrix
    with Threads(partial(_gradient, guide, log_joint)):
        potential = Potential(guide, log_joint, GRADIENTS * chains * (warmup + num_draws), compile)
        found = [_run(NUTS(potential_fn=potential, **options), x, num_draws, warmup, progress) for x in precise]
    x = torch.stack([draws for draws, _ in found]).to(starts)
    stats = {name: np.stack([chain[name] for _, chain in found]) for name in found[0][1]}
    with torch.no_grad():
        z = guide.transform(x)
        stats["lp"] = log_joint(z).cpu().numpy()
    return _refined("neutra", log_joint, z, stats, stats["acceptance_rate"].mean(), stats["diverging"].sum())


def _gradient(guide: AutoFlow, log_joint: LogJoint) -> None:
    """About what each step of a chain takes, from a seed of its own."""
    start = log_joint.space.start
    with seeded(seed_of("the time of a gradient"), start.device):
        score(log_joint, guide.get_posterior().sample((1,)).to(start))


def _run(kernel: NUTS, start: Tensor, num_draws: int, warmup: int, progress: bool) -> tuple[Tensor, dict[str, NDArray]]:
    """One chain: its draws ``(num_draws, D)``, and what is known of each."""
    seen = {}

    def look(kernel: NUTS, *_: object) -> None:  # the kernel forgets when it is done
        seen.update(step_size=float(kernel.step_size), acceptance_rate=float(kernel.logging()["acc. prob"]))

    options: dict[str, Any] = {"warmup_steps": warmup, "disable_progbar": not progress, "hook_fn": look}
    mcmc = MCMC(kernel, num_draws, initial_params={"x": start}, **options)
    mcmc.run()
    diverging = np.zeros(num_draws, dtype=bool)
    diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
    return mcmc.get_samples()["x"], {"diverging": diverging, **{k: np.full(num_draws, v) for k, v in seen.items()}}


def _refined(
    method: str, log_joint: LogJoint, z: Tensor, stats: dict[str, NDArray], acceptance: float, divergences: int = 0
) -> Refined:
    """Chains ``(chains, draws, D)`` with their diagnostics."""
    rows = z.flatten(0, 1)
    values = {**log_joint.constrain(rows), **Replay(log_joint).derived(rows)}
    flat = labelled({name: value.cpu().numpy() for name, value in values.items()})
    scalars = {label: scalar.reshape(z.shape[:2]) for label, scalar in flat}
    return Refined(method, log_joint, z, ChainDiagnostics.of(scalars, float(acceptance), int(divergences)), stats)
