"""A guide for a few hyperparameters and a latent field that depends on itself: series, walks, processes."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pyro
import torch

from ..compile import TracedDensity
from ..flows.linear import FULL_RANK_LIMIT
from ..guides import AutoFlow
from ..guides.init import prior_spread
from ..infer.nested.field import nested_field
from ..model import LogJoint
from ..posterior import Posterior
from ..seeds import seed_of, seeded
from ..training import Checkpoint, Listener
from .interruptions import is_ended
from .problem import Problem
from .verdict import judged

# Latents from which a field is looked for, numbers of a site that is one, and most hyperparameters.
MANY, LARGE, FEW = 64, 16, 16
# Vectors of a traced density, and most steps: the start is near, and more of them were seen to change nothing.
ROWS, STEPS = 128, 300


def hyperparameters(log_joint: LogJoint) -> list[int]:
    """The places of latents outside of large sites and of steps of ``pyro.markov``; none where there is no field."""
    space, nodes = log_joint.space, log_joint.trace(log_joint.constrain(log_joint.space.start)).nodes
    stepped = {site.name for site in space.sites if nodes[site.name]["infer"].get("_markov_depth")}
    steps = sum(site.size for site in space.sites if site.name in stepped)
    field = {site.name for site in space.sites if site.size >= LARGE or (steps >= LARGE and site.name in stepped)}
    few = [place for s in space.sites if s.name not in field for place in range(s.start, s.stop)]
    return few if field and len(few) <= FEW else []


def field_guide(problem: Problem) -> AutoFlow | None:
    """A guide at the nested Laplace approximation of such a model; None if it is none, or has no such start."""
    guide, density = problem.guide, problem.density
    start = density.space.start
    if not MANY <= guide.latent_dim <= FULL_RANK_LIMIT or start.dtype != torch.float64:
        return None
    if problem.extra or density.plates is not None or not (few := hyperparameters(density)):
        return None
    spread = prior_spread(guide.space, guide.prototype_trace).to(start)
    try:
        with pyro.validation_enabled(False):
            traced = TracedDensity(density, start, ROWS)
            made, _ = nested_field(traced, torch.tensor(few, device=start.device), start, spread)
    except (RuntimeError, TypeError, ValueError):
        return None
    return copy.deepcopy(guide).around(made)


def fitted_field(
    problem: Problem,
    model: Callable,
    args: tuple,
    kwargs: dict,
    listener: Listener,
    saved: Checkpoint,
    progress: bool,
) -> Posterior | None:
    """The posterior of such a model; None if it is none, or a fit that was not ended is not to be trusted."""
    with seeded(seed_of("the field of a model")):  # fits of one flow draw what they would without
        guide = field_guide(problem)
    if guide is None:
        return None
    options = replace(problem.options, guide=guide, steps=min(problem.options.steps, STEPS))
    of_field = Problem(model, args, kwargs, options)
    posterior, _ = of_field.solve(1, (), listener, saved, progress)
    if is_ended(listener, posterior.history):
        return judged(posterior, of_field.around)
    return None if posterior.diagnostics.grade == "do not trust" else posterior
