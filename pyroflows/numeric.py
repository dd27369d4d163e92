"""Numerical helpers shared by every floor: plain torch, no modules and no Pyro."""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def soft_clip(x: Tensor, bound: float) -> Tensor:
    """Squashes ``x`` smoothly into ``(-bound, bound)`` with unit slope at zero.

    ``x / (1 + |x| / bound)``. An infinite ``x`` gives NaN rather than ``bound``, so that a parameter that
    has run away is seen and not hidden.

    Example:
        >>> soft_clip(torch.tensor([0.0, 3.0, -1e30]), 3.0).tolist()
        [0.0, 1.5, -3.0]
    """
    return x / torch.add(1, x.abs(), alpha=1 / bound)


def soft_unclip(y: Tensor, bound: float) -> Tensor:
    """The ``x`` that :func:`soft_clip` maps to ``y``, for ``|y| < bound``."""
    return y / (1 - y.abs() / bound)


def slope(outputs: list[Tensor], z: Tensor, weights: list[Tensor]) -> Tensor:
    """The gradient of the weighted outputs by ``z``, zero where they do not depend on it; their graph is kept."""
    moving = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not moving:
        return torch.zeros_like(z)
    outputs, weights = map(list, zip(*moving, strict=True))
    (slope,) = torch.autograd.grad(outputs, z, weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if slope is None else slope


def is_traced(*tensors: Tensor) -> bool:
    """True when a compiler, a tracer or a functorch transform looks on.

    Then tensors stand for many values, and nothing may depend on what they hold.
    """
    return torch.jit.is_tracing() or is_symbolic(*tensors)


def is_symbolic(*tensors: Tensor) -> bool:
    """True when :func:`is_traced` and nothing may depend on the identity of tensors either.

    Under ``torch.jit.trace`` tensors are those of an ordinary run.
    """
    if torch.compiler.is_compiling():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None or _get_current_dispatch_mode_stack():
        return True
    return any(type(t) not in (Tensor, torch.nn.Parameter) or t.is_inference() for t in tensors)


def is_plain_backward(*tensors: Tensor) -> bool:
    """Whether autograd, and perhaps vmap, look on (at these tensors, if any), but no compiler and no other derivative.

    Then a function may have a gradient of its own.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or []
    vmaps = all(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)
    # Under vmap a tensor does not tell whether what it stands for requires a gradient.
    moves = levels or not tensors or any(t.requires_grad for t in tensors)
    return bool(moves) and vmaps and torch.autograd.forward_ad._current_level < 0


def is_compiled_backward() -> bool:
    """Whether torch.compile traces what autograd alone looks on at: then, too, a gradient may be written."""
    return torch.compiler.is_compiling() and torch.is_grad_enabled() and not _is_transformed()


def _is_transformed() -> bool:
    """Whether a transform of torch.func looks on."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# The compiler cannot trace that question: it takes the answer that it gets while it traces. This is all that
# torch.compiler.assume_constant_result does, after it has imported TorchDynamo.
_is_transformed._dynamo_marked_constant = True


def gradient_by_autograd(
    function: Callable[..., Sequence[Tensor]], given: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradient of a function's first outputs, given theirs (None: zero), with a graph of its own.

    What a written gradient gives way to where it is differentiated itself.
    """
    moves = [t is not None and t.requires_grad for t in given]
    own = [t.view_as(t) if move else t for t, move in zip(given, moves, strict=True)]
    found = function(*own)[: len(grads)]
    outs, grads = zip(*((o, g) for o, g in zip(found, grads, strict=True) if g is not None), strict=True)
    leaves = [t for t, move in zip(own, moves, strict=True) if move]
    slopes = iter(torch.autograd.grad(outs, leaves, grads, create_graph=True, allow_unused=True))
    return [next(slopes) if move else None for move in moves]


def is_autocast(z: Tensor) -> bool:
    """Whether products are rounded more than ``z`` is."""
    kind = z.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_counts(caller: str, least: dict[str, int], **counts: object) -> None:
    """Raises a ValueError unless each count is a whole number that is not below its least, 1 where none is named."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < least.get(name, 1):
            low = least.get(name, 1)
            raise ValueError(f"{caller} expected {name} to be a whole number from {low} on, got {value!r}")


def check_ranges(caller: str, low: float, high: float, **numbers: float) -> None:
    """Raises a ValueError unless each number is at least ``low`` and below ``high``."""
    for name, value in numbers.items():
        if not low <= value < high:
            raise ValueError(f"{caller} expected {low} <= {name} < {high}, got {value!r}")


def seed_of(name: str) -> int:
    """A seed from 0 to 2^63 - 1 for random numbers that nobody else draws, by what they are for.

    Data are often made from the seed 0, 1 or 42. Draws that judge a fit to such data must not have the same numbers.

    Example:
        >>> seed_of("an example")
        8492489780910537357
    """
    return int.from_bytes(hashlib.sha256(f"pyroflows: {name}".encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int | None, *devices: torch.device) -> Iterator[None]:
    """Runs a block from its own seed and leaves the generators as they were; ``None`` changes nothing."""
    if seed is None:
        yield
        return
    elsewhere = any(device.type != "cpu" for device in devices)
    with torch.random.fork_rng(range(torch.cuda.device_count()) if elsewhere else []):
        # torch.manual_seed would also seed GPUs that are not in use yet.
        (torch.manual_seed if elsewhere else torch.default_generator.manual_seed)(seed)
        yield


def all_or_nothing(method: Callable) -> Callable:
    """A method that leaves the attributes of its object as they were if it raises."""

    @functools.wraps(method)
    def safe(self: object, *args: object, **kwargs: object) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return safe


def between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points on the arc from vector ``a`` to vector ``b``, of shape ``(steps, D)``; norms go from one to the other.

    A straight line between draws of a normal in many dimensions would pass too near the origin.

    Example:
        >>> between(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 3)[1]
        tensor([1.4142, 1.4142])
    """
    share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).unsqueeze(-1)
    norms = a.norm(), b.norm()
    angle = torch.atan2((a * norms[1] - b * norms[0]).norm(), (a * norms[1] + b * norms[0]).norm()) * 2
    if not 1e-4 < angle < math.pi - 1e-4:  # a line, where there is no arc or more than one
        return torch.lerp(a, b, share)
    direction = (torch.sin((1 - share) * angle) * a / norms[0] + torch.sin(share * angle) * b / norms[1]) / angle.sin()
    return torch.lerp(*norms, share) * direction
