"""House rules read off the source: imports point down and not in circles, files are short, plotting is late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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
STATISTICS = ("posterior.chain_diagnostics",)  # are ArviZ's
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
FILES = {str(f.relative_to(PACKAGE)): f for f in sorted(PACKAGE.rglob("*.py"))}
TREES = {file: ast.parse(path.read_text()) for file, path in FILES.items()}
NAMES = {file: ".".join(Path(file).with_suffix("").parts).removesuffix("__init__").rstrip(".") for file in FILES}
HOUSED = {file: name.split(".")[0] for file, name in NAMES.items() if name}


@cache
def imports(file: str) -> tuple[tuple[str, bool], ...]:
    """Every absolute dotted name that a file imports, and whether it does so inside a function."""
    return tuple(_imports(file))


def _imports(file: str) -> Iterator[tuple[str, bool]]:
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


def test_imports_point_down() -> None:
    wrong = [f"{file} imports {name}" for file in HOUSED for name, _ in imports(file) if not _below(name, HOUSED[file])]
    assert not wrong


def _below(name: str, own: str) -> bool:
    root, house = f"{name}.".split(".")[:2]
    return root != "pyroflows" or house == own or FLOOR.get(house, len(FLOORS)) < FLOOR[own]


def test_no_file_imports_itself_by_way_of_others() -> None:
    left = {file: own_imports(file) for file in FILES if Path(file).name != "__init__.py"}
    left = {file: found & left.keys() for file, found in left.items()}
    while free := {file for file, found in left.items() if not found & left.keys()}:
        left = {file: found for file, found in left.items() if file not in free}
    assert not left, f"circles among {sorted(left)}"


def test_compile_knows_no_pyro() -> None:
    inside = [file for file, own in HOUSED.items() if own == "compile"]
    assert len(inside) > 10
    assert not [(file, name) for file in inside for name, _ in imports(file) if name.split(".")[0] == "pyro"]


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


def test_plotting_is_imported_late() -> None:
    found = [(file, *each) for file in HOUSED for each in imports(file) if each[0].startswith(("arviz", "matplotlib"))]
    assert not [(file, name) for file, name, late in found if not late]
    assert {NAMES[file] for file, _, _ in found} <= {*PLOTTING, *STATISTICS}


def test_files_are_short() -> None:
    """The long ones are those that are named, with at most the lines that they have there."""
    lines = {file: len(path.read_text().splitlines()) for file, path in FILES.items()}
    long = {file: count for file, count in lines.items() if count > 250}
    assert set(long) == set(LONG_FILES)
    assert all(count <= LONG_FILES[file] for file, count in long.items()), long


def test_functions_are_short() -> None:
    """At most 50 lines of code each, without signature, docstring, comments and empty lines."""
    lines = {f"{file}:{name}": count for file in FILES for name, count in _functions(file)}
    long = {name: count for name, count in lines.items() if count > 50}
    assert len(lines) > 1000
    assert set(long) == set(LONG_FUNCTIONS)
    assert all(count <= LONG_FUNCTIONS[name] for name, count in long.items()), long


def _functions(file: str) -> Iterator[tuple[str, int]]:
    source = FILES[file].read_text().splitlines()
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            rows = source[body[0].lineno - 1 : node.end_lineno] if body else []
            yield node.name, sum(bool(row.strip()) and not row.strip().startswith("#") for row in rows)


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
