"""One call that trains: from a Pyro model to its posterior."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_counts
from ..flows import with_tails
from ..guides import AutoFlow, AutoPlateFlow, init_to_prior
from ..infer import Objective, best_start, polish
from ..posterior import PlatePosterior, Posterior
from ..seeds import seed_of, seeded
from ..training import Callback, Checkpoint, Listener
from ..transforms import FlowTransform
from .by_field import fitted_field
from .by_plate import NoStartError, PlateFit, is_for_one_flow, judged_by_plate, planned
from .interruptions import is_ended
from .options import check_arguments, check_options, check_plates
from .problem import Options, Problem
from .start import Start
from .verdict import better_of, judged

# Components that a second fit may have.
MODES = 8


@torch.inference_mode(False)  # with gradients, whatever is around
def fit(
    model: Callable,
    *args: object,
    flow: Callable[[int], FlowTransform] = with_tails,
    guide: AutoFlow | AutoPlateFlow | None = None,
    plates: bool | str | None = None,
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
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **kwargs: object,
) -> Posterior | PlatePosterior:
    """Fits a normalizing flow to the posterior of a Pyro model by stochastic variational inference.

    A model in which the rows of a plate have latents of their own, independent given the latents outside, is fitted by
    :class:`~pyroflows.AutoPlateFlow`, which follows the plate: from a nested Laplace approximation, and by steps of
    training only where the weights of its draws ask for some. Any other one is fitted jointly, by one flow over all
    latents.

    Then there are three stages, each from where the one before ended: a Gaussian that is roughly right, found by L-BFGS
    paths and batch-and-match and chosen by its ELBO; the best full-rank Gaussian, by gradient steps; and a flow in the
    coordinates which that Gaussian whitens. The last stops early when the ELBO no longer rises or the log weights no
    longer spread, after a decay of the learning rate; the answer is an average of the last iterates.

    Args:
        model: a Pyro model with continuous latents; it need not be vectorised over particles.
        args: the model's arguments.
        flow: makes the flow from the number of latents, see :class:`~pyroflows.guides.AutoFlow`.
        plates: None follows a plate where the model has 50 latents or more, or one is subsampled, and the options
            below are left as they are; a fit that is not to be trusted is then made anew by one flow, up to 1000
            latents and without a checkpoint. True or the name of a plate asks for it, and False for one flow. Under
            the same conditions, 64 latents or more with few hyperparameters are followed as a field, see the page on
            hierarchies.
        guide: an ``AutoFlow`` of the same model to train further from where it stands: its affine map first, then
            all of it; or an ``AutoPlateFlow``. It is changed, and with it what an earlier posterior that holds it
            draws; fit a copy to keep that one. The next five arguments and ``flow`` are for new ones.
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
        checkpoint: a file, written every 100 steps of the flow. If it is there, the same call goes on from it, however
            the one before ended, and has its numbers: to the bit on one thread. The stages before the flow are made
            again for that, from the random state in which they were made; a callback is told the steps since the file
            was written once more. A guide, or parameters of the model, that were there before start from where they
            stood at first.
        progress: show a progress bar with the ELBO and its trend.
        kwargs: the model's keyword arguments; use ``functools.partial(model, ...)`` for names that ``fit`` takes.

    Returns:
        The posterior, with draws, diagnostics, ArviZ and plots; a warning says so if it is not to be trusted.

    Raises:
        TypeError, ValueError, RuntimeError: if the model cannot be fitted, see :class:`~pyroflows.guides.AutoFlow`, or
            its posterior is improper; if the checkpoint is damaged, or of another model, other data or options.
        FloatingPointError: if the ELBO or its gradient was not finite in too many steps before those of the flow, which
            are kept as far as they went, as they are on KeyboardInterrupt.

    Example:
        >>> import pyro, pyro.distributions as dist
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
    listener, saved = Listener("fit", callback), Checkpoint("fit", checkpoint)
    usual = noncentered is base is objective is None and modes == 1 and flow is with_tails and guide is None
    usual = usual and start is best_start and full_rank is polish and init_scale == 1.0
    check_plates(plates, guide, usual)
    options = Options(
        flow=flow,
        guide=guide,
        init_loc_fn=init_loc_fn,
        init_scale=init_scale,
        base=base,
        noncentered=noncentered,
        modes=modes,
        start=start,
        full_rank=full_rank,
        objective=objective,
        steps=steps,
        num_particles=num_particles,
        lr=lr,
        tolerance=tolerance,
        precision=precision,
        compile=compile,
    )
    if isinstance(guide, AutoPlateFlow) or plates or (plates is None and usual):
        by_plate = _by_plate(model, args, kwargs, plates, options, listener, saved, progress)
        if by_plate is not None:
            return by_plate
    problem = Problem(model, args, kwargs, options)
    if usual and plates is None and checkpoint is None:
        posterior = fitted_field(problem, model, args, kwargs, listener, saved, progress)
        if posterior is not None:
            return posterior
    if checkpoint is not None:
        if saved.begin(problem.given()):  # where that stood at first also decides on where to start
            problem = Problem(model, args, kwargs, options)
        saved.check(problem.fingerprint())
    posterior, missed = problem.solve(modes, (), listener, saved, progress)
    if missed:
        again = Problem(model, args, kwargs, options)
        posterior = better_of(posterior, again.solve(max(modes, MODES), missed, listener, saved, progress)[0])
    return judged(posterior, problem.around)


def _by_plate(
    model: Callable,
    args: tuple,
    kwargs: dict,
    plates: bool | str | None,
    options: Options,
    listener: Listener,
    saved: Checkpoint,
    progress: bool,
) -> PlatePosterior | None:
    """The posterior by plate; None if no plate is to be followed, or nobody asked and it is not to be trusted."""
    with seeded(seed_of("the structure of a model")):  # fits of one flow draw what they would without
        found = planned(model, args, kwargs, plates, options.guide, options.init_loc_fn, options.precision)
    if found is None:
        return None
    asked = plates is not None or options.guide is not None or saved.path is not None
    made = PlateFit(*found, steps=options.steps, compile=options.compile, progress=progress)
    with suppress(*() if asked else (NoStartError,)):
        posterior = made.run(listener, saved)
        if asked or is_ended(listener, posterior.history) or not is_for_one_flow(posterior):
            return judged_by_plate(posterior)
    return None
