"""Modules that need neither torch nor Pyro, or not Pyro, loaded by their paths, so that those need not be installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parents[1] / "pyroflows"


def load(name: str) -> ModuleType:
    """A module of packages of the same files, of which only its own ``__init__`` runs, if it is a package."""
    *above, last = f"pyroflows_alone.{name}".split(".")
    for depth in range(1, len(above) + 1):
        package = sys.modules.setdefault(".".join(above[:depth]), ModuleType(".".join(above[:depth])))
        package.__path__ = [str(PACKAGE.joinpath(*above[1:depth]))]
    return importlib.import_module(".".join((*above, last)))


def groups_of(data: Any) -> set[str]:
    """Names of the groups in an object of ArviZ, 0.x or 1.x."""
    return set(data.children if hasattr(data, "children") else data.groups())


importance_diagnostics = load("posterior.importance_diagnostics")
chain_diagnostics = load("posterior.chain_diagnostics")
smoothing = load("posterior.psis")
tables, arviz_objects, html_page = load("posterior.summary"), load("posterior.arviz"), load("posterior.page")
