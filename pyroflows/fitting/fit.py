"""One call that trains: from a Pyro model to its posterior."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..arguments import check_counts
from ..distributions import ComponentBase
from ..flows import with_tails
from ..guides import AutoFlow, init_to_prior
from ..infer import Annealed, Gaussian, Objective, ascend, best_start, polish
from ..posterior import Posterior
from ..training import Callback, History, Listener, SpeedUp, Threads, Trainer
from ..training.stopping import SMALL_KL, reason_to_stop
from ..transforms import FlowTransform, LowerTriangular
from .coordinates import Place, places_of
from .interruptions import INTERRUPTED, explained, kept
from .options import check_arguments, check_guide, check_modes, check_options, check_slope
from .precision import choose_precision, wide_log_joint
from .repeatable import check_repeatable
from .start import Start, gaussian_at, gaussian_of, model_parameters, searched, start_guide
from .train import balance_base, fit_flow, goal_of, gradient, note_missed, weights_of
from .verdict import better_of, judged, num_draws

# Components that a second fit may have.
MODES = 8


@torch.inference_mode(False)  # with gradients, whatever is around
def fit(
    model: Callable,
    *args: object,
    flow: Callable[[int], FlowTransform] = with_tails,
    guide: AutoFlow | None = None,
    init_loc_fn: Callable = init_to_prior,
    init_scale: float | Tensor = 1.0,
    base: Any = None,
    noncentered: bool | None = None,
    modes: int = 1,
    start: Start | None = best_start,
    full_rank: Start | None = polish,
    objective: Objective | None = None,
    steps: int = 5000,
    num_particles: int = 64,
    lr: float = 3e-3,
    tolerance: float = 0.002,
    precision: str = "mixed",
    compile: bool | None = None,
    callback: Callback | None = None,
    progress: bool = True,
    **kwargs: object,
) -> Posterior:
    """Fits a normalizing flow to the posterior of a Pyro model by stochastic variational inference.

    Three stages, each from where the one before ended: a Gaussian that is roughly right, found by L-BFGS paths and
    batch-and-match and chosen by its ELBO; the best full-rank Gaussian, by gradient steps; and a flow in the
    coordinates which that Gaussian whitens. The last stops early when the ELBO no longer rises or the log weights no
    longer spread, after a decay of the learning rate; the answer is an average of the last iterates.

    Args:
        model: a Pyro model with continuous latents; it need not be vectorised over particles.
        args: the model's arguments.
        flow: makes the flow from the number of latents, see :class:`~pyroflows.guides.AutoFlow`.
        guide: an ``AutoFlow`` of the same model to train further from where it stands: its affine map first, then
            all of it. It is changed, and with it what an earlier posterior that holds it draws; fit a copy to keep
            that one. The next five arguments and ``flow`` are for new ones.
        init_loc_fn: where each site starts.
        init_scale: scale of the start in unconstrained space.
        base: base distribution of a new guide.
        noncentered: whether sites whose prior has a scale that other latents set are fitted relative to it, see
            :class:`~pyroflows.model.noncentered.NonCentered`; None tries both ways through the first two stages and
            takes the one with the higher ELBO. Draws and densities are of the sites as they are either way.
        modes: search the posterior for so many modes before the fit. Where there are several, the base takes the place
            of the first two stages: a mixture with a component at up to so many, or, where the ELBO is higher, a
            product of mixtures along the directions in which modes differ, which has all their combinations. After the
            fit it is searched in any case, and fitted once more as with ``modes=8`` if the flow missed some; by
            minibatches it is not, and the verdict says so.
        start: the first stage, a function of the log density and a Gaussian; None leaves it out.
        full_rank: the second stage, likewise.
        objective: what the flow is trained for, see :mod:`pyroflows.infer.objectives`; None is the reverse KL. With
            ``Annealed`` the first two stages see the density at its first ``beta``.
        steps: most steps of the flow.
        num_particles: draws behind each gradient.
        lr: learning rate of the flow.
        tolerance: a rise of the ELBO, in nats over 1000 steps, that still counts.
        precision: ``"mixed"`` computes the log joint in double precision where the model allows that, and the networks
            in single precision; ``"double"`` computes both in double, ``"single"`` all in the model's own precision.
            The networks of a guide that is given stay as they are.
        compile: how the flow's steps are run. None times the first ones and, where it pays, traces them to one graph,
            which leaves out Python's overhead, or compiles it too; True compiles, which takes up to a minute; False
            runs them plainly. ``history.speed`` and the progress bar say what was done.
        callback: called after each step of the flow as ``callback(step, elbo, rate)``, with steps from 1 on, the
            estimate of the ELBO in nats, NaN at a dropped step, and the learning rate; a second fit counts anew. Where
            it returns True the fit ends with the average of the iterates so far. What it raises is passed on after
            training has ended in the same way: a guide of your own holds that average then.
        progress: show a progress bar with the ELBO and its trend.
        kwargs: the model's keyword arguments; use ``functools.partial(model, ...)`` for names that ``fit`` takes.

    Returns:
        The posterior, with draws, diagnostics, ArviZ and plots; a warning says so if it is not to be trusted.

    Raises:
        TypeError, ValueError, RuntimeError: if the model cannot be fitted, see :class:`~pyroflows.guides.AutoFlow`, or
            its posterior is improper.
        FloatingPointError: if the ELBO or its gradient was not finite in too many steps before those of the flow, which
            are kept as far as they went, as they are on KeyboardInterrupt.

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
    check_counts("fit", {}, steps=steps, num_particles=num_particles, modes=modes)
    check_options(precision, compile, lr=lr, tolerance=tolerance, guide=guide, objective=objective)
    check_arguments(model, kwargs, inspect.signature(fit).parameters)
    run = partial(
        _fitted,
        model,
        args,
        kwargs,
        flow=flow,
        guide=guide,
        init_loc_fn=init_loc_fn,
        init_scale=init_scale,
        base=base,
        noncentered=noncentered,
        stages=(start, full_rank),
        objective=objective,
        steps=steps,
        num_particles=num_particles,
        lr=lr,
        tolerance=tolerance,
        precision=precision,
        compile=compile,
        listener=Listener("fit", callback),
        progress=progress,
    )
    posterior, known = run(modes=modes)
    if known:
        posterior = better_of(posterior, run(modes=max(modes, MODES), known=known)[0])
    return judged(posterior, gaussian_at(posterior.log_joint.space, init_scale))


def _fitted(
    model: Callable,
    args: tuple,
    kwargs: dict,
    *,
    flow: Callable[[int], FlowTransform],
    guide: AutoFlow | None,
    init_loc_fn: Callable,
    init_scale: float | Tensor,
    base: Any,
    noncentered: bool | None,
    stages: tuple[Start | None, Start | None],
    objective: Objective | None,
    steps: int,
    num_particles: int,
    lr: float,
    tolerance: float,
    precision: str,
    compile: bool | None,
    listener: Listener,
    progress: bool,
    modes: int,
    known: Sequence[Gaussian] = (),
) -> tuple[Posterior, list[Gaussian]]:
    """One fit, and Gaussians at modes for another one if this one missed some and the next could have them."""
    goal = goal_of(objective, steps)
    fresh = AutoFlow(model, flow, init_loc_fn=init_loc_fn, init_scale=init_scale, base=base)
    own = fresh.setup(*args, **kwargs) if guide is None else guide.setup(*args, **kwargs)
    if guide is not None:
        check_guide(guide, fresh.model, args, kwargs)
    density, history = wide_log_joint(model, args, kwargs, own.space, precision), History()
    extra, around = model_parameters(density), gaussian_at(density.space, init_scale)
    check_repeatable(density)
    check_slope(density)
    fresh_start = guide is None and not extra and not density.minibatch
    movable = fresh_start and density.plates is None and base is None and isinstance(own.core[-1], LowerTriangular)
    check_modes(modes, movable)
    with (
        pyro.validation_enabled(False),
        Threads(partial(gradient, own, density, num_particles)),
        explained(density, own, around),
        tqdm(total=steps, disable=not progress, unit="step") as bar,
    ):
        if known:
            bar.set_postfix_str("modes were missed, starting again at each")
        place = plain = Place.of(density, own.fixed, around, 0 if extra else num_particles)
        if fresh_start:
            places = places_of(plain, density, noncentered if modes == 1 else False, num_particles)
            place = start_guide(own, places, density.space, goal, modes, known, stages, bar)
            choose_precision(own, precision)
        elif place.whole is not None:
            place = place.at(gaussian_of(own, density.space.start))
        weights = partial(weights_of, own, place.density, num_particles, goal)
        if not fresh_start and isinstance(own.core[-1], LowerTriangular):
            history.bad_steps += ascend(own.core[-1], weights, progress=partial(_show, bar, "full rank"))
            place = place.at(gaussian_of(own, density.space.start)) if place.whole is not None else place
        trainer = Trainer([*own.transform.parameters(), *extra], lr=lr, history=history)
        # While the model itself learns, a posterior that fits it is not the end.
        reason = partial(reason_to_stop, tolerance=tolerance, small_kl=0.0 if extra else SMALL_KL)
        speed_up = SpeedUp(trainer, weights, steps, compile, bar.set_postfix_str)
        with kept(trainer):
            fit_flow(trainer, speed_up, goal, reason, partial(balance_base, own, place.density), bar, listener)
        own.transform.to(own.space.start)
        if isinstance(own.base, ComponentBase):
            own.base = own.base.to(own.space.start)
        blind = density.minibatch or listener.failed
        missed = [] if blind else note_missed(own, *searched(density, plain), around, history)
    listener.pass_on()
    ended = listener.stopped or history.stopped == INTERRUPTED
    once = isinstance(objective, Annealed) or ended  # what is annealed cannot be used twice
    posterior = Posterior(own, density, history, num_draws=num_draws(density))
    return posterior, missed if movable and not once and not known else []


def _show(bar: tqdm, stage: str, elbo: float) -> None:
    bar.set_postfix_str(f"{stage}, ELBO {elbo:.2f}")
