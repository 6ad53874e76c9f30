"""docs/measurements.md names what a study gives, and its snippet runs."""

import re
from pathlib import Path

import casestudy as cs
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.model.model import Model
from casestudy.study.study import study

PAGE = (Path(__file__).parents[2] / "docs" / "measurements.md").read_text("utf-8")
ROWS = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", PAGE, re.M)


def test_every_result_and_function_is_there_with_its_axes(toy_model: Model, tmp_path: Path) -> None:
    whole = Prompt("No.", answer=" He went", counterpart=" and he")
    asked = Behaviour("b", "?", (Prompt("Go.", answer=" He"), Prompt("Yes.", answer=" He"), whole))
    only = ["ledger", "lens", "attribution", "attention", "profile"]
    done = study(asked, toy_model, out=tmp_path / "s", only=only)
    for name, axes, _, functions in ROWS:
        found = {name.replace(".N", ".0")} & {*done.grids, *done.tables}
        assert found, name
        if name in done.grids:
            grid = done.grids[name]
            assert [axis.name for axis in grid.axes] == axes.split(", ")
        for function in re.findall(r"`cs\.(\w+)", functions):
            assert callable(getattr(cs, function))
    named = {name for name, *_ in ROWS}
    derived = re.compile(r"\.(mean|by_group|check|ranking)$|^pattern\.\d$")
    missing = {name for name in done.grids if not derived.search(name)} - named
    assert not missing


def test_the_snippet_runs() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.S)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    why = names["why"]
    assert isinstance(why, cs.Grid)
    assert why.error["gap"] <= why.error["bound"]
