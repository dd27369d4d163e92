"""Densities of data with the habits of scikit-learn, which must be installed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike, NDArray
from pyro import poutine
from torch import Tensor

from ..arguments import all_or_nothing, check_counts
from ..distributions import FlowDistribution
from ..flows import copula_with_dropout
from ..seeds import seeded
from ..training import Batches, Callback, EpochLog, Epochs, Listener
from ..transforms import Compose, FlowTransform
from ..vae import FlowPrior
from .columns import Units, log_density
from .degenerate import check_density
from .inputs import check_options, context_of, in_use
from .plots import plot_calibration, plot_trajectory

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("FlowDensity needs scikit-learn 1.6 or newer: pip install 'pyroflows[sklearn]'") from error

# Rows that are scored at a time.
CHUNK = 4096


class FlowDensity(DensityMixin, BaseEstimator):
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

        Raises:
            ValueError: if numbers are NaN or infinite, rows do not match or have no density, or an option is wrong.
            FloatingPointError: if too many steps were not finite.
        """
        listener = Listener("FlowDensity", callback)
        self._fit(X, context, sample_weight, listener)
        listener.pass_on()
        return self

    @all_or_nothing
    def _fit(
        self, X: ArrayLike, context: ArrayLike | None, sample_weight: ArrayLike | None, listener: Listener
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
            self._train(*map(self._tensor, (X, context, weight)), listener)
        self.log_.notes += self._units.notes

    def _train(self, rows: Tensor, context: Tensor, weight: Tensor, listener: Listener) -> None:
        dim, order = rows.shape[1], torch.randperm(len(rows), device="cpu").to(self.device)
        held = min(round(self.validation_fraction * len(rows)), len(rows) - 1)
        scaled, ladj = self._units.rows.inv.call_and_ladj(rows)
        whole = [t[order].to(scaled) for t in (scaled, self._standard(context), weight)]
        validation, training = ([t[part] for t in whole] for part in (slice(held), slice(held, None)))
        self.prior_ = FlowPrior(dim, self.flow, context.shape[1], components=self.components).to(scaled)
        self.log_: EpochLog = Epochs(self.prior_, lr=self.lr, weight_decay=self.weight_decay).run(
            self._loss,
            Batches(training, self.batch_size),
            self.epochs,
            validate=(lambda: self._loss(*validation).item()) if held else None,
            patience=self.patience,
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

    def _given(self, context: Tensor, temperature: float = 1.0) -> Any:
        # Not called: Pyro would register the parameters, for a model around it to learn once more.
        return self.prior_.forward(context if context.shape[-1] else None, temperature)

    def _density(self, context: Tensor, temperature: float = 1.0) -> FlowDistribution:
        given = self._given(context, temperature)
        return FlowDistribution(given.base, Compose([given.transform, self._units.rows]), validate_args=False)

    @torch.no_grad()
    def score_samples(self, X: ArrayLike, context: ArrayLike | None = None) -> NDArray:
        """The log density of each row, shape ``(rows,)``, in nats; -inf where it is too small for a number."""
        x, context = self._inputs(X, context)
        parts = zip(x.split(CHUNK), context.split(CHUNK), strict=True)
        return _array(torch.cat([log_density(self._density(c), part) for part, c in parts]))

    def score(
        self, X: ArrayLike, y: object = None, context: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """The mean log density, which a search maximises."""
        return float(np.average(self.score_samples(X, context), weights=sample_weight))

    @torch.no_grad()
    def sample(
        self,
        n_samples: int = 1,
        context: ArrayLike | None = None,
        *,
        temperature: float = 1.0,
        random_state: Any = None,
    ) -> NDArray:
        """Draws ``(n_samples, D)``, or ``(n_samples, rows, D)`` for a context ``(rows, C)``.

        Args:
            n_samples: how many, for each row of the context.
            context: shape ``(C,)`` or ``(rows, C)``.
            temperature: below 1, draws are more typical and less diverse.
            random_state: a seed, None for torch's generator as it is.
        """
        check_counts("FlowDensity", {"n_samples": 0}, n_samples=n_samples)
        given = self._standard(self._tensor(np.zeros(0) if context is None else np.asarray(context, dtype=float)))
        with seeded(random_state, torch.device(self.device)):
            return _array(self._density(given, temperature).sample((n_samples,)))

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The density as a distribution for Pyro, in the units of the data: a prior or a likelihood that was learnt.

        Draws have double precision, as the data had. It has gradients by its ``context`` of shape ``(..., C)``, which
        may be latent: NUTS and ``fit`` can use it.
        """
        return self._density(self._standard(torch.empty(0) if context is None else context))

    @torch.no_grad()
    def to_base(self, X: ArrayLike, context: ArrayLike | None = None) -> NDArray:
        """Where each row comes from in the base, shape ``(rows, D)``."""
        x, context = self._inputs(X, context)
        return _array(self._density(context).transform.inv(x))

    @torch.no_grad()
    def from_base(self, Z: ArrayLike, context: ArrayLike | None = None) -> NDArray:
        """The rows that points of the base are mapped to, shape ``(rows, D)``."""
        z = self._tensor(check_array(Z, dtype=np.float64)).to(self._units.rows.dtype)
        given = self._standard(self._tensor(context_of(context, z)))
        return _array(self._density(given).transform(z))

    @torch.no_grad()
    def interpolate(self, a: ArrayLike, b: ArrayLike, steps: int = 10) -> NDArray:
        """Rows on a path from row ``a`` to row ``b``, both included, along an arc of the base: ``(steps, D)``."""
        ends = self._units.rows.inv(self._inputs(np.stack([np.asarray(a), np.asarray(b)]), None)[0])
        return _array(self._units.rows(self.prior_.path(*ends, steps)))

    def outlier_score(self, X: ArrayLike, context: ArrayLike | None = None, kind: str = "likelihood") -> NDArray:
        """How much of an outlier each row is, shape ``(rows,)``, in nats; larger is further out.

        Args:
            X: shape ``(rows, D)``.
            context: shape ``(rows, C)``.
            kind: ``"likelihood"``, the negative log density, or ``"typicality"``, its distance from
                ``entropy_``: in many dimensions rows can be too likely to be typical.

        References:
            Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality. Nalisnick, Matsukawa,
            Teh, Lakshminarayanan, 2019. https://arxiv.org/abs/1906.02994
        """
        if kind not in ("likelihood", "typicality"):
            raise ValueError(f"FlowDensity expected kind='likelihood' or 'typicality', got {kind!r}")
        nats = -self.score_samples(X, context)
        return nats if kind == "likelihood" else np.abs(nats - self.entropy_)

    @torch.no_grad()
    def calibration(self, X: ArrayLike, context: ArrayLike | None = None, draws: int = 200) -> NDArray:
        """For each row the share of draws that are likelier than it, shape ``(rows,)``.

        If the density is right the shares are uniform: a region of highest density that should hold half of the
        draws then holds half of the rows, in any dimension.
        """
        x, context = self._inputs(X, context)
        density = self._density(context).expand(x.shape[:1])
        drawn = log_density(density, density.sample((draws,)).clone())
        return (drawn > log_density(density, x)).double().mean(0).cpu().numpy()

    def plot_calibration(self, X: ArrayLike, context: ArrayLike | None = None, ax: Any = None) -> Any:
        """The share of the rows in regions of highest density, against what it should be; returns the Figure."""
        return plot_calibration(self.calibration(X, context), ax)

    def plot_trajectory(self, count: int = 4000) -> Any:
        """Draws of the base on their way through the layers, in the first two dimensions; returns the Figure."""
        check_is_fitted(self)
        density = self._given(torch.empty(0))
        with torch.no_grad():
            return plot_trajectory([_array(x) for x in density.transform.trajectory(density.base.sample((count,)))])

    def _inputs(self, X: ArrayLike, context: ArrayLike | None) -> tuple[Tensor, Tensor]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._tensor(X), self._standard(self._tensor(context_of(context, X)))

    def _standard(self, context: Tensor) -> Tensor:
        check_is_fitted(self)
        return self._units.standard(context)

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=self.device)


def _array(values: Tensor) -> NDArray:
    return values.double().cpu().numpy()
