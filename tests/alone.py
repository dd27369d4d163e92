"""The modules that need only NumPy and ArviZ, loaded by their paths, so that torch need not be installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parents[1] / "pyroflows"


def load(name: str) -> ModuleType:
    """A module of a package of the same files, whose own ``__init__`` does not run."""
    package = sys.modules.setdefault("pyroflows_alone", ModuleType("pyroflows_alone"))
    package.__path__ = [str(PACKAGE)]
    return importlib.import_module(f"pyroflows_alone.{name}")


def groups_of(data: Any) -> set[str]:
    """Names of the groups in an object of ArviZ, 0.x or 1.x."""
    return set(data.children if hasattr(data, "children") else data.groups())


diagnostics, report = load("diagnostics"), load("report")
