"""Inductor on a graph that is already traced: no second tracing by Dynamo, no guards at each call."""

import logging
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

# All kernels in one C++ file, as to start and link costs as much as five of them, and their calls in another, which is
# compiled with fewer optimisations in less time and runs as fast. Else Python would call each.
FOR_CPU = {
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "aot_inductor.compile_wrapper_opt_level": "Og",
    # What is used twice and takes more operations than this becomes a variable. Inductor's own limit of 30 repeats it
    # at each use, with all that it was made of: single expressions of splines grow to 15,000 operations.
    "realize_opcount_threshold": 8,
    # Take the compiler to know the processor's instructions, rather than try them in small programs.
    "cpp.vec_isa_ok": True,
}
# The same random numbers as without a compiler, so that results can be compared.
COMPARABLE = {"fallback_random": True}

_LOCK = threading.Lock()


def compiled(module: fx.GraphModule, inputs: Sequence[Tensor], mode: str | None = None) -> Callable:
    """Compiles a graph at once, for tensors of exactly these shapes.

    Args:
        module: a graph that returns a list of tensors.
        inputs: all its arguments, as examples.
        mode: as in ``torch.compile``.

    Returns:
        A function of the same arguments, to be called under ``torch.no_grad()``.

    Raises:
        RuntimeError: if no compiler works here, or what it makes differs from the graph.
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
        options |= COMPARABLE
        # Inductor's cache on disk is used only where a context says that no shape is symbolic.
        fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        examples = [fake.from_tensor(t.detach(), static_shapes=True) for t in inputs]
        # C++ is written for the tensors noted in the graph, and where some are not noted it fails.
        for node, example in zip(module.graph.find_nodes(op="placeholder"), examples, strict=True):
            node.meta["val"] = example
        make = partial(_compile, module, examples, fake)
        with _LOCK, torch.no_grad():  # one log for all
            run = None
            if all(t.device.type == "cpu" for t in inputs):
                # An older compiler, a torch without an option, or wrong results: torch 2.13 lets loops read what is
                # added up in place before all is added.
                with suppress(Exception):
                    run = _checked(module, inputs, make(options | FOR_CPU))
            run = run or _checked(module, inputs, make(options))
    return launched(run, module, inputs, mode)


def _compile(module: fx.GraphModule, examples: list[Tensor], fake: Any, options: dict) -> Callable:
    from torch import _inductor

    log = logging.getLogger("torch._inductor.ir")
    log.addFilter(_is_news)
    try:
        with tracing(TracingContext(fake)):
            return _inductor.compile(module, examples, options=options)
    finally:
        log.removeFilter(_is_news)


def _checked(module: fx.GraphModule, inputs: Sequence[Tensor], run: Callable) -> Callable:
    """Raises unless what was compiled does what the graph does, but for sums in another order."""
    given = list(inputs)
    for index in changed(module) - {0}:  # Adam's moments of zero would make steps of what is rounded
        given[index] = torch.ones_like(given[index])
    if not equal(module.forward, run, given, 3 * coarsest(module) ** 0.5):
        raise RuntimeError("what was compiled differs from what was traced")
    return run


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Inductor's log says more than how a wrapper in C++, our choice, calls an operation."""
    return "missing a c-shim implementation" not in str(record.msg)
