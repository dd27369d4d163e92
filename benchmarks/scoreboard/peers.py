"""Guides of Pyro and a flow of zuko, trained the way Pyro's users do, for so many seconds."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal, AutoMultivariateNormal, AutoNormalizingFlow
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from pyroflows.guides import init_to_prior
from pyroflows.model import LogJoint

from .clock import Clock
from .metrics import DRAWS, Draws

GUIDES = {
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
    "AutoNormalizingFlow": partial(
        AutoNormalizingFlow, init_transform_fn=partial(transforms.iterated, 4, transforms.affine_autoregressive)
    ),
}
# Particles in one batch where a model allows that, else in a loop, where more steps are worth more than more particles.
BATCHED, LOOPED = 64, 4
# Adam's rate, its fall over the whole time, and the bound on each number of the gradient, as in Pyro's ClippedAdam.
RATE, FALL, CLIP = 3e-3, 0.01, 10.0


def guide(name: str, density: LogJoint, clock: Clock, until: float) -> tuple[Draws, dict[str, Any]]:
    """Trains one of Pyro's guides; returns its draws, and how it was trained.

    A name that ends in ``+batched`` is for the guide on :func:`one_vector`, else it gets the model as it is.
    """
    name, _, own = name.partition("+")
    model, args = (partial(one_vector, density), ()) if own else (density.model, density.args)
    batched = bool(own) or vectorises(density)
    # Pyro's flows start where a prior cannot be sampled only if told so from inside.
    made, particles = GUIDES[name](InitMessenger(init_to_prior)(model)), BATCHED if batched else LOOPED
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=batched, max_plate_nesting=0)
    facts = train(elbo, model, made, args, clock, until)
    with torch.no_grad():
        posterior = made.get_posterior(*args)
        z = posterior.sample((DRAWS,))
        draws = Draws(z, posterior.log_prob(z))  # at once: the slow direction of Pyro's flows remembers one batch
    return draws, facts | {"particles": f"{particles} {'batched' if batched else 'looped'}"}


def zuko(density: LogJoint, clock: Clock, until: float) -> tuple[Draws, dict[str, Any]]:
    """Trains zuko's inverse autoregressive flow by ``ZukoToPyro``, on the log joint of a batch of vectors."""
    from pyro.contrib.zuko import ZukoToPyro
    from zuko.flows import MAF

    flow = MAF(density.size, transforms=4, hidden_features=(64, 64))
    flow.transform = flow.transform.inv  # fast to sample from

    def made() -> None:
        pyro.module("flow", flow)
        pyro.sample("z", ZukoToPyro(flow()))

    elbo = Trace_ELBO(num_particles=BATCHED, vectorize_particles=True, max_plate_nesting=0)
    facts = train(elbo, partial(one_vector, density), made, (), clock, until)

    with torch.no_grad():
        draws = Draws(*flow().rsample_and_log_prob((DRAWS,)))
    return draws, facts | {"particles": f"{BATCHED} batched"}


def one_vector(density: LogJoint) -> None:
    """A log joint as a model of one vector, which any number of particles can share."""
    z = pyro.sample("z", dist.Normal(density.space.start, 1.0).to_event(1).mask(False))
    pyro.factor("log joint", density(z))


def vectorises(density: LogJoint, rows: int = BATCHED) -> bool:
    """Whether a model written for one particle is right for a batch of them, as ``vectorize_particles`` runs it.

    Shapes that fit by chance are the danger: the log joint of the batch is compared with those of its rows.
    """
    values = density.constrain(density.space.start + 0.1 * torch.randn(rows, density.size))

    def log_joint(data: dict[str, Tensor]) -> Tensor:
        return poutine.trace(poutine.condition(density.model, data=data)).get_trace(*density.args).log_prob_sum()

    try:
        with torch.no_grad(), pyro.plate("particles", rows, dim=-1):
            together = log_joint(values)
    except (RuntimeError, ValueError, IndexError):
        return False
    with torch.no_grad():
        single = sum(log_joint({name: value[i] for name, value in values.items()}) for i in range(rows))
    return bool(torch.isclose(together, single))


def train(elbo: Trace_ELBO, model: Callable, made: Callable, args: tuple, clock: Clock, until: float) -> dict[str, Any]:
    """Adam steps until the clock says ``until``; steps whose loss or gradient is not finite are dropped."""
    with pyro.validation_enabled(False), poutine.trace(param_only=True) as seen:
        elbo.loss(model, made, *args)
    sites = (site["value"].unconstrained() for site in seen.trace.nodes.values())
    parameters = list({id(p): p for p in sites}.values())  # Pyro names the parameters of a flow twice
    optimizer, steps, bad = torch.optim.Adam(parameters, lr=RATE), 0, 0
    clock.lap("setup")
    began = clock.seconds
    while (now := clock.seconds) < until:
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = RATE * FALL ** ((now - began) / (until - began))
        with pyro.validation_enabled(False):  # what is not finite is no error here
            loss, steps = elbo.loss_and_grads(model, made, *args), steps + 1
        if math.isfinite(loss) and sum(p.grad.norm() for p in parameters).isfinite():
            torch.nn.utils.clip_grad_value_(parameters, CLIP)
            optimizer.step()
        else:
            bad += 1
    clock.lap("flow")
    return {"steps": steps, "bad_steps": bad, "speed": "plain"}
