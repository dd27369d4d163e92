"""Torch's Inductor, mended while it compiles here: what it does slowly is done faster, what it lacks is added."""

import functools
import gc
import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch


@contextmanager
def mended() -> Iterator[None]:
    """All of this but :func:`trusting`."""
    import sympy
    from torch._inductor import codecache

    with ExitStack() as stack:
        # What is done again for every layer or operation is done once: the same few hundred index expressions, and the
        # rules for types of a class that has one instance.
        stack.enter_context(mock.patch.object(sympy, "simplify", functools.cache(sympy.simplify)))
        with suppress(ImportError):  # before torch 2.6
            from torch._inductor.dtype_propagation import DtypePropagationOpsHandler as Rules

            stack.enter_context(mock.patch.object(Rules, "__init__", functools.cache(Rules.__init__)))
        with suppress(ImportError):
            from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu as Wrapper

            stack.enter_context(mock.patch.object(Wrapper, "codegen_invoke_subgraph", _call, create=True))
        with suppress(ImportError, AttributeError):
            from torch._inductor.scheduler import SchedulerNode as Node

            better = _renamed(Node.recompute_size_and_body)
            stack.enter_context(mock.patch.object(Node, "recompute_size_and_body", better))
        for name, better in {"_worker_compile_cpp": _build, "_precompile_header": _header}.items():
            with suppress(AttributeError):  # older ones have other names
                better = functools.partial(better, getattr(codecache, name))
                stack.enter_context(mock.patch.object(codecache, name, better))
        log = logging.getLogger("torch._inductor.ir")
        log.addFilter(_is_news)
        stack.callback(log.removeFilter, _is_news)
        if gc.isenabled():  # it looks at millions of objects again and again, and few can go before the end
            gc.disable()
            stack.callback(gc.enable)
        yield


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Inductor's log says more than how a wrapper in C++, our choice, calls an operation."""
    return "missing a c-shim implementation" not in str(record.msg)


def _renamed(recompute: Callable) -> Callable:
    """What is read after a change in place waits for the change, also where loops are laid anew; torch 2.13 forgets."""

    def better(node: Any, *args: Any, **options: Any) -> None:
        recompute(node, *args, **options)
        node.set_read_writes(node.read_writes.rename(getattr(node, "mutation_renames", {})))

    return better


def _build(build: Callable, lock: str, builders: Any, *rest: Any) -> None:
    """Runs the C++ compiler on kernels and their calls at once; then, as ever, on what is not there yet."""
    if isinstance(builders, tuple) and len(builders) > 2:
        singles = range(len(builders) - 1)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda index: build(f"{lock}.{index}", builders[index : index + 1]), singles))
    build(lock, builders, *rest)


def _header(compile: Callable, header: str, line: str, **options: Any) -> str:
    """Where a compiled header is, without a look at all that it includes while torch and compiler are the same."""
    from torch._inductor import codecache
    from torch._inductor.cpp_builder import get_cpp_compiler

    program = Path(shutil.which(get_cpp_compiler()) or sys.executable)
    made = [(path.stat().st_mtime_ns, path.stat().st_size) for path in (Path(torch.__file__), program)]
    name = hashlib.sha256(repr((header, line, torch.__version__, program, made)).encode()).hexdigest()
    note = Path(codecache._HEADER_DIR, f"{name}.txt")
    if note.is_file() and Path(f"{note.read_text()}.gch").is_file():
        return note.read_text()
    found = compile(header, line, **options)
    note.write_text(found)
    return found


def _call(wrapper: Any, node: Any) -> None:
    """Writes the call of a part of the graph in C++, which Inductor has for Python only, and once the function."""
    from torch._inductor.codegen.wrapper import EnterSubgraphLine, ExitSubgraphLine

    graph = node.subgraph.graph
    name = f"call_{graph.name}"
    if name not in wrapper.already_codegened_subgraphs:
        wrapper.already_codegened_subgraphs.add(name)
        given = [f"{name}_given_{index}" for index in range(len(node.inputs))]
        found = [f"{name}_found_{index}" for index in range(len(node.outputs))]
        arguments = [f"AtenTensorHandle {one}" for one in given] + [f"RAIIAtenTensorHandle& {one}" for one in found]
        wrapper.writeline(f"auto {name} = [&]({', '.join(arguments)}) {{")
        wrapper.writeline(EnterSubgraphLine(wrapper, graph))
        wrapper.codegen_subgraph(node.subgraph, given, found)
        wrapper.writeline(ExitSubgraphLine(wrapper))
        wrapper.writeline("};")
    outputs = [output.get_name() for output in node.outputs]
    for output in outputs:
        wrapper.writeline(f"RAIIAtenTensorHandle {output};")
    inputs = [given.codegen_reference() for given in node.inputs]
    wrapper.writeline(f"{name}({', '.join([*inputs, *outputs])});")


@contextmanager
def trusting() -> Iterator[None]:
    """Instructions that the processor has are not tried in small programs; if this ends badly it is forgotten."""
    try:
        from torch._inductor import cpu_vec_isa
    except ImportError:  # before torch 2.5
        yield
        return
    try:
        with mock.patch.object(cpu_vec_isa.VecISA, "check_build", create=True, return_value=True):
            yield
    except Exception:
        cpu_vec_isa.valid_vec_isa_list.cache_clear()
        for isa in cpu_vec_isa.supported_vec_isa_list:
            for name in ("__bool__", "is_avx512_bf16_supported", "is_amx_fp16_supported"):
                getattr(getattr(type(isa), name, None), "cache_clear", lambda: None)()
                vars(isa).pop(f"_{name}", None)
        raise
