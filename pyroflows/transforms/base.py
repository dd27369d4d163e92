"""The one abstraction: a transform that is a Pyro TransformModule, conditional or not."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from ..autograd import slope
from .events import EventTransform
from .last_call import Memo


class FlowTransform(EventTransform):
    """An invertible map of vectors, images or other events with its log-determinant, in both directions.

    A subclass writes one method, :meth:`_map`, and nothing else. Forward goes from the base to the data, as
    in Pyro. It gets :meth:`call_and_ladj`, :attr:`inv`, :meth:`condition`, torch's ``Transform`` protocol,
    checks of what goes in, and a memory that makes sampling and scoring the same value one evaluation.

    :attr:`fast` says which direction is cheap: ``"both"``, ``"forward"`` (sampling), ``"inverse"`` (scoring of
    given data) or ``"neither"``. Where a map is not of the whole space onto itself, a subclass says so by
    :attr:`domain` and :attr:`codomain`.

    Args:
        input_dim: size ``D`` of the vectors, or the shape of the events: ``(C, H, W)`` for images, ``(C, T)`` for
            signals. Inputs have shape ``(..., D)``, or ``(..., *event_shape)``.
        context_dim: size of the context vectors, 0 for a transform without context.

    Raises:
        ValueError: if a size is out of range.
    """

    fast = "both"

    def __init__(self, input_dim: int | Sequence[int], context_dim: int = 0) -> None:
        super().__init__(input_dim, context_dim)
        self._memo = Memo()

    @abstractmethod
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Maps ``(..., *event_shape)`` one way; returns the value and its ladj of shape ``(...)``.

        Batches of ``z`` and ``context`` broadcast. The ladj belongs to the direction taken.
        """

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps forward; also carries ``score``, the slope of a log density at ``x``, to the slope at the value.

        Of what is returned only the value has gradients for the parameters. Here the slope is that of the inverse
        pass; a structure that knows its Jacobian does without.
        """
        value, ladj = self._map(x, context, False)
        with torch.enable_grad():
            fixed = value.detach().requires_grad_()
            back, ladj_back = self._map(fixed, context, True)
            score = slope([back, ladj_back], fixed, [score, torch.ones_like(ladj_back)])
        return value, ladj.detach(), score

    def call_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value and log-determinant in one pass; ``transform.inv.call_and_ladj(y)`` goes the other way.

        Args:
            x: shape ``(..., *event_shape)``, which is ``(..., D)`` for vectors.
            context: shape ``(..., context_dim)``, its batch broadcasts with that of ``x``.

        Returns:
            The value ``(..., *event_shape)`` and ``log |det J|`` of shape ``(...)``.

        Raises:
            TypeError: if an input is not a floating-point tensor of the dtype of the parameters.
            ValueError: if a shape does not fit, or ``x`` holds a NaN or leaves the domain while validation is on.
        """
        return self._run(x, context, inverse=False)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The value alone."""
        return self._run(x, context, inverse=False, keep=True)[0]

    forward = __call__

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log |det dy/dx|`` of shape ``(...)`` for ``y = transform(x)``."""
        known = self._memo.recall(self, None, True, y)
        if known is not None and known[0] is x:
            self._memo.clear()
            return -known[1]
        known = self._memo.recall(self, None, False, x)
        if known is not None and known[0] is y:
            self._memo.clear()
            return known[1]
        return self._run(x, None, inverse=False)[1]

    @property
    def inv(self) -> "FlowTransform":
        """The inverse, a module over the same parameters; ``t.inv.inv is t``."""
        return Inverse(self)

    def condition(self, context: Tensor | None) -> "FlowTransform":
        """Fixes the context: a view over the same parameters whose batch shape is the context's.

        A transform without context returns itself, whatever the context: it may stand beside conditional ones in
        Pyro's ``ConditionalTransformedDistribution`` and ``ConditionalComposeTransformModule``.

        Raises:
            TypeError: if the context is not a floating-point tensor of the dtype of the parameters.
            ValueError: if the context does not fit.
        """
        if not self.context_dim:
            return self
        self._check_context(context)
        return Conditioned(self, context)

    def with_cache(self, cache_size: int = 1) -> "FlowTransform":
        """Itself: the memory needs no switch."""
        return self

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def __getstate__(self) -> dict:
        """The state without what was remembered of the last call."""
        return {**super().__getstate__(), "_memo": Memo()}

    def _run(self, z: Tensor, context: Tensor | None, inverse: bool, keep: bool = False) -> tuple[Tensor, Tensor]:
        """Checks, then recalls or maps. ``keep`` remembers the call for an inverse or a ladj asked next."""
        self._check_call(z, context, inverse)
        out = self._memo.recall(self, context, inverse, z)
        if out is None:
            out = self._map(z, context, inverse)
            if keep:
                self._memo.store(self, context, inverse, z, out)
        elif not keep:
            self._memo.clear()
        return out


class View(FlowTransform):
    """Another look at a transform, over the same parameters, of the same events, domain and codomain."""

    def __init__(self, transform: FlowTransform, context_dim: int = 0) -> None:
        super().__init__(transform.event_shape, context_dim)
        self.transform, self.batch_shape = transform, transform.batch_shape
        self.fast, self.sign = transform.fast, transform.sign

    @property
    def domain(self) -> Constraint:
        """The transform's."""
        return self.transform.domain

    @property
    def codomain(self) -> Constraint:
        """The transform's."""
        return self.transform.codomain

    def _takes(self, inverse: bool) -> torch.dtype | str | None:
        return self.transform._takes(inverse)


class Inverse(View):
    """The inverse of a transform, over the same parameters; made by :attr:`FlowTransform.inv`."""

    def __init__(self, transform: FlowTransform) -> None:
        super().__init__(transform, transform.context_dim)
        self.fast = {"forward": "inverse", "inverse": "forward"}.get(transform.fast, transform.fast)

    @property
    def domain(self) -> Constraint:
        """The transform's codomain."""
        return self.transform.codomain

    @property
    def codomain(self) -> Constraint:
        """The transform's domain."""
        return self.transform.domain

    @property
    def inv(self) -> FlowTransform:
        """The transform itself."""
        return self.transform

    def condition(self, context: Tensor | None) -> FlowTransform:
        """The inverse of the conditioned transform."""
        return self.transform.condition(context).inv

    def _run(self, z: Tensor, context: Tensor | None, inverse: bool, keep: bool = False) -> tuple[Tensor, Tensor]:
        return self.transform._run(z, context, not inverse, keep)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log |det dy/dx|``, asked of the transform, which remembers."""
        return -self.transform.log_abs_det_jacobian(y, x)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return self.transform._map(z, context, not inverse)

    def _takes(self, inverse: bool) -> torch.dtype | str | None:
        return self.transform._takes(not inverse)


class Conditioned(View):
    """A transform with its context fixed, over the same parameters; made by ``condition``.

    Args:
        transform: a transform with ``context_dim > 0``.
        context: shape ``(..., context_dim)``.
    """

    def __init__(self, transform: FlowTransform, context: Tensor) -> None:
        super().__init__(transform)
        self.register_buffer("context", context, persistent=False)
        self.batch_shape = torch.broadcast_shapes(transform.batch_shape, context.shape[:-1])

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return self.transform._map(z, self.context, inverse)

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.transform._map_and_score(x, self.context, score)
