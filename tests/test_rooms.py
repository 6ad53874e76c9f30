"""Do imports point one way, down the list of rooms, and do the small doors stay small?"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import resource
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import casestudy
import casestudy.errors

SOURCE = Path(casestudy.__file__).parent
ROOMS = (
    *("errors", "drawing", "model", "results", "behaviour", "engine", "measure", "circuits"),
    *("study", "claims", "show", "compat", "cli", "__main__"),
)
FRONT_DOOR = SOURCE / "__init__.py"
MODULES = sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree: several tests read every file."""
    return ast.parse(path.read_text("utf-8"))


def room(module: str) -> str | None:
    """The room of a module's dotted name; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of casestudy's own that are imported, at the top or within functions.

    What is read from the package itself (`casestudy.study`) counts as an import of it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name for name in names if name.startswith("casestudy."))
        elif isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "casestudy":
                yield f"casestudy.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they reach"
            if node.module == "casestudy":
                yield from (f"casestudy.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("casestudy."):
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_down_the_list(path: Path) -> None:
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if path == FRONT_DOOR:
        return  # it opens on every room
    assert here in ROOMS, f"{here} is no room; DESIGN's list has to say where it stands"
    for module in imported(parsed(path)):
        if module == "casestudy.__version__":
            continue
        there = room(module)
        assert there in ROOMS, f"{name(path)} imports {module}, which is in no room"
        assert ROOMS.index(there) <= ROOMS.index(here), f"{name(path)} imports {module}"


def files_imported(path: Path) -> set[Path]:
    """The files of casestudy's that a file imports, at the top or within functions.

    `from casestudy.room import name` is the file of that name where there is one, else the room's
    own. What a package's `__init__` runs on the way to a file within it is not counted.
    """
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {file_of(name) or file_of(node.module) for name in names}
    return {other for other in found if other is not None} - {FRONT_DOOR}


def file_of(module: str) -> Path | None:
    """The file of a dotted name; None where it is another package's, or no module."""
    first, *rest = module.split(".")
    place = SOURCE.joinpath(*rest)
    files = (place.with_suffix(".py"), place / "__init__.py") if rest else (FRONT_DOOR,)
    return next((file for file in files if first == "casestudy" and file.is_file()), None)


def test_no_files_import_one_another_in_a_loop() -> None:
    sorter = TopologicalSorter({path: files_imported(path) for path in MODULES})
    try:
        sorter.prepare()
    except CycleError as loop:
        pytest.fail("imports in a loop: " + " < ".join(name(path) for path in loop.args[1]))


def test_a_loop_would_be_found() -> None:
    assert SOURCE / "drawing.py" in files_imported(SOURCE / "results" / "result.py")
    assert file_of("casestudy.show") == SOURCE / "show" / "__init__.py"
    assert file_of("casestudy.results.result.Grid") is None


REPOSITORY = Path(__file__).parents[1]
SIZED = sorted(
    path
    for folder in ("src", "benchmarks", "docs", "training", "tests")
    for path in (REPOSITORY / folder).rglob("*.py")
)
LONGEST_FILE, LONGEST_FUNCTION = 600, 80
LONG_SINCE = "# longer than most, since "
"""How a file says why it, or a function of it, is longer; the reason follows on the line."""


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_files_and_functions_are_short_or_say_why_not(path: Path) -> None:
    assert too_long(path.read_text("utf-8")) == []


def too_long(text: str) -> list[str]:
    """What of a file is too long without saying why: the file, functions by name."""
    lines = text.splitlines()
    found = [] if len(lines) <= LONGEST_FILE or LONG_SINCE in text else ["the file"]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = lines[node.lineno - 1 : node.end_lineno]
            if len(body) > LONGEST_FUNCTION and not any(LONG_SINCE in line for line in body):
                found.append(node.name)
    return found


def test_what_is_too_long_would_be_found() -> None:
    function = "def f():\n" + "    pass\n" * LONGEST_FUNCTION
    assert too_long(function) == ["f"]
    assert too_long(function.replace("pass", f"pass  {LONG_SINCE}it is a table", 1)) == []
    assert too_long("x = 0\n" * (LONGEST_FILE + 1)) == ["the file"]
    assert too_long("x = 0\n" * LONGEST_FILE) == []


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIGHT = [
    "casestudy",
    "casestudy.errors",
    "casestudy.cli",
    "casestudy.results.result",
    "casestudy.study.chosen",
    "casestudy.study.store",
    "casestudy.claims.compare",
    *(
        "casestudy." + name(path).removesuffix(".py").replace("/", ".")
        for path in MODULES
        if name(path).startswith("show/") and path.name != "__init__.py"
    ),
]


def test_light_modules_load_no_torch() -> None:
    code = (
        f"import importlib, sys\nfor name in {LIGHT}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\nprint('light')"
    )
    assert python("-c", code).strip() == "light"


def test_import_takes_well_under_half_a_second() -> None:
    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    def best_of_three(code: str) -> float:
        times = []
        for _ in range(3):
            start = spent()
            python("-c", code)
            times.append(spent() - start)
        return min(times)

    # the interpreter's own start is not casestudy's; seconds of processor, which a busy machine
    # does not make more
    assert best_of_three("import casestudy") - best_of_three("pass") < 0.5


def test_every_public_name_can_be_fetched() -> None:
    for public in casestudy.__all__:
        assert getattr(casestudy, public) is not None
    assert set(casestudy.__all__) <= set(dir(casestudy))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        casestudy.nonsense  # noqa: B018


def test_results_draw_themselves_where_only_their_own_module_was_imported() -> None:
    code = (
        "import sys\nimport numpy as np\nfrom casestudy.results.result import Axis, Grid, Table\n"
        "assert 'plotly' not in sys.modules and 'casestudy.show' not in sys.modules\n"
        "grid = Grid('g', np.ones(2), (Axis.count('layer', 2),), 'logits')\n"
        "assert '<svg' in grid._repr_html_() and grid.plot().data\n"
        "assert '<table' in Table('t', {'score': [1.0]})._repr_html_()\n"
        "assert 'torch' not in sys.modules\nprint('drawn')"
    )
    assert python("-c", code).strip() == "drawn"


def test_what_nobody_draws_is_refused_by_name() -> None:
    with pytest.raises(casestudy.errors.CasestudyError, match=r"nothing draws 'grid\.sculpture'"):
        casestudy.drawing.draw("grid.sculpture")


def test_no_two_classes_share_a_name() -> None:
    """A name in a traceback or a search means one thing; a private class is its module's own."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name(path))
    assert {known: files for known, files in found.items() if len(files) > 1} == {}


OUTSIDE = [
    path
    for folder in ("benchmarks", "docs", "training")
    for path in sorted((SOURCE.parents[1] / folder).glob("*.py"))
]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_beside_the_package_import_what_there_is(path: Path) -> None:
    """They are run by hand, months apart."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("casestudy"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(name), name
