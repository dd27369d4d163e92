"""Densities of data with the habits of scikit-learn, which must be installed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike
from pyro import poutine
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from ..arguments import all_or_nothing
from ..flows import copula_with_dropout
from ..seeds import seeded
from ..training import Batches, Callback, Checkpoint, EpochLog, Epochs, Listener, described
from ..transforms import FlowTransform
from ..vae import FlowPrior
from .columns import Units
from .degenerate import check_density
from .fitted_density import FittedDensity
from .inputs import check_options, context_of, digest_of, in_use

# Options that a checkpoint may differ in.
FREE = ("progress", "device")


class FlowDensity(FittedDensity):
    """A normalizing flow fitted to rows of numbers by maximum likelihood, as an estimator of scikit-learn.

    Columns are standardised, those with rows far out by their quantiles. Some rows are held out, and training stops
    when their likelihood no longer rises; the best state is kept. It works in pipelines and searches, which score it
    by the mean log density. With ``context`` it learns ``p(x | context)``. Densities are those of the data, in nats.

    Args:
        flow: a recipe, as for :class:`~pyroflows.vae.FlowPrior`; by default a copula with dropout.
        components: size of a learnable mixture under the flow.
        epochs: most passes over the rows.
        batch_size: rows behind each gradient.
        lr: largest learning rate.
        weight_decay: as in AdamW.
        noise: sd of normal noise on the standardised rows in training, against overfitting.
        validation_fraction: share of the rows held out; 0 trains on all rows for all epochs.
        patience: epochs without gain after which to stop.
        dtype: ``"float32"`` or ``"float64"``, in which the flow computes.
        device: where it computes.
        random_state: a seed or RandomState for fits that can be repeated, None for torch's generator as it is.
        progress: show a progress bar.
        degenerate: ``"raise"`` refuses rows that have no density, as their values come again and again or columns
            depend on others; ``"allow"`` fits them all the same, with scores that mean little.

    Attributes:
        prior_: the trained :class:`~pyroflows.vae.FlowPrior`, over standardised rows.
        log_: the :class:`~pyroflows.training.EpochLog`.
        entropy_: mean of the negative log density over the rows held out, in nats.

    Example:
        >>> X = np.random.default_rng(0).normal(5.0, 0.1, size=(200, 2))
        >>> density = FlowDensity(epochs=20, random_state=0).fit(X)
        >>> density.score_samples(X).shape, density.sample(3).shape
        ((200,), (3, 2))
    """

    def __init__(
        self,
        flow: Callable[..., FlowTransform] = copula_with_dropout,
        *,
        components: int = 1,
        epochs: int = 300,
        batch_size: int = 128,
        lr: float = 4e-3,
        weight_decay: float = 0.0,
        noise: float = 0.0,
        validation_fraction: float = 0.1,
        patience: int = 25,
        dtype: str = "float32",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        progress: bool = False,
        degenerate: str = "raise",
    ) -> None:
        self.flow, self.components = flow, components
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.weight_decay, self.noise = weight_decay, noise
        self.validation_fraction, self.patience, self.degenerate = validation_fraction, patience, degenerate
        self.dtype, self.device, self.random_state, self.progress = dtype, device, random_state, progress

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        context: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
    ) -> "FlowDensity":
        """Fits the flow and returns itself.

        Args:
            X: shape ``(rows, D)``.
            y: not used.
            context: shape ``(rows, C)``, what the density is conditional on.
            sample_weight: shape ``(rows,)``, not negative; a row of weight 0 is left out.
            callback: called after each epoch as ``callback(epoch, loss, rate)``, with epochs from 1 on, the loss in
                training and the learning rate; training ends where it returns True. What it raises is passed on after
                training has ended in the same way: the density is fitted then.
            checkpoint: a file, written after each epoch. If it is there, the fit goes on from it, to the numbers that
                it would have had without an end, however it ended.

        Raises:
            ValueError: if numbers are NaN or infinite, rows do not match or have no density, an option is wrong, or the
                checkpoint is damaged, or of other rows or options.
            FloatingPointError: if too many steps were not finite.
        """
        listener = Listener("FlowDensity", callback)
        self._fit(X, context, sample_weight, checkpoint, listener)
        listener.pass_on()
        return self

    @all_or_nothing
    def _fit(
        self,
        X: ArrayLike,
        context: ArrayLike | None,
        sample_weight: ArrayLike | None,
        checkpoint: str | Path | None,
        listener: Listener,
    ) -> None:
        check_options(self.get_params(deep=False))
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        context = context_of(context, X)
        seed = None if self.random_state is None else check_random_state(self.random_state).randint(2**31)
        X, context, weight = in_use(X, context, weight=weight)
        names = list(getattr(self, "feature_names_in_", range(X.shape[1])))
        check_density(X, context, names, self.degenerate)
        self._units = Units(X, context, weight, names, getattr(torch, self.dtype), self.device)
        with seeded(seed, torch.device(self.device)), torch.inference_mode(False), pyro.validation_enabled(False):
            saved = Checkpoint("FlowDensity.fit", checkpoint)
            self._train(*map(self._tensor, (X, context, weight)), saved, listener)
        self.log_.notes += self._units.notes

    def _train(self, rows: Tensor, context: Tensor, weight: Tensor, saved: Checkpoint, listener: Listener) -> None:
        dim, order = rows.shape[1], torch.randperm(len(rows), device="cpu").to(self.device)
        held = min(round(self.validation_fraction * len(rows)), len(rows) - 1)
        scaled, ladj = self._units.rows.inv.call_and_ladj(rows)
        whole = [t[order].to(scaled) for t in (scaled, self._standard(context), weight)]
        validation, training = ([t[part] for t in whole] for part in (slice(held), slice(held, None)))
        self.prior_ = FlowPrior(dim, self.flow, context.shape[1], components=self.components).to(scaled)
        epochs = Epochs(self.prior_, lr=self.lr, weight_decay=self.weight_decay)
        options = {name: described(value) for name, value in self.get_params(deep=False).items() if name not in FREE}
        saved.check({"the data": digest_of(rows, context, weight), **options, **epochs.problem()})
        self.log_: EpochLog = epochs.run(
            self._loss,
            Batches(training, self.batch_size),
            self.epochs,
            validate=(lambda: self._loss(*validation).item()) if held else None,
            patience=self.patience,
            checkpoint=saved,
            listener=listener,
            progress=self.progress,
        )
        self.prior_.requires_grad_(False)
        with torch.no_grad():
            lost = (weight * ladj)[order[:held] if held else order].mean().item()
            self.entropy_ = self._loss(*(validation if held else training)).item() - lost

    def model(self, x: Tensor, context: Tensor, weight: Tensor) -> None:
        """Standardised rows as data of Pyro. ``fit`` maximises its ELBO with an empty guide, as SVI would."""
        density = self._given(context)
        with pyro.plate("rows", len(x)), poutine.scale(scale=weight):
            pyro.sample("x", self._units.trained(density), obs=x)

    def _loss(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The negative ELBO of a row of :meth:`model`: the weighted mean of negative log densities."""
        if self.prior_.training and self.noise:
            x = x + self.noise * torch.randn_like(x)
        return -poutine.trace(self.model).get_trace(x, *rest).log_prob_sum() / len(x)
