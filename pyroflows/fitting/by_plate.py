"""A fit that follows a plate of the model: the start, training where the weights ask for it, and the verdict."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from tqdm.auto import tqdm

from ..flows import with_tails
from ..flows.linear import FULL_RANK_LIMIT
from ..guides import AutoPlateFlow
from ..guides.plates.objective import plate_weights
from ..infer.nested.marginal import modes
from ..infer.nested.other_modes import other_modes
from ..model.rows import RowJoint, check_followed
from ..posterior.plates.plate_posterior import PlatePosterior
from ..training import Checkpoint, History, Listener, SpeedUp, Threads, Trainer, described
from .interruptions import kept

# Latents from which a model's plates are followed unasked: below, one flow for all is as fast, and bends more.
MANY = 50
# Draws and steps of a round, of which there are several, at most, while they help, and steps of a rise; draws behind a
# step, of a model of so many numbers most and fewest, as a step of few costs no less.
DRAWN, STEPS, ROUNDS, WARMUP = 2400, 100, 3, 20
NUMBERS, MOST, FEWEST = 65_000, 32, 8
# Rates of a round, the next one where a round did not help.
RATES = 1e-2, 3e-3
# A row's other mode of a larger share of its mass is missed.
MISSED = 0.05
# A round, or a match of moments, that raised the ELBO by less, in nats, is the last one.
ENOUGH = 0.05
# Steps between two looks at the checkpoint, and draws that judge a fit.
LOOK, DRAWS = 100, 4000


def planned(
    model: Callable,
    args: tuple,
    kwargs: dict,
    plates: bool | str | None,
    guide: AutoPlateFlow | None,
    init_loc_fn: Callable,
    precision: str,
) -> tuple[AutoPlateFlow, RowJoint] | None:
    """A guide by plate, not set up unless it was given, and the model, in double precision where that works.

    None if the model has no such structure, few latents, or parameters of its own, and ``plates`` does not ask for it.

    Raises:
        ValueError, RuntimeError: if it cannot be fitted by plate, and that is asked for.
    """
    made = guide or AutoPlateFlow(model, plates if isinstance(plates, str) else None, init_loc_fn=init_loc_fn)
    double = precision != "single" and torch.get_default_dtype() != torch.float64
    asked = bool(plates) or guide is not None
    for dtype in (torch.float64, None) if double else (None,):
        try:
            joint = made.read(args, kwargs, dtype)
            terms = joint(*(part[None] for part in joint.start))
            if dtype is not None and not (terms.rest.dtype == dtype and terms.outer.isfinite().all()):
                continue
        except (RuntimeError, TypeError, ValueError):
            if dtype is None and asked:
                raise
            continue
        structure = joint.structure
        check_followed(joint)
        if asked or ((structure.size >= MANY or structure.is_subsampled) and not _parameters(joint)):
            return made, joint
        return None
    return None


def _parameters(joint: RowJoint) -> bool:
    """Whether the model declares parameters of its own."""
    with poutine.block(), poutine.trace(param_only=True) as capture, torch.no_grad():
        joint.runs.model(*joint.runs.args, **joint.runs.kwargs)
    return len(capture.trace) > 0


def judged_by_plate(posterior: PlatePosterior) -> PlatePosterior:
    """The posterior, after a warning if it is not to be trusted."""
    if posterior.diagnostics.grade == "do not trust":
        warnings.warn(f"fit: {posterior.diagnostics.verdict}", stacklevel=3)
    return posterior


def is_for_one_flow(posterior: PlatePosterior) -> bool:
    """Whether one flow over all latents may do better than this, and can be had."""
    structure = posterior.structure
    held = not structure.is_subsampled and structure.size <= FULL_RANK_LIMIT
    return held and posterior.diagnostics.grade == "do not trust"


class NoStartError(ValueError):
    """Says that no start was found for a guide by plate."""


class PlateFit:
    """A fit by plate.

    Args:
        guide: what is fitted; set up already if it is to be trained further.
        joint: the model.
        steps: most steps.
        compile: as of :func:`~pyroflows.fit`.
        progress: whether a bar is shown.
    """

    def __init__(
        self, guide: AutoPlateFlow, joint: RowJoint, *, steps: int, compile: bool | None, progress: bool
    ) -> None:
        self.guide, self.joint, self.steps, self.compile, self.progress = guide, joint, steps, compile, progress
        self.history = History(speed="no steps")
        self._fresh = guide.prototype_trace is None

    def run(self, listener: Listener, saved: Checkpoint) -> PlatePosterior:
        """Finds the start, and trains from there while the weights of draws are not good and training helps."""
        with pyro.validation_enabled(False), Threads() as threads, tqdm(disable=not self.progress, unit="step") as bar:
            if self._fresh:
                bar.set_postfix_str("start ...")
                try:
                    threads.run(partial(self.guide.setup_on, self.joint))
                except (ValueError, torch.linalg.LinAlgError) as error:
                    raise NoStartError(str(error)) from error
            saved.check(self._fingerprint())
            self.history.missed = self._other_modes()
            best = self._judged()
            self.history.stopped = "the start is good"
            if self._fresh and not self.history.missed:
                best = self._match(best)
            trained = not (self.joint.structure.is_subsampled or self.history.missed)
            if trained and not best.diagnostics.close:
                best = self._train(best, listener, saved, bar)
        listener.pass_on()
        return best

    def _other_modes(self) -> dict[str, float]:
        """Rows with another mode, and the share of their mass there."""
        g, structure = self.guide.loc, self.joint.structure
        z = g.new_zeros(structure.rows, structure.width)
        with torch.no_grad():
            for some in self.joint.passes:
                z = some.put(z, self.guide.form.at(self.guide.given(self.joint, g[None], some.index)).mean[0])
        share = other_modes(self.joint, g, modes(self.joint, g, z))
        rows = (share > MISSED).nonzero()[:, 0]
        return dict(zip(map(str, rows.tolist()), share[rows].tolist(), strict=True))

    def _judged(self) -> PlatePosterior:
        return PlatePosterior(self.guide, self.joint, self.history, num_draws=DRAWS)

    def _match(self, best: PlatePosterior) -> PlatePosterior:
        """Gives the globals the mean and covariance of their weighted draws, as long as that helps."""
        while _can_match(best):
            before = copy.deepcopy(self.guide.state_dict())
            self.guide.start_at(*best.globals_moments())
            now = self._judged()
            if not _is_better(now, best):
                self.guide.load_state_dict(before)
                break
            gained, best = now.diagnostics.elbo - best.diagnostics.elbo, now
            if gained < ENOUGH:
                break
        return best

    def _train(self, best: PlatePosterior, listener: Listener, saved: Checkpoint, bar: tqdm) -> PlatePosterior:
        """Rounds of steps, until draws are good without weights, or a round helps little even at a lower rate."""
        self.guide.bend(with_tails)
        particles = min(max(NUMBERS // self.joint.numbers, FEWEST), MOST)
        each = max(DRAWN // particles, STEPS)
        parameters = [*self.guide.transform.parameters(), *self.guide.form.parameters()]
        trainer = Trainer(parameters, lr=RATES[0], warmup=WARMUP, average=0.98, history=self.history)
        objective = partial(plate_weights, self.guide, self.joint, particles)
        speed = SpeedUp(trainer, objective, min(self.steps, ROUNDS * each), self.compile, bar.set_postfix_str)
        self.history.speed, done, rates, ended = "plain", 0, [*RATES[1:]], False
        with kept(trainer):
            while done < min(self.steps, ROUNDS * each) and not listener.stopped and not best.diagnostics.close:
                before = copy.deepcopy(self.guide.state_dict())
                done += self._round(trainer, speed, min(each, self.steps - done), listener, saved, bar)
                now = self._judged()
                better, gained = _is_better(now, best), now.diagnostics.elbo - best.diagnostics.elbo
                helped = better and gained > ENOUGH
                if better:
                    best = now
                else:
                    self.guide.load_state_dict(before)
                self.history.stopped = listener.stopped or ("all steps were used" if helped else "more did not help")
                if not helped and (better or not rates):
                    break
                trainer.restart(trainer.safe.lr if better else rates.pop(0))
            trainer.finish()
            ended = True
        return best if ended else self._judged()

    def _round(
        self, trainer: Trainer, speed: SpeedUp, steps: int, listener: Listener, saved: Checkpoint, bar: tqdm
    ) -> int:
        """So many steps, with a rate that falls over the second half; ends with the average of the iterates."""
        saved.resume(partial(self._load, trainer, speed))
        while trainer.safe.done < steps and not listener.stopped:
            if trainer.safe.done == steps // 2:
                trainer.safe.decay_over(steps - trainer.safe.done)
            speed.step()
            bar.update()
            listener(len(self.history.elbo), self.history.elbo[-1], trainer.safe.rate)
            if trainer.safe.done % LOOK == 0:
                bar.set_postfix_str(f"ELBO {self.history.elbo[-1]:.3f}")
                saved.save(self._state(trainer, speed))
        trainer.settle()
        return trainer.safe.done

    def _state(self, trainer: Trainer, speed: SpeedUp) -> dict[str, Any]:
        return {"trainer": trainer.state_dict(), "speed": speed.state_dict(), "history": asdict(self.history)}

    def _load(self, trainer: Trainer, speed: SpeedUp, state: dict[str, Any]) -> None:
        trainer.load_state_dict(state["trainer"])
        vars(self.history).update(state["history"])
        with torch.enable_grad():
            speed.load_state_dict(state["speed"])

    def _fingerprint(self) -> dict[str, Any]:
        structure = self.joint.structure
        sites = {f"the latent {site.name!r} of shape": list(site.shape) for site in structure.outer.sites}
        sites |= {f"the latent {site.name!r} of shape": list(site.shape) for site in structure.inner}
        start = {"the start": self.guide.loc.detach(), "steps": described(self.steps)}
        return {"plate": structure.plate, **sites, **start}


def _can_match(posterior: PlatePosterior) -> bool:
    """Whether there are so many effective draws that moments from them beat those of a guide that is off by so much."""
    found, size = posterior.diagnostics, posterior.structure.outer.size
    own = max(found.log_weight_sd**2 - (found.noise if found.each > 1 else 0.0), 0.0)
    return own > 4 * size / found.draws and found.efficiency * found.draws > 10 * size**2 + 100


def _is_better(now: PlatePosterior, before: PlatePosterior) -> bool:
    """Whether the ELBO rose, or the weights of draws spread less."""
    after, first = now.diagnostics, before.diagnostics
    level = [found.noise + found.log_weight_sd for found in (after, first)]
    return after.elbo > first.elbo or (math.isfinite(level[0]) and level[0] < level[1])
