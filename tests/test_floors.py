"""House rules read off the source: imports point down, files are short, plotting is imported late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyroflows"
PLOTTING = ("diagnostics", "psis", "report", "plots")
FLOORS = (  # a module may import from the floors before its own, a folder also from itself
    ("nets", "numeric", "threads", "files", "parameters", "likelihood", "degenerate"),
    ("epochs",),
    ("bijectors",),
    ("transforms",),
    ("stacks", "guarded"),
    ("bases", "flows", "distributions", "latents"),
    ("soundness", "inits"),
    ("guides", "check", "priors", "sites"),
    ("encoders", "dequantise", "columns", "simulate", "guide_prior"),
    ("infer",),
    ("noncentered",),
    ("psis", "report", "replay", "archive"),
    ("diagnostics", "plots", "improper"),
    ("draws", "faults"),
    ("checks",),
    ("refine",),
    ("posterior", "density", "stages", "vae"),
    ("flow_stage",),
    ("fit",),
    ("calibrate",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = {str(f.relative_to(PACKAGE)): f for f in sorted(PACKAGE.rglob("*.py"))}
HOUSED = {file: Path(file).with_suffix("").parts[0] for file in FILES if file != "__init__.py"}


def imports(file: str) -> Iterator[tuple[str, bool]]:
    """Every absolute dotted name that a file imports, and whether it does so inside a function."""
    tree, package = ast.parse(FILES[file].read_text()), ("pyroflows", *Path(file).parent.parts)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {n for function in functions for n in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*above, node.module) if node.module else above)
            yield from ((f"{module}.{alias.name}", node in late) for alias in node.names)


@pytest.mark.parametrize(("file", "own"), HOUSED.items(), ids=HOUSED)
def test_imports_point_down(file: str, own: str) -> None:
    assert own in FLOOR, f"{own} has no floor yet"
    for name, _ in imports(file):
        root, house = f"{name}.".split(".")[:2]
        inside = root != "pyroflows" or house == own
        assert inside or FLOOR.get(house, len(FLOORS)) < FLOOR[own], f"{own} imports {name}, not below it"


@pytest.mark.parametrize(("file", "own"), HOUSED.items(), ids=HOUSED)
def test_plotting_is_imported_late(file: str, own: str) -> None:
    plotting = [late for name, late in imports(file) if name.startswith(("arviz", "matplotlib"))]
    assert all(plotting)
    assert not plotting or own in PLOTTING


@pytest.mark.parametrize("file", FILES)
def test_file_is_short(file: str) -> None:
    assert len(FILES[file].read_text().splitlines()) <= 300


def test_import_loads_nothing_heavy() -> None:
    heavy = {"arviz", "matplotlib", "sklearn", "sympy", "torch._dynamo", "torch._inductor"}
    code = f"import sys, pyroflows; print({heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "set()"


def test_the_api_page_names_every_module() -> None:
    page = (PACKAGE.parent / "docs" / "api.md").read_text()
    missing = [house for house in FLOOR if f":: pyroflows.{house}\n" not in page]
    assert not missing
