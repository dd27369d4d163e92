"""One call that trains: from a Pyro model to its posterior."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from .flows import realnvp
from .guides import AutoFlow, init_to_prior
from .infer import History, LogJoint, SpeedUp, Trainer, log_weights
from .latents import LatentSpace
from .posterior import Posterior
from .transforms import FlowTransform, LowerTriangular

# Progress is judged by the mean ELBO of so many steps against that of as many before.
WINDOW, LOOK = 1000, 100
# Steps of the affine stage between two whitenings, of which there are ten at most.
BLOCK = 300
# Half the variance of the log weights is about the KL divergence left; below this the fit is done.
SMALL_KL = 0.002


def fit(
    model: Callable,
    *args: object,
    flow: Callable[[int], FlowTransform] = realnvp,
    guide: AutoFlow | None = None,
    init_loc_fn: Callable = init_to_prior,
    init_scale: float | Tensor = 1.0,
    base: Any = None,
    steps: int = 5000,
    num_particles: int = 64,
    lr: float = 3e-3,
    tolerance: float = 0.002,
    compile: bool | None = None,
    progress: bool = True,
    **kwargs: object,
) -> Posterior:
    """Fits a normalizing flow to the posterior of a Pyro model by stochastic variational inference.

    First an affine guide is fitted in short blocks, each started in the coordinates whitened by the one before;
    then the flow on top of it. The second stage stops early when the ELBO no longer rises or the log weights no
    longer spread, after a decay of the learning rate; the answer is an average of the last iterates.

    Args:
        model: a Pyro model with continuous latents; it need not be vectorised over particles.
        args: the model's arguments.
        flow: makes the flow from the number of latents, see :class:`~pyroflows.guides.AutoFlow`.
        guide: an ``AutoFlow`` of the same model to train further; the next three arguments and ``flow`` are for new
            ones.
        init_loc_fn: where each site starts.
        init_scale: scale of the start in unconstrained space.
        base: base distribution of a new guide.
        steps: most steps of the second stage; the first takes 300 to 3000.
        num_particles: draws behind each gradient.
        lr: learning rate of the second stage.
        tolerance: a rise of the ELBO, in nats over 1000 steps, that still counts.
        compile: how steps are run. None times the first steps and, where it pays, traces the gradient to one graph,
            which leaves out Pyro's overhead, or compiles it too; True compiles, which takes up to a minute; False
            runs plain Pyro throughout. ``history.speed`` and the progress bar say what was done.
        progress: show a progress bar with the ELBO and its trend.
        kwargs: the model's keyword arguments; use ``functools.partial(model, ...)`` for names that ``fit`` takes.

    Returns:
        The posterior, with draws, diagnostics, ArviZ and plots.

    Raises:
        TypeError, ValueError: if the model cannot be fitted, see :class:`~pyroflows.guides.AutoFlow`.
        FloatingPointError: if too many steps had an ELBO or a gradient that was not finite.

    Example:
        >>> import pyro.distributions as dist
        >>> def coin(flips):
        ...     heads = pyro.sample("heads", dist.Beta(1.0, 1.0))
        ...     with pyro.plate("flips", len(flips)):
        ...         pyro.sample("flip", dist.Bernoulli(heads), obs=flips)
        >>> posterior = fit(coin, torch.tensor([1.0, 1.0, 0.0]), steps=300, progress=False)
        >>> abs(posterior.summary()["heads"]["mean"] - 0.6) < 0.05
        True
    """
    _check_counts(steps=steps, num_particles=num_particles)
    fresh = AutoFlow(model, flow, init_loc_fn=init_loc_fn, init_scale=init_scale, base=base)
    if guide is None:
        guide = fresh.setup(*args, **kwargs)
    else:
        _check_guide(guide.setup(*args, **kwargs), fresh.model, args, kwargs)
    density, history = LogJoint(model, args, kwargs, guide.space), History()
    objective = partial(_objective, guide, density, num_particles)
    extra = _model_parameters(density)
    with (
        pyro.validation_enabled(False),
        torch.enable_grad(),
        tqdm(total=steps, disable=not progress, unit="step") as bar,
    ):
        if isinstance(guide.transform[-1], LowerTriangular):
            history.bad_steps += _fit_affine(guide.transform[-1], objective, compile, bar)
        trainer = Trainer([*guide.transform.parameters(), *extra], lr=lr, history=history)
        # While the model itself learns, a posterior that fits it is not the end.
        reason = partial(_reason_to_stop, tolerance=tolerance, small_kl=0.0 if extra else SMALL_KL)
        _fit_flow(trainer, SpeedUp(trainer, objective, steps, compile, bar.set_postfix_str), reason, bar)
    return Posterior(guide, density, history)


def _check_counts(**counts: object) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"fit expected {name} to be a whole number from 1 on, got {value!r}")


def _check_guide(guide: AutoFlow, model: Callable, args: tuple, kwargs: dict) -> None:
    """Raises unless the guide was set up for the latents of this model."""
    with pyro.validation_enabled(False):  # only names and shapes matter here
        space = LatentSpace.of(poutine.block(poutine.trace(model).get_trace)(*args, **kwargs))
    own, wanted = ({s.name: tuple(s.shape) for s in found.sites} for found in (guide.space, space))
    if own != wanted:
        raise ValueError(f"fit expected a guide of the model's latents {wanted}, got one of {own}: use a new guide")


def _objective(guide: AutoFlow, density: LogJoint, num_particles: int) -> Tensor:
    """Log weights, with the path gradient where the inverse pass that it needs is cheap."""
    return log_weights(guide.get_posterior(), density, num_particles, path=guide.transform.fast == "both")


def _model_parameters(density: LogJoint) -> list[Tensor]:
    """The unconstrained parameters that the model itself declares by pyro.param, pyro.module or PyroModule."""
    start = poutine.condition(density.model, data=density.constrain(density.space.start))
    with poutine.trace(param_only=True) as capture, torch.no_grad():
        start(*density.args, **density.kwargs)
    found = (node["value"].unconstrained() for node in capture.trace.nodes.values())
    return list({id(p): p for p in found}.values())


def _fit_affine(affine: LowerTriangular, objective: Callable[[], Tensor], compile: bool | None, bar: tqdm) -> int:
    """Fits the affine map alone in blocks, whitening after each, until a block gains little or only noise.

    Returns the number of dropped steps.
    """
    trainer, last = Trainer(affine.parameters(), lr=0.02, warmup=20, average=0.98), -math.inf
    # Two more blocks are what can be counted on, too few to compile.
    speed_up = SpeedUp(trainer, objective, 3 * BLOCK, False if compile is False else None, bar.set_postfix_str)
    for _ in range(10):
        for done in range(BLOCK):
            if done == BLOCK // 2:
                trainer.decay_over(BLOCK // 2)
            speed_up.step()
        trainer.settle()
        affine.whiten_()
        trainer.restart(lr=0.01)
        seen = trainer.history.window(50)
        now = _mean(seen)
        bar.set_postfix_str(f"affine start, ELBO {now:.2f}")
        noise = math.sqrt(_mean([(e - now) ** 2 for e in seen]) / max(len(seen), 1))
        if now - last < 0.05 + 2 * noise:
            break
        last = now
    trainer.average = 0.0
    trainer.finish()
    return trainer.history.bad_steps


def _fit_flow(trainer: Trainer, speed_up: SpeedUp, reason_to_stop: Callable[[History], str], bar: tqdm) -> None:
    """Trains until the steps are used up, or the ELBO or the spread of the weights says that it is done."""
    history, steps = trainer.history, speed_up.steps
    while trainer.done < steps and trainer.left > 0:
        speed_up.step()
        bar.update()
        if trainer.done % LOOK == 0:
            bar.set_postfix_str(_trend(history))
            reason = reason_to_stop(history)
            if reason and trainer.left == math.inf:
                history.stopped = reason
                trainer.decay_over(min(max(trainer.done // 2, 300), steps - trainer.done))
        if trainer.done >= steps // 2 and trainer.left == math.inf:
            history.stopped = "all steps were used"
            trainer.decay_over(steps - trainer.done)
    trainer.finish()


def _reason_to_stop(history: History, tolerance: float, small_kl: float) -> str:
    """Why it is time to lower the learning rate, or nothing."""
    spread = [s for s in history.log_weight_sd[-100:] if math.isfinite(s)]
    if spread and _mean([s * s for s in spread]) / 2 < small_kl:
        return "the log weights hardly spread"
    now, before = history.window(WINDOW), history.window(WINDOW, len(history.elbo) - WINDOW)
    if len(history.elbo) >= 2 * WINDOW and _mean(now) - _mean(before) < tolerance:
        return "the ELBO no longer rises"
    return ""


def _trend(history: History) -> str:
    done = len(history.elbo)
    size = min(WINDOW, done // 2)
    now, before = _mean(history.window(size)), _mean(history.window(size, done - size))
    dropped = f", {history.bad_steps} bad steps" if history.bad_steps else ""
    return f"ELBO {now:.3f} ({now - before:+.3f} over {size}), {history.speed.split(',')[0]}{dropped}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
