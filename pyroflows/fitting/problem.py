"""A model that is fitted, as what walks through the stages of a fit."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..guides import AutoFlow
from ..infer import Gaussian, Goal, Objective, ascend
from ..posterior import Posterior
from ..seeds import seed_of, seeded
from ..training import Checkpoint, History, Listener, SpeedUp, Threads, Trainer, described
from ..training.stopping import SMALL_KL, reason_to_stop
from ..transforms import FlowTransform, LowerTriangular
from .coordinates import Place, places_of
from .interruptions import explained, is_ended, kept
from .options import check_guide, check_modes, check_slope
from .precision import choose_precision, wide_log_joint
from .repeatable import check_repeatable
from .start import Start, gaussian_at, gaussian_of, model_parameters, searched, start_guide
from .train import FlowStage, gradient, note_missed, weights_of
from .verdict import num_draws

# Draws around the start at which log joints are told apart.
POINTS = 8


@dataclass(frozen=True)
class Options:
    """What a fit is asked for, as :func:`~pyroflows.fit` describes it."""

    flow: Callable[[int], FlowTransform]
    guide: AutoFlow | None
    init_loc_fn: Callable
    init_scale: float | Tensor
    base: Any
    noncentered: bool | None
    modes: int
    start: Start | None
    full_rank: Start | None
    objective: Objective | None
    steps: int
    num_particles: int
    lr: float
    tolerance: float
    precision: str
    compile: bool | None


class Problem:
    """A model with its arguments as a log density, a guide for it, and the coordinates in which its flow is fitted.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        options: how it is fitted.

    Attributes:
        guide: what is fitted.
        density: the log joint over the guide's latents.
        around: a Gaussian where the model starts.
        extra: parameters of the model's own, which learn with the guide.
        plain: the coordinates of the model.
        place: those in which the flow is fitted, once :meth:`start` has chosen.

    Raises:
        TypeError, ValueError, RuntimeError: if it cannot be fitted.
    """

    plain: Place
    place: Place

    def __init__(self, model: Callable, args: tuple, kwargs: dict, options: Options) -> None:
        self.options, self.goal = options, Goal.of(options.objective)
        if not self.goal.new or 2 * self.goal.steps > options.steps:
            most, given = options.steps // 2, options.objective
            raise ValueError(f"fit expected a new Annealed of at most steps / 2 = {most} steps, got {given}")
        fresh = AutoFlow(
            model, options.flow, init_loc_fn=options.init_loc_fn, init_scale=options.init_scale, base=options.base
        )
        self.guide = (options.guide or fresh).setup(*args, **kwargs)
        if options.guide is not None:
            check_guide(options.guide, fresh.model, args, kwargs)
        self.density = wide_log_joint(model, args, kwargs, self.guide.space, options.precision)
        self.extra = model_parameters(self.density)
        self.around = gaussian_at(self.density.space, options.init_scale)
        check_repeatable(self.density)
        check_slope(self.density)
        check_modes(options.modes, self._is_movable)

    @property
    def _is_fresh(self) -> bool:
        """Whether the guide starts where this fit finds that it should."""
        return self.options.guide is None and not self.extra and not self.density.minibatch

    @property
    def _is_triangular(self) -> bool:
        return isinstance(self.guide.core[-1], LowerTriangular)

    @property
    def _is_movable(self) -> bool:
        """Whether it can start at several modes."""
        return self._is_fresh and self.density.plates is None and self.options.base is None and self._is_triangular

    def given(self) -> list[Tensor]:
        """What was there before and is trained: a guide that was given, and the model's own parameters."""
        if self.options.guide is None:
            return self.extra
        bases = [tensor for base in self.guide.components for tensor in base.tensors]
        return [*self.guide.transform.state_dict().values(), *bases, *self.extra]

    @torch.no_grad()
    def fingerprint(self) -> dict[str, Any]:
        """What tells one fit from another: latents, options, tensors of the guide, the log joint at some points."""
        options = {name: described(value) for name, value in vars(self.options).items()}
        found = {f"the latent {site.name!r} of shape": list(site.shape) for site in self.guide.space.sites}
        found |= options | {"guide": self.options.guide is not None}
        shapes = {name: list(tensor.shape) for name, tensor in self.guide.transform.state_dict().items()}
        found |= {f"the shape of {name}": shape for name, shape in shapes.items()}
        if not self.density.minibatch:
            with seeded(seed_of("the fingerprint of a fit"), self.around.loc.device):
                levels = self.density(torch.cat([self.around.loc[None], self.around.sample(POINTS)]))
            found |= {f"the log joint at point {k}": level for k, level in enumerate(levels)}
        return found

    def solve(
        self, modes: int, known: Sequence[Gaussian], listener: Listener, saved: Checkpoint, progress: bool
    ) -> tuple[Posterior, list[Gaussian]]:
        """Walks through the stages.

        Args:
            modes: how many to start at.
            known: Gaussians at some.
            listener: is told each step of the flow.
            saved: where the stage of the flow is saved, and goes on from.
            progress: whether a bar is shown.

        Returns:
            The posterior, and Gaussians at modes for another problem if this one missed some and that could have them.
        """
        history = History()
        with ExitStack() as around:
            around.enter_context(pyro.validation_enabled(False))
            around.enter_context(Threads(partial(gradient, self.guide, self.density, self.options.num_particles)))
            around.enter_context(explained(self.density, self.guide, self.around))
            bar = around.enter_context(tqdm(total=self.options.steps, disable=not progress, unit="step"))
            self.start(modes, known, history, bar)
            stage = self.flow_stage(history, bar, listener)
            with kept(stage.trainer):
                stage.run(saved)
            missed = self.end(listener, history)
        listener.pass_on()
        once = not self.goal.new or is_ended(listener, history)  # what is annealed cannot be used twice
        posterior = Posterior(self.guide, self.density, history, num_draws=num_draws(self.density))
        return posterior, missed if self._is_movable and not once and not known else []

    def start(self, modes: int, known: Sequence[Gaussian], history: History, bar: tqdm) -> None:
        """The stages before the flow."""
        options, rows = self.options, 0 if self.extra else self.options.num_particles
        if known:
            bar.set_postfix_str("modes were missed, starting again at each")
        self.place = self.plain = Place.of(self.density, self.guide.fixed, self.around, rows)
        if self._is_fresh:
            noncentered, stages = options.noncentered if modes == 1 else False, (options.start, options.full_rank)
            places = places_of(self.plain, self.density, noncentered, options.num_particles)
            self.place = start_guide(self.guide, places, self.density.space, self.goal, modes, known, stages, bar)
            choose_precision(self.guide, options.precision)
            return
        self._expand()
        if self._is_triangular:
            history.bad_steps += ascend(self.guide.core[-1], self._weights(), progress=partial(_show, bar, "full rank"))
            self._expand()

    def _expand(self) -> None:
        """Where plates are subsampled, expands the density around the guide."""
        if self.place.whole is not None:
            self.place = self.place.at(gaussian_of(self.guide, self.density.space.start))

    def _weights(self) -> Callable[[], Tensor]:
        return partial(weights_of, self.guide, self.place.density, self.options.num_particles, self.goal)

    def flow_stage(self, history: History, bar: tqdm, listener: Listener) -> FlowStage:
        """The stage of the flow, ready to run."""
        options = self.options
        trainer = Trainer([*self.guide.transform.parameters(), *self.extra], lr=options.lr, history=history)
        speed_up = SpeedUp(trainer, self._weights(), options.steps, options.compile, bar.set_postfix_str)
        # While the model itself learns, a posterior that fits it is not the end.
        small_kl = 0.0 if self.extra else SMALL_KL
        reason = partial(reason_to_stop, tolerance=options.tolerance, small_kl=small_kl)
        return FlowStage(self.guide, self.place.density, self.goal, speed_up, reason, bar, listener)

    def end(self, listener: Listener, history: History) -> list[Gaussian]:
        """Leaves the guide in the model's precision, and looks for modes that it missed."""
        self.guide.transform.to(self.guide.space.start)
        for base in self.guide.components:
            self.guide.base = base.to(self.guide.space.start)
        if self.density.minibatch or listener.failed:
            return []
        return note_missed(self.guide, *searched(self.density, self.plain), self.around, history)


def _show(bar: tqdm, stage: str, elbo: float) -> None:
    bar.set_postfix_str(f"{stage}, ELBO {elbo:.2f}")
