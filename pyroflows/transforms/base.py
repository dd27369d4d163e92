"""The one abstraction: a transform that is a Pyro TransformModule, conditional or not."""

from abc import abstractmethod

import torch
from pyro.distributions import TransformModule
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from ..arguments import check_sizes
from ..autograd import is_autocast, is_traced, slope
from .last_call import Memo


class FlowTransform(TransformModule, ConditionalTransform):
    """An invertible map of vectors with its log-determinant, in both directions.

    A subclass writes one method, :meth:`_map`, and nothing else. Forward goes from the base to the data, as
    in Pyro. It gets :meth:`call_and_ladj`, :attr:`inv`, :meth:`condition`, torch's ``Transform`` protocol,
    checks of what goes in, and a memory that makes sampling and scoring the same value one evaluation.

    :attr:`fast` says which direction is cheap: ``"both"``, ``"forward"`` (sampling), ``"inverse"`` (scoring of
    given data) or ``"neither"``.

    Args:
        input_dim: size ``D`` of the vectors; inputs have shape ``(..., D)``.
        context_dim: size of the context vectors, 0 for a transform without context.

    Raises:
        ValueError: if a size is out of range.
    """

    domain = codomain = constraints.real_vector
    bijective = True
    sign = 1
    batch_shape = torch.Size()
    fast = "both"

    def __init__(self, input_dim: int, context_dim: int = 0) -> None:
        super().__init__()
        check_sizes(type(self).__name__, input_dim, context_dim)
        self.input_dim, self.context_dim = input_dim, context_dim
        self._memo = Memo()

    @abstractmethod
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Maps ``(..., D)`` one way; returns the value and its ladj of shape ``(...)``.

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
            x: shape ``(..., D)``.
            context: shape ``(..., context_dim)``, its batch broadcasts with that of ``x``.

        Returns:
            The value ``(..., D)`` and ``log |det J|`` of shape ``(...)``.

        Raises:
            TypeError: if an input is not a floating-point tensor of the dtype of the parameters.
            ValueError: if a shape does not fit, or ``x`` holds a NaN while validation is on.
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

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """The shape that an input of ``shape`` is mapped to: batches broadcast with the context's."""
        if not shape or shape[-1] != self.input_dim:
            raise ValueError(f"{self._name} expected a shape (..., {self.input_dim}), got {tuple(shape)}")
        return torch.broadcast_shapes(shape[:-1], self.batch_shape) + shape[-1:]

    inverse_shape = forward_shape

    def with_cache(self, cache_size: int = 1) -> "FlowTransform":
        """Itself: the memory needs no switch."""
        return self

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"input_dim={self.input_dim}{context}"

    def __getstate__(self) -> dict:
        """The state without what was remembered of the last call."""
        return {**super().__getstate__(), "_memo": Memo()}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _run(self, z: Tensor, context: Tensor | None, inverse: bool, keep: bool = False) -> tuple[Tensor, Tensor]:
        """Checks, then recalls or maps. ``keep`` remembers the call for an inverse or a ladj asked next."""
        last = "the last dimension is the vector, all before it are batch"
        _check_vectors(self._name, "an input", "numbers", self.input_dim, z, last)
        _check_dtype(self._name, "an input", z, self._takes(inverse))
        self._check_context(context)
        self._check_batches(z, context)
        out = self._memo.recall(self, context, inverse, z)
        if out is None:
            out = self._map(z, context, inverse)
            if keep:
                self._memo.store(self, context, inverse, z, out)
        elif not keep:
            self._memo.clear()
        return out

    def _takes(self, inverse: bool) -> torch.dtype | str | None:
        """The dtype of what is mapped one way: that of the parameters, None without any, "any" where it converts."""
        if torch.compiler.is_compiling():  # and cannot look for parameters where there are none
            return None
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def _check_batches(self, z: Tensor, context: Tensor | None) -> None:
        given = self.batch_shape if context is None else context.shape[:-1]
        if not all(m == n or m == 1 or n == 1 for m, n in zip(z.shape[-2::-1], reversed(given), strict=False)):
            raise ValueError(
                f"{self._name} expected an input and a context whose batches broadcast, got {tuple(z.shape[:-1])} for "
                f"the input and {tuple(given)} for the context: give one context for each row, or one for all"
            )

    def _check_context(self, context: Tensor | None) -> None:
        if context is None:
            if self.context_dim:
                raise ValueError(
                    f"{self._name} expected a context of shape (..., {self.context_dim}), got none: "
                    f"pass it to the call, or use .condition(context)"
                )
            return
        if not self.context_dim:
            raise ValueError(f"{self._name} expected no context, got one: build it with context_dim > 0")
        last = "its last dimension is the context_dim that the transform was made with"
        _check_vectors(self._name, "a context", "numbers as context", self.context_dim, context, last)
        _check_dtype(self._name, "a context", context, FlowTransform._takes(self, False))


class Inverse(FlowTransform):
    """The inverse of a transform, over the same parameters; made by :attr:`FlowTransform.inv`."""

    def __init__(self, transform: FlowTransform) -> None:
        super().__init__(transform.input_dim, transform.context_dim)
        self.transform = transform
        self.batch_shape = transform.batch_shape
        self.fast = {"forward": "inverse", "inverse": "forward"}.get(transform.fast, transform.fast)

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


class Conditioned(FlowTransform):
    """A transform with its context fixed, over the same parameters; made by ``condition``.

    Args:
        transform: a transform with ``context_dim > 0``.
        context: shape ``(..., context_dim)``.
    """

    def __init__(self, transform: FlowTransform, context: Tensor) -> None:
        super().__init__(transform.input_dim)
        self.transform, self.fast = transform, transform.fast
        self.register_buffer("context", context, persistent=False)
        self.batch_shape = torch.broadcast_shapes(transform.batch_shape, context.shape[:-1])

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return self.transform._map(z, self.context, inverse)

    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.transform._map_and_score(x, self.context, score)

    def _takes(self, inverse: bool) -> torch.dtype | str | None:
        return self.transform._takes(inverse)


def _check_vectors(name: str, what: str, numbers: str, size: int, value: Tensor, last: str) -> None:
    """Raises unless the value holds vectors of a size, of floating point and without NaN; ``last`` is the remedy."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} expected {what} that is a floating-point tensor, got {got}: convert it first")
    if value.shape[-1:] != (size,):
        raise ValueError(f"{name} expected {what} of shape (..., {size}), got {tuple(value.shape)}: {last}")
    if Distribution._validate_args and not is_traced(value) and value.device.type != "meta" and value.isnan().any():
        raise ValueError(
            f"{name} expected {numbers}, got NaN in {int(value.isnan().sum())} of {value.numel()} places: "
            f"drop or impute them, or look for the step that made them"
        )


def _check_dtype(name: str, what: str, value: Tensor, dtype: torch.dtype | str | None) -> None:
    """Raises unless the value has a dtype; under autocast, which converts, it may have another one."""
    if dtype in (None, "any", value.dtype) or is_autocast(value):
        return
    raise TypeError(
        f"{name} expected {what} of {dtype}, the dtype of its parameters, got {value.dtype}: convert it by "
        f".to({dtype}), or the transform by .to({value.dtype})"
    )
