"""What a density of rows answers once it is fitted: scores, draws, ways to and from its base, outliers, calibration."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..arguments import check_counts
from ..distributions import FlowDistribution
from ..seeds import seeded
from ..transforms import Compose
from ..vae import FlowPrior
from .columns import Units, log_density
from .inputs import context_of
from .plots import plot_calibration, plot_trajectory

# Rows that are scored at a time.
CHUNK = 4096


class FittedDensity(DensityMixin, BaseEstimator):
    """What a :class:`~pyroflows.density.FlowDensity` answers once it is fitted."""

    prior_: FlowPrior
    entropy_: float
    device: str
    _units: Units

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
