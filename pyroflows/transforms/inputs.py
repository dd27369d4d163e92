"""What goes into a transform, checked with messages that say what was expected, what came and what to do."""

from torch import Size, Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from ..autograd import is_autocast, is_traced
from .domains import is_whole_space


def shape_of(event: Size) -> str:
    """``(..., 3, 8, 8)``: any batch of events."""
    return f"(..., {', '.join(map(str, event))})"


def check_input(name: str, event: Size, value: Tensor) -> None:
    """Raises unless the value holds events of a shape."""
    last = "the last dimension is the vector" if len(event) == 1 else f"the last {len(event)} dimensions are the event"
    check_events(name, "an input", "numbers", event, value, f"{last}, all before it are batch")


def check_vectors(name: str, event: Size) -> None:
    """Raises unless events are vectors."""
    if len(event) != 1:
        raise ValueError(
            f"{name} expected vectors to have an input_dim, got events of shape {tuple(event)}: read event_shape"
        )


def check_context(name: str, context_dim: int, context: Tensor | None) -> None:
    """Raises unless a context is there where one is wanted, and is of its size."""
    if context is None and context_dim:
        raise ValueError(
            f"{name} expected a context of shape (..., {context_dim}), got none: "
            f"pass it to the call, or use .condition(context)"
        )
    if context is not None:
        if not context_dim:
            raise ValueError(f"{name} expected no context, got one: build it with context_dim > 0")
        last = "its last dimension is the context_dim that the transform was made with"
        check_events(name, "a context", "numbers as context", Size((context_dim,)), context, last)


def check_batches(name: str, batch: Size, given: Size) -> None:
    """Raises unless the batches of an input and a context broadcast."""
    if not all(m == n or m == 1 or n == 1 for m, n in zip(reversed(batch), reversed(given), strict=False)):
        raise ValueError(
            f"{name} expected an input and a context whose batches broadcast, got {tuple(batch)} for the input and "
            f"{tuple(given)} for the context: give one context for each row, or one for all"
        )


def check_events(name: str, what: str, numbers: str, event: Size, value: Tensor, last: str) -> None:
    """Raises unless the value holds events of a shape, of floating point and without NaN; ``last`` is the remedy."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} expected {what} that is a floating-point tensor, got {got}: convert it first")
    if value.shape[max(0, value.dim() - len(event)) :] != event:
        raise ValueError(f"{name} expected {what} of shape {shape_of(event)}, got {tuple(value.shape)}: {last}")
    if is_readable(value) and value.isnan().any():
        raise ValueError(
            f"{name} expected {numbers}, got NaN in {int(value.isnan().sum())} of {value.numel()} places: "
            f"drop or impute them, or look for the step that made them"
        )


def check_domain(name: str, domain: Constraint, value: Tensor) -> None:
    """Raises unless events are in a domain."""
    if value.numel() and not is_whole_space(domain) and not (good := domain.check(value)).all():
        raise ValueError(
            f"{name} expected inputs in {domain}, got {int((~good).sum())} of {good.numel()} that are not: "
            f"look at their bounds, or take another constraint"
        )


def check_dtype(name: str, what: str, value: Tensor, dtype: object) -> None:
    """Raises unless the value has a dtype; under autocast, which converts, it may have another one."""
    if dtype in (None, "any", value.dtype) or is_autocast(value):
        return
    raise TypeError(
        f"{name} expected {what} of {dtype}, the dtype of its parameters, got {value.dtype}: convert it by "
        f".to({dtype}), or the transform by .to({value.dtype})"
    )


def is_readable(value: Tensor) -> bool:
    """Whether validation is on, and values may be looked at."""
    return Distribution._validate_args and not is_traced(value)
