"""What torch is doing with tensors now: tracing, differentiating, casting; and gradients by autograd."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def slope(outputs: list[Tensor], z: Tensor, weights: list[Tensor]) -> Tensor:
    """The gradient of the weighted outputs by ``z``, zero where they do not depend on it; their graph is kept."""
    moving = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not moving:
        return torch.zeros_like(z)
    outputs, weights = map(list, zip(*moving, strict=True))
    (slope,) = torch.autograd.grad(outputs, z, weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if slope is None else slope


def is_traced(*tensors: Tensor) -> bool:
    """True when a compiler, a tracer or a functorch transform looks on, or on the meta device.

    Then tensors stand for many values, and nothing may depend on what they hold.
    """
    return torch.jit.is_tracing() or _is_looked_on(*tensors) or any(t.is_meta for t in tensors)


def is_symbolic(*tensors: Tensor) -> bool:
    """True when nothing may depend on the identity of tensors: when :func:`is_traced`, or they count no changes.

    Under ``torch.jit.trace`` tensors are those of an ordinary run.
    """
    return _is_looked_on(*tensors) or any(t.is_inference() for t in tensors)


def _is_looked_on(*tensors: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None or _get_current_dispatch_mode_stack():
        return True
    return any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)


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
    return torch.compiler.is_compiling() and torch.is_grad_enabled() and not is_transformed()


def is_transformed() -> bool:
    """Whether a transform of torch.func looks on."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# The compiler cannot trace that question: it takes the answer that it gets while it traces. This is all that
# torch.compiler.assume_constant_result does, after it has imported TorchDynamo.
is_transformed._dynamo_marked_constant = True


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
