"""A flow as a Pyro distribution."""

from typing import ClassVar

import torch
from pyro.distributions import Independent, TorchDistribution
from pyro.distributions.conditional import ConditionalDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ..transforms import FlowTransform
from ..transforms.compose import as_flow
from ..transforms.domains import is_same
from ..transforms.fixed import Fixed
from .image import Image
from .support import check_support, inside_of, standard_base, support_of


class FlowDistribution(TorchDistribution, ConditionalDistribution):
    """The distribution of ``y = transform(x)`` for ``x`` drawn from a base.

    Sampling and then scoring the same value runs the transform once. The batch shape is that of the base
    broadcast with the context's, so every context row draws noise of its own. It can stand wherever Pyro
    takes a distribution: priors, guides, likelihoods, under plates, ``expand``, ``mask`` and NUTS.

    Args:
        base: a distribution over vectors of size ``D`` (events of the transform's shape), or over scalars in a batch
            whose last size is ``D`` (it is then made a vector). None is the standard normal on the transform's device
            and dtype, or the uniform where the transform's domain is an interval.
        transform: a flow; one with a context must be conditioned before sampling and scoring. Over a base that is
            given it may be one of torch's or Pyro's.
        validate_args: as in torch.
        path: as a guide's site, leave the score of the distribution out of the gradient of the ELBO, whose mean it
            does not change: gradients are then less noisy, without noise where the distribution is exact, and a step
            runs the inverse as well. For a base without parameters.

    Raises:
        TypeError: if ``transform`` is not a :class:`~pyroflows.transforms.FlowTransform`.
        ValueError: if the base does not have vectors of size ``D``, or leaves the transform's domain.

    Example:
        >>> from pyroflows.flows import nsf
        >>> density = FlowDistribution(transform=nsf(2))
        >>> density.log_prob(density.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        base: Distribution | None = None,
        transform: FlowTransform | None = None,
        validate_args: bool | None = None,
        *,
        path: bool = False,
    ) -> None:
        if base is not None:
            transform = as_flow(transform, base.event_shape or base.batch_shape[-1:])
        if not isinstance(transform, FlowTransform):
            raise TypeError(f"FlowDistribution expected a FlowTransform, got {type(transform).__name__}")
        base = standard_base(transform) if base is None else _as_events(base, transform.event_shape)
        batch_shape = _broadcast("a base and a context", base.batch_shape, transform.batch_shape)
        check_support(base, transform)
        self.base = base.expand(batch_shape) if batch_shape != base.batch_shape else base
        self.transform, self.path = transform, path
        super().__init__(batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether the base has."""
        return self.base.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """The codomain of the transform, or the image of the base's support, where that is not the whole domain."""
        inside = support_of(self.base)
        whole = inside is None or is_same(inside, self.transform.domain)
        return self.transform.codomain if whole else Image(inside, self.transform)

    @property
    def base_dist(self) -> Distribution:
        """The base, by the name that it has in torch's ``TransformedDistribution``."""
        return self.base

    @property
    def transforms(self) -> list[FlowTransform]:
        """The transform alone in a list, as code for torch's ``TransformedDistribution`` reads it."""
        return [self.transform]

    @property
    def mean(self) -> Tensor:
        """Not known in closed form, nor that of torch's ``TransformedDistribution``."""
        raise NotImplementedError("FlowDistribution has no mean in closed form: take draws, or the guide's mean()")

    @property
    def variance(self) -> Tensor:
        """Not known in closed form, nor that of torch's ``TransformedDistribution``."""
        raise NotImplementedError("FlowDistribution has no variance in closed form: take draws, or the guide's sd()")

    def condition(self, context: Tensor) -> "FlowDistribution":
        """The distribution for a context of shape ``(..., context_dim)``; its batch broadcasts.

        Raises:
            ValueError: if the transform takes no context.
        """
        self.transform._check_context(context)  # which the transform itself may be given in vain
        return FlowDistribution(self.base, self.transform.condition(context), self._validate_args, path=self.path)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "FlowDistribution":
        """The same distribution with a larger batch of independent draws."""
        return FlowDistribution(self.base.expand(batch_shape), self.transform, self._validate_args, path=self.path)

    def rsample(self, sample_shape: Size | tuple = ()) -> Tensor:
        """Draws ``sample_shape + batch_shape + event_shape`` with gradients."""
        return self.transform(self.base.rsample(Size(sample_shape)))

    def sample(self, sample_shape: Size | tuple = ()) -> Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            return self.transform(self.base.sample(Size(sample_shape)))

    def rsample_and_log_prob(self, sample_shape: Size | tuple = ()) -> tuple[Tensor, Tensor]:
        """Draws with gradients, and their log density, in one pass."""
        x = self.base.rsample(Size(sample_shape))
        y, ladj = self.transform.call_and_ladj(x)
        return y, self._log_base(x) - ladj

    def rsample_and_score(self, sample_shape: Size | tuple = ()) -> tuple[Tensor, Tensor, Tensor]:
        """Draws with gradients, their log density, and its slope there (the score); these two without gradients.

        One forward pass where the transform consists of couplings and affine maps.

        References:
            Fast and Unified Path Gradient Estimators for Normalizing Flows. Vaitl, Winkler, Richter, Kessel, 2024.
            https://arxiv.org/abs/2403.15881
        """
        x = self.base.rsample(Size(sample_shape)).detach()
        with torch.enable_grad():
            fixed = x.requires_grad_()
            log_prob = self._log_base(fixed)
            (score,) = torch.autograd.grad(log_prob.sum(), fixed)
        y, ladj, score = self.transform._map_and_score(x, None, score)
        return y, log_prob.detach() - ladj, score

    def rsample_and_score_parts(self, sample_shape: Size | tuple = ()) -> tuple[Tensor, ScoreParts]:
        """Draws with gradients, and what Pyro's ELBOs take of a guide's site, without a second forward pass."""
        y, log_prob = self.rsample_and_log_prob(sample_shape)
        return y, self._parts(y, log_prob)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """What Pyro's ELBOs take of a guide's site.

        References:
            Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference.
            Roeder, Wu, Duvenaud, 2017. https://arxiv.org/abs/1703.09194
        """
        return self._parts(value, self.log_prob(value))

    def _parts(self, value: Tensor, log_prob: Tensor) -> ScoreParts:
        if not self.has_rsample:
            return ScoreParts(log_prob, log_prob, 0)
        if not self.path:
            return ScoreParts(log_prob, 0, log_prob)
        return ScoreParts(log_prob, 0, FlowDistribution(self.base, Fixed(self.transform)).log_prob(value))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value`` of shape ``(..., *event_shape)``; free of a second pass right after sampling it.

        Off the support it is ``-inf``, or a ValueError while validation is on.
        """
        batch = value.shape[: max(0, value.dim() - len(self.event_shape))]
        _broadcast("a distribution and values", self.batch_shape, batch)
        value, off = inside_of(self.transform.codomain, value)
        x, ladj = self.transform.inv.call_and_ladj(value)
        log_prob = self._log_base(x) + ladj
        return log_prob if off is None else torch.where(off, -torch.inf, log_prob)

    def cdf(self, value: Tensor) -> Tensor:
        """``P(Y <= value)`` of shape ``(...)`` for ``value`` of shape ``(..., 1)``; ``D`` must be 1."""
        scalar = self._scalar_base("cdf")
        below = scalar.cdf(self.transform.inv(value)).squeeze(-1)
        return below if self.transform.sign > 0 else 1 - below

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile of shape ``(..., 1)`` for a probability of shape ``(...)``; ``D`` must be 1."""
        scalar = self._scalar_base("icdf")
        below = value if self.transform.sign > 0 else 1 - value
        return self.transform(scalar.icdf(below.unsqueeze(-1)))

    def _log_base(self, x: Tensor) -> Tensor:
        # torch's Independent cannot sum over the dimensions of no rows.
        return self.base.log_prob(x) if x.numel() else x.flatten(-len(self.event_shape)).sum(-1)

    def _scalar_base(self, what: str) -> Distribution:
        independent = isinstance(self.base, torch.distributions.Independent)
        if tuple(self.event_shape) != (1,) or not independent or not self.transform.sign:
            raise ValueError(
                f"{what} expected one dimension over a base made by .to_event(1), and no circle, "
                f"got {self.transform.extra_repr()} over {self.base}"
            )
        return self.base.base_dist

    def __repr__(self) -> str:
        return f"FlowDistribution(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"


def _broadcast(what: str, first: Size, second: Size) -> Size:
    """The batch shape of two that must broadcast."""
    if not all(m == n or m == 1 or n == 1 for m, n in zip(reversed(first), reversed(second), strict=False)):
        shapes = f"{tuple(first)} and {tuple(second)}"
        raise ValueError(f"FlowDistribution expected {what} whose batches broadcast, got {shapes}")
    return torch.broadcast_shapes(first, second)


def _as_events(base: Distribution, event_shape: Size) -> Distribution:
    """Makes a batch of scalars whose last sizes are those of an event a distribution over events."""
    missing = len(event_shape) - len(base.event_shape)
    if missing > 0 and (base.batch_shape + base.event_shape)[-len(event_shape) :] == event_shape:
        base = Independent(base, missing)
    if base.event_shape != event_shape:
        one = len(event_shape) == 1
        events = f"vectors of size {event_shape[0]}" if one else f"events of shape {tuple(event_shape)}"
        raise ValueError(
            f"FlowDistribution expected a base over {events}, got event shape {tuple(base.event_shape)} and batch "
            f"shape {tuple(base.batch_shape)}: use .expand and .to_event({len(event_shape)})"
        )
    return base
