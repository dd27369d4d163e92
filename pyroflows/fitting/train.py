"""The third stage: the steps of the flow, and what it missed when they are done."""

import math
from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..distributions import ComponentBase
from ..guides import AutoFlow
from ..infer import Annealed, Gaussian, Objective, ReverseKL, balance, missed_modes, score, shares
from ..model import LogJoint
from ..seeds import seed_of, seeded
from ..training import History, Listener, SpeedUp, Trainer
from ..training.stopping import trend
from .coordinates import Density

# Steps between two looks at whether the fit is done, and draws whose moments are those of a mode that is known.
LOOK, VALUES = 100, 4000


def goal_of(objective: Objective | None, steps: int) -> Objective:
    """The objective, the reverse KL by default."""
    if isinstance(objective, Annealed) and (objective.beta != objective.first or 2 * objective.steps > steps):
        raise ValueError(f"fit expected a new Annealed of at most steps / 2 = {steps // 2} steps, got {objective}")
    return objective or ReverseKL()


def fit_flow(
    trainer: Trainer,
    speed_up: SpeedUp,
    objective: Objective,
    reason_to_stop: Callable[[History], str],
    balance: Callable[[], None],
    bar: tqdm,
    listener: Listener,
) -> None:
    """Trains until the steps are used up, the ELBO or the spread of the weights says that it is done, or a listener."""
    safe, history, steps = trainer.safe, trainer.history, speed_up.steps
    annealing = isinstance(objective, Annealed)
    while safe.done < steps and safe.left > 0 and not listener.stopped:
        speed_up.step()
        bar.update()
        if annealing:
            objective.advance()
            annealing = not objective.done
        if safe.done % LOOK == 0:
            balance()
            bar.set_postfix_str(trend(history))
            reason = "" if annealing else reason_to_stop(history)
            if reason and safe.left == math.inf:
                history.stopped = reason
                safe.decay_over(min(max(safe.done // 2, 300), steps - safe.done))
        if safe.done >= steps // 2 and safe.left == math.inf:
            history.stopped = "all steps were used"
            safe.decay_over(steps - safe.done)
        if listener(safe.done, history.elbo[-1], safe.rate):
            history.stopped = listener.stopped
    trainer.finish()
    for _ in range(10):
        balance()


def balance_base(guide: AutoFlow, density: Density) -> None:
    """Moves mass between the components of the base, where it has some."""
    if isinstance(guide.base, ComponentBase):
        balance(guide.core_posterior(), density)


def note_missed(
    guide: AutoFlow, density: Density, rough: Density | None, around: Gaussian, history: History
) -> list[Gaussian]:
    """Looks for modes that a guide missed and notes them; returns their Gaussians, after one of the guide's draws."""
    level, posterior = fmean(history.window(LOOK) or [math.nan]), guide.get_posterior()
    missed = missed_modes(posterior, density, around, level, rough=rough)
    history.missed = shares(posterior, missed, level)
    if not missed:
        return []
    with torch.no_grad():
        own = Gaussian.of(posterior.sample((VALUES,)).to(around.loc))
    return [own, *(gaussian for _, gaussian in missed)]


def gradient(guide: AutoFlow, density: LogJoint, rows: int) -> None:
    """About what a step takes: gradients of the flow's draws, and of the log joint where that is finite."""
    with seeded(seed_of("the time of a step"), density.space.start.device):
        draws, log_q = guide.core_posterior().rsample_and_log_prob((rows,))
        torch.autograd.grad(draws.sum() + log_q.sum(), [*guide.transform.parameters()], allow_unused=True)
        score(density.batch, density.space.start.expand(rows, -1))


def weights_of(guide: AutoFlow, density: Density, num_particles: int, objective: Objective) -> Tensor:
    """Log weights of the guide as it stands, with the gradient of the objective."""
    return objective(guide.core_posterior(), density, num_particles)
