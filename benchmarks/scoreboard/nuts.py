"""Pyro's NUTS: one chain of 1,000 draws after 1,000 of warm-up."""

from typing import Any

from pyro.infer import MCMC, NUTS

from pyroflows.guides import init_to_prior
from pyroflows.model import LogJoint

from .clock import Clock
from .metrics import Draws

WARMUP, KEPT = 1000, 1000


class NotFinished(Exception):
    """The time was up; says how far the chain was."""


def run(density: LogJoint, clock: Clock, limit: float) -> tuple[Draws, dict[str, Any]]:
    """The draws, and how the chain went.

    Raises:
        NotFinished: if the chain takes more than ``limit`` seconds.
    """
    clock.lap("setup")
    seen = {"draws": 0}

    def look(kernel: NUTS, _: object, stage: str, draw: int) -> None:
        seen["draws"] += 1
        if clock.seconds > limit:
            clock.lap("chain")
            raise NotFinished(f"{seen['draws']} of {WARMUP + KEPT} draws")

    # Flat priors cannot be sampled, and no model has a plate.
    kernel = NUTS(density.model, max_plate_nesting=0, init_strategy=init_to_prior)
    chain = MCMC(kernel, num_samples=KEPT, warmup_steps=WARMUP, hook_fn=look, disable_progbar=True)
    chain.run(*density.args)
    clock.lap("chain")
    facts = {"steps": WARMUP + KEPT, "divergences": len(chain.diagnostics()["divergences"]["chain 0"])}
    return Draws(density.unconstrain(chain.get_samples())), facts
