"""House rules read off the source: imports point down and not in circles, files are short, plotting is late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyroflows"
FLOORS = (  # a room may import from those named before it
    ("maths", "small_matrices", "autograd", "arguments", "seeds", "files", "solve", "nets", "figures"),
    ("bijectors",),
    ("transforms",),
    ("distributions",),
    ("flows", "laws"),
    ("compile",),
    ("model",),
    ("training",),
    ("infer",),
    ("guides", "svi"),
    ("vae", "density"),
    ("posterior",),
    ("fitting",),
)
FLOOR = {name: place for place, name in enumerate(name for floor in FLOORS for name in floor)}
PLOTTING = ("figures", "density.plots", "posterior.plots", "posterior.arviz", "posterior.page")
STATISTICS = ("posterior.psis", "posterior.chain_diagnostics")  # are ArviZ's
LONG_FILES = {
    "model/log_joint.py": 266,
}
LONG_FUNCTIONS: dict[str, int] = {}
FILES = {str(f.relative_to(PACKAGE)): f for f in sorted(PACKAGE.rglob("*.py"))}
TREES = {file: ast.parse(path.read_text()) for file, path in FILES.items()}
NAMES = {file: ".".join(Path(file).with_suffix("").parts).removesuffix("__init__").rstrip(".") for file in FILES}
HOUSED = {file: name.split(".")[0] for file, name in NAMES.items() if name}


def imports(file: str) -> Iterator[tuple[str, bool]]:
    """Every absolute dotted name that a file imports, and whether it does so inside a function."""
    tree, package = TREES[file], ("pyroflows", *Path(file).parent.parts)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {n for function in functions for n in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*above, node.module) if node.module else above)
            yield from ((f"{module}.{alias.name}", node in late) for alias in node.names)


def own_imports(file: str) -> set[str]:
    """The files of the package that a file imports; a package that hands a name on is no stop on the way."""
    known, found = {name: f for f, name in NAMES.items()}, set()
    for name, _ in imports(file):
        inner = name.removeprefix("pyroflows").lstrip(".") if name.split(".")[0] == "pyroflows" else None
        while inner and inner not in known:
            inner = inner.rpartition(".")[0]
        if inner:
            found.add(known[inner])
    return found - {file}


def test_every_room_has_a_floor() -> None:
    assert set(HOUSED.values()) == set(FLOOR)


@pytest.mark.parametrize(("file", "own"), HOUSED.items(), ids=HOUSED)
def test_imports_point_down(file: str, own: str) -> None:
    for name, _ in imports(file):
        root, house = f"{name}.".split(".")[:2]
        inside = root != "pyroflows" or house == own
        assert inside or FLOOR.get(house, len(FLOORS)) < FLOOR[own], f"{own} imports {name}, not below it"


def test_no_file_imports_itself_by_way_of_others() -> None:
    left = {file: own_imports(file) for file in FILES if Path(file).name != "__init__.py"}
    left = {file: found & left.keys() for file, found in left.items()}
    while free := {file for file, found in left.items() if not found & left.keys()}:
        left = {file: found for file, found in left.items() if file not in free}
    assert not left, f"circles among {sorted(left)}"


@pytest.mark.parametrize("file", [file for file, own in HOUSED.items() if own == "compile"])
def test_compile_knows_no_pyro(file: str) -> None:
    assert not [name for name, _ in imports(file) if name.split(".")[0] == "pyro"]


def test_compile_works_where_pyro_is_not_installed() -> None:
    code = f"""
import sys
sys.modules["pyro"] = sys.modules["arviz"] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from alone import load
x = torch.ones(2, requires_grad=True)
graph = load("compile").capture(lambda: (x * x).sum())
print(graph()[0].item(), "pyroflows" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["2.0", "False"]


@pytest.mark.parametrize("file", HOUSED, ids=HOUSED)
def test_plotting_is_imported_late(file: str) -> None:
    found = [(name, late) for name, late in imports(file) if name.startswith(("arviz", "matplotlib"))]
    assert all(late for _, late in found)
    assert not found or NAMES[file] in (*PLOTTING, *STATISTICS)


@pytest.mark.parametrize("file", FILES)
def test_file_is_short(file: str) -> None:
    lines = len(FILES[file].read_text().splitlines())
    assert lines <= LONG_FILES.get(file, 250)
    assert file not in LONG_FILES or lines > 250, f"{file} is short now: strike it from LONG_FILES"


@pytest.mark.parametrize("file", FILES)
def test_functions_are_short(file: str) -> None:
    """At most 50 lines of code each, without signature, docstring, comments and empty lines."""
    source = FILES[file].read_text().splitlines()
    for node in ast.walk(TREES[file]):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        rows = source[body[0].lineno - 1 : node.end_lineno] if body else []
        lines = sum(bool(row.strip()) and not row.strip().startswith("#") for row in rows)
        name = f"{file}:{node.name}"
        assert lines <= LONG_FUNCTIONS.get(name, 50), name
        assert name not in LONG_FUNCTIONS or lines > 50, f"{name} is short now: strike it from LONG_FUNCTIONS"


def test_import_loads_nothing_heavy() -> None:
    heavy = {"arviz", "matplotlib", "sklearn", "sympy", "torch._dynamo", "torch._inductor"}
    code = f"import sys, pyroflows; print({heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "set()"


def test_what_is_called_shadows_no_module() -> None:
    """``pyroflows.fit`` is the function, and there is no module by that name; likewise what rooms hand on."""
    modules = set(NAMES.values())
    for file, tree in TREES.items():
        if Path(file).name == "__init__.py":
            bound = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
            rooms = {name for name in bound if f"{NAMES[file]}.{name}".lstrip(".") in modules}
            assert not {name for name in rooms if name not in FLOOR}, file


def test_the_api_page_names_every_room() -> None:
    page = (PACKAGE.parent / "docs" / "api.md").read_text()
    missing = [house for house in FLOOR if f":: pyroflows.{house}\n" not in page]
    assert not missing
