"""Inductor on a graph that is already traced: no second tracing by Dynamo, no guards at each call."""

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing

from .compare import changed, coarsest, equal
from .cuda_graph import AUTOMATIC, launched
from .inductor_mends import mended, trusting
from .outline import outline

# Take the compiler to know the processor's instructions: to find out takes half of a short compilation.
TRUST = {"cpp.vec_isa_ok": True}  # with it goes trusting()
# All kernels in one C++ file, as to start and link costs as much as five of them, and their calls in another, which is
# compiled with fewer optimisations in less time and runs as fast. Else Python would call each.
FOR_CPU = {
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "aot_inductor.compile_wrapper_opt_level": "Og",
    # What is used twice and takes more operations than this becomes a variable. Inductor's own limit of 30 repeats it
    # at each use, with all that it was made of: single expressions of splines grow to 15,000 operations.
    "realize_opcount_threshold": 8,
}
# The same random numbers as without a compiler, so that results can be compared.
COMPARABLE = {"fallback_random": True}

_LOCK = threading.Lock()
_trusted = True


def compiled(module: fx.GraphModule, inputs: Sequence[Tensor], mode: str | None = None) -> Callable:
    """Compiles a graph at once, for tensors of exactly these shapes.

    Args:
        module: a graph that returns a list of tensors.
        inputs: all its arguments, as examples.
        mode: as in ``torch.compile``.

    Returns:
        A function of the same arguments, to be called under ``torch.no_grad()``.

    Raises:
        RuntimeError: if no compiler works here.
    """
    with warnings.catch_warnings():
        # Inductor's imports announce deprecations of torch's own.
        warnings.simplefilter("ignore")
        # They are slow to import, SymPy with them, and few programs compile.
        from torch import _inductor
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        options = {} if mode in (None, AUTOMATIC) else _inductor.list_mode_options(mode)
        options.pop("triton.cudagraphs", None)  # made here
        # Inductor's cache on disk is used only where a context says that no shape is symbolic.
        fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        examples = [fake.from_tensor(t.detach(), static_shapes=True) for t in inputs]
        # C++ is written for the tensors noted in the graph, and where some are not noted it fails.
        for node, example in zip(module.graph.find_nodes(op="placeholder"), examples, strict=True):
            node.meta["val"] = example
        compile = partial(_compile, examples, fake)
        with _LOCK, torch.no_grad():  # what is mended is the same for all
            if _on_cpu(inputs):
                check = partial(_check, module, inputs)
                run = _attempt(module, lambda *how: check(compile(*how)), options | COMPARABLE)
            else:
                run = compile(module, options)
    return launched(run, module, inputs, mode)


def _on_cpu(tensors: Sequence[Tensor]) -> bool:
    return all(t.device.type == "cpu" for t in tensors)


def _attempt(module: fx.GraphModule, compile: Callable, options: dict) -> Callable:
    """Compiles with ever fewer liberties; that the compiler knows too few instructions is remembered."""
    global _trusted
    for graph in dict.fromkeys([outline(module), module]) if _trusted else []:
        with suppress(Exception), trusting():
            return compile(graph, {**options, **TRUST, **FOR_CPU})
    try:
        run = compile(module, {**options, **FOR_CPU})
    except Exception:
        return compile(module, options)
    _trusted = False
    return run


def _compile(examples: list[Tensor], fake: Any, module: fx.GraphModule, options: dict) -> Callable:
    from torch import _inductor

    with tracing(TracingContext(fake)), mended():
        return _inductor.compile(module, examples, options=options)


def _check(module: fx.GraphModule, inputs: Sequence[Tensor], run: Callable) -> Callable:
    """Raises unless what was compiled does what the graph does, but for sums in another order."""
    given = list(inputs)
    for index in changed(module) - {0}:  # Adam's moments of zero would make steps of what is rounded
        given[index] = torch.ones_like(given[index])
    if not equal(module.forward, run, given, 3 * coarsest(module) ** 0.5):
        raise RuntimeError("what was compiled differs from what was traced")
    return run
