"""The modules that need only NumPy and ArviZ, loaded by their paths, so that torch need not be installed."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parents[1] / "pyroflows"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_alone", PACKAGE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def groups_of(data: Any) -> set[str]:
    """Names of the groups in an object of ArviZ, 0.x or 1.x."""
    return set(data.children if hasattr(data, "children") else data.groups())


diagnostics, report = load("diagnostics"), load("report")
