"""A guide for a few hyperparameters and a latent field that depends on itself: series, walks, processes."""

from collections.abc import Callable
from dataclasses import replace

import pyro
import torch

from ..compile import TracedDensity, Untraceable
from ..flows.linear import FULL_RANK_LIMIT
from ..guides import AutoFlow
from ..guides.init import prior_spread
from ..infer.nested.field import nested_field
from ..model import LogJoint
from ..posterior import Posterior
from ..seeds import seed_of, seeded
from ..training import Checkpoint, Listener
from ..transforms import Affine
from .interruptions import is_ended
from .precision import wide_log_joint
from .problem import Options, Problem
from .start import model_parameters
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


def field_guide(model: Callable, args: tuple, kwargs: dict, init_loc_fn: Callable, precision: str) -> AutoFlow | None:
    """A guide at the nested Laplace approximation of such a model; None if it is none, or has no such start."""
    try:
        guide = AutoFlow(model, Affine, init_loc_fn=init_loc_fn).setup(*args, **kwargs)
        size = guide.latent_dim
        if not MANY <= size <= FULL_RANK_LIMIT or precision == "single":
            return None
        density = wide_log_joint(model, args, kwargs, guide.space, precision)
        start, few = density.space.start, hyperparameters(density)
        if not few or start.dtype != torch.float64 or density.plates is not None or model_parameters(density):
            return None
        spread = prior_spread(guide.space, guide.prototype_trace).to(start)
        with pyro.validation_enabled(False):
            places = torch.tensor(few, device=start.device)
            made, _ = nested_field(TracedDensity(density, start, ROWS), places, start, spread)
    except (RuntimeError, TypeError, ValueError, Untraceable):
        return None
    return guide.around(made)


def fitted_field(
    model: Callable,
    args: tuple,
    kwargs: dict,
    options: Options,
    listener: Listener,
    saved: Checkpoint,
    progress: bool,
) -> Posterior | None:
    """The posterior of such a model; None if it is none, or a fit that was not ended is not to be trusted."""
    with seeded(seed_of("the field of a model")):  # fits of one flow draw what they would without
        guide = field_guide(model, args, kwargs, options.init_loc_fn, options.precision)
    if guide is None:
        return None
    problem = Problem(model, args, kwargs, replace(options, guide=guide, steps=min(options.steps, STEPS)))
    posterior, _ = problem.solve(1, (), listener, saved, progress)
    if is_ended(listener, posterior.history):
        return judged(posterior, problem.around)
    return None if posterior.diagnostics.grade == "do not trust" else posterior
