"""Whether two functions of tensors do the same, and what their arguments are changed to."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from ..seeds import seed_of, seeded

aten = torch.ops.aten
COPY = aten.copy_.default


def equal(expected: Callable, got: Callable, tensors: Sequence[Tensor], tolerance: float = 1e-4) -> bool:
    """Whether two functions do the same from the same seed, also to their arguments.

    Args:
        expected: a function of tensors.
        got: the other one.
        tensors: what they are called with, copied.
        tolerance: largest difference of a number, relative to it and to the largest of its tensor.
    """
    results = []
    for function in (expected, got):
        given = copies(tensors)
        with seeded(seed_of("two functions that are compared"), *(t.device for t in given)):
            results.append([*function(*given), *given])
    return all(close(a, b, tolerance) for a, b in zip(*results, strict=True))


def close(expected: Tensor, got: Tensor, tolerance: float) -> bool:
    """Whether numbers differ by no more than a multiple of themselves and of the largest of their tensor."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not expected.is_floating_point() and not expected.is_complex():
        return torch.equal(expected, got)
    finite = expected[expected.isfinite()]
    scale = finite.abs().max().item() if len(finite) else 0.0
    return torch.allclose(expected, got, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def coarsest(module: fx.GraphModule) -> float:
    """The distance from 1 to the next number in the coarsest type of numbers in a graph."""
    kinds = {node.meta["kind"][2] for node in module.graph.nodes if "kind" in node.meta}
    return max((torch.finfo(kind).eps for kind in kinds if kind.is_floating_point), default=1.0)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same with memory of their own, strides kept; what is expanded stays, as nothing can change it in place."""
    fresh = []
    for t in tensors:
        apart = not is_expanded(t)
        memory = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) if apart else t
        fresh.append(memory.copy_(t.detach()) if apart else t.detach())
    return fresh


def is_expanded(tensor: Tensor) -> bool:
    """Whether several of its numbers lie in one place."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def changed(module: fx.GraphModule) -> set[int]:
    """Which arguments a graph changes in place."""
    written = {node.args[0] for node in module.graph.find_nodes(op="call_function", target=COPY)}
    return {index for index, node in enumerate(module.graph.find_nodes(op="placeholder")) if node in written}
