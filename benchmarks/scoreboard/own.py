"""``fit`` with its defaults, its stages timed, and what refines its draws."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import pyroflows

from .clock import Clock
from .metrics import DRAWS, Draws

FIT, REFINED = "fit", ("fit+importance", "fit+neutra")
Found = tuple[str, Clock, Draws, dict[str, Any]]


def run(model: Callable, args: tuple, clock: Clock, methods: Sequence[str]) -> Iterator[Found]:
    """One fit, and each refinement among the methods: its clock goes on where that of the fit stopped."""
    stages = {name: _timed(name, clock) for name in ("start", "full_rank")}
    posterior = pyroflows.fit(model, *args, progress=False, **stages)
    clock.lap("flow")
    history = posterior.history
    facts = {"steps": len(history.elbo), "speed": history.speed, "stopped": history.stopped}
    facts |= {"bad_steps": history.bad_steps, "verdict": posterior.diagnostics.verdict, "khat_seen": posterior.khat}
    if FIT in methods:
        with torch.no_grad():
            draws = Draws(*posterior.guide.get_posterior().rsample_and_log_prob((DRAWS,)))
        yield FIT, clock, draws, facts
    for method in methods:
        if method in REFINED:
            yield _refined(posterior, method, clock.branch(), facts)


def _timed(name: str, clock: Clock) -> Callable:
    """The stage that ``fit`` has by default, timed."""
    stage = inspect.signature(pyroflows.fit).parameters[name].default

    def run(*args: Any, **kwargs: Any) -> Any:
        clock.lap("setup")
        found = stage(*args, **kwargs)
        clock.lap(name.replace("_", " "))
        return found

    return run


def _refined(posterior: pyroflows.Posterior, method: str, clock: Clock, facts: dict[str, Any]) -> Found:
    """What ``posterior.refine`` gives with its defaults."""
    refined = posterior.refine(method.split("+")[1])
    clock.lap("refine")
    weights = torch.as_tensor(refined.weights) if refined.weighted else None
    draws = Draws(refined.vectors.flatten(0, 1), weights=weights)
    return method, clock, draws, facts | {"verdict": refined.diagnostics.verdict}
