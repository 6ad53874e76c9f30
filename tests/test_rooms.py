"""Do imports point one way, down the list of rooms, and do the small doors stay small?"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import casestudy

SOURCE = Path(casestudy.__file__).parent
ROOMS = (
    *("errors", "model", "results", "behaviour", "engine", "measure", "circuits", "study"),
    *("claims", "show", "compat", "cli"),
)
# What was measured can show itself: doors upwards, opened only when somebody looks.
EXCEPTIONS = {
    ("results/result.py", "casestudy.show.plotly_figures"),
    ("model/decoder.py", "casestudy.show.plotly_figures"),
    ("study/study.py", "casestudy.show.plotly_figures"),
    ("study/study.py", "casestudy.show.report"),
}
MODULES = sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


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
    if here == "__init__":
        return  # the front door opens on every room
    assert here in ROOMS, f"{here} is no room; DESIGN's list has to say where it stands"
    for module in imported(ast.parse(path.read_text("utf-8"))):
        if (name(path), module) in EXCEPTIONS or module == "casestudy.__version__":
            continue
        there = room(module)
        assert there in ROOMS, f"{name(path)} imports {module}, which is in no room"
        assert ROOMS.index(there) <= ROOMS.index(here), f"{name(path)} imports {module}"


def test_the_exceptions_are_needed_and_lazy() -> None:
    """A door that nobody uses any more is walled up."""
    for path, module in EXCEPTIONS:
        tree = ast.parse((SOURCE / path).read_text("utf-8"))
        assert module in imported(tree)
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert module not in imported(ast.Module(top, []))


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIGHT = [
    "casestudy",
    "casestudy.errors",
    "casestudy.cli",
    "casestudy.results.result",
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


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom casestudy.cli import main\nsys.argv = ['casestudy', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    said = python("-c", code)
    assert "Usage" in said
    assert said.splitlines()[-1] == "False"


def test_import_takes_well_under_half_a_second() -> None:
    def best_of_three(code: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            python("-c", code)
            times.append(time.perf_counter() - start)
        return min(times)

    # the interpreter's own start is not casestudy's, and a busy machine is not its fault
    cost = best_of_three("import casestudy") - best_of_three("pass")
    assert cost < 0.5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_every_public_name_can_be_fetched() -> None:
    for public in casestudy.__all__:
        assert getattr(casestudy, public) is not None
    assert set(casestudy.__all__) <= set(dir(casestudy))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        casestudy.nonsense  # noqa: B018
