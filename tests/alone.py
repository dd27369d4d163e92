"""The modules that need only NumPy and ArviZ, loaded by their paths, so that torch need not be installed."""

import importlib.util
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[1] / "pyroflows"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_alone", PACKAGE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagnostics, report = load("diagnostics"), load("report")
