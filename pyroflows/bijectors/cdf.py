"""Distribution functions as maps: of a support onto the numbers from 0 to 1, and back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from .base import Elementary, strictly
from .inline import root_in


@dataclass(frozen=True)
class NormalCDF(Elementary):
    """``y = Phi(x)``, the standard normal's distribution function; its inverse is the probit. Closed form both ways.

    More exact in the tails than ``DistributionCDF(Normal(0.0, 1.0))``.
    """

    codomain = constraints.unit_interval

    def _value(self, x: Tensor) -> Tensor:
        return strictly(torch.special.log_ndtr(x).exp(), 0.0, 1.0)  # whose lower tail has more digits than ndtr's

    def _back(self, y: Tensor) -> Tensor:
        return torch.special.ndtri(strictly(y, 0.0, 1.0))

    def _log_slope(self, x: Tensor) -> Tensor:
        return -(x * x) / 2 - math.log(2 * math.pi) / 2


@dataclass(frozen=True)
class ExponentialCDF(Elementary):
    """``y = 1 - exp(-rate x)``, from the positive numbers onto those from 0 to 1. Closed form both ways.

    Args:
        rate: positive.

    Raises:
        ValueError: if the rate is not positive.
    """

    rate: float = 1.0
    domain = constraints.positive
    codomain = constraints.unit_interval

    def __post_init__(self) -> None:
        """Checks the rate."""
        if not 0 < self.rate < math.inf:
            raise ValueError(f"ExponentialCDF expected a positive rate, got {self.rate}")

    def _value(self, x: Tensor) -> Tensor:
        return strictly(-torch.expm1(-self.rate * x), 0.0, 1.0)

    def _back(self, y: Tensor) -> Tensor:
        return -torch.log1p(-strictly(y, 0.0, 1.0)) / self.rate

    def _log_slope(self, x: Tensor) -> Tensor:
        return math.log(self.rate) - self.rate * x


@dataclass(frozen=True)
class DistributionCDF(Elementary):
    """``y = F(x)``, the distribution function of a continuous distribution; ``.inv`` makes draws of uniform numbers.

    The slope is its density. Forward costs one ``cdf``; the inverse one ``icdf``, or a search for the root where torch
    has none. The distribution's numbers take the dtype and the device of what is mapped; they are not learnt.

    Args:
        distribution: of single numbers, without a batch shape, with a ``cdf``.

    Raises:
        ValueError: if it is not of this kind.

    Example:
        >>> from torch.distributions import Gumbel
        >>> DistributionCDF(Gumbel(0.0, 1.0)).inv.forward(torch.tensor(0.5))[0]
        tensor(0.3665)
    """

    distribution: Distribution

    def __post_init__(self) -> None:
        """Checks the distribution."""
        given = self.distribution
        scalar = isinstance(given, Distribution) and not (given.batch_shape + given.event_shape)
        if not scalar or not self._has("cdf") or given.support.is_discrete:
            raise ValueError(
                f"DistributionCDF expected one continuous distribution of numbers that has a cdf, without a batch "
                f"shape, got {given}: give each dimension a bijector of its own by transforms.Part"
            )

    @property
    def domain(self) -> Constraint:
        """The support of the distribution."""
        return self.distribution.support

    codomain = constraints.unit_interval

    @property
    def fast(self) -> str:
        """``"both"`` where the distribution has an ``icdf``."""
        return "both" if self._has("icdf") else "forward"

    def _has(self, name: str) -> bool:
        half = torch.tensor(0.5)
        try:
            getattr(self._as(half), name)(half)
        except NotImplementedError:
            return False
        return True

    def _as(self, like: Tensor) -> Distribution:
        """The distribution in the dtype and on the device of a tensor."""
        given = self.distribution
        names = [name for name in given.arg_constraints if name != "logits"]  # which stand for the same as probs
        numbers = {name: getattr(given, name).to(like) for name in names}
        return type(given)(**numbers, validate_args=False) if numbers else given

    def _value(self, x: Tensor) -> Tensor:
        return strictly(self._as(x).cdf(x), 0.0, 1.0)

    def _back(self, y: Tensor) -> Tensor:
        y = strictly(y, 0.0, 1.0)
        return self._as(y).icdf(y) if self._has("icdf") else root_in(self.domain, self.forward, y)

    def _log_slope(self, x: Tensor) -> Tensor:
        return self._as(x).log_prob(x)
