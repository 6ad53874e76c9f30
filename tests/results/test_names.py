"""Is a result looked up by the one name that `results/names` gives it?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import casestudy
from casestudy.results import names

SOURCE = Path(casestudy.__file__).parent
OWN = SOURCE / "results" / "names.py"
ROOMS = ("results", "measure", "circuits", "study", "claims", "show", "cli")
MODULES = sorted(path for room in ROOMS for path in (SOURCE / room).rglob("*.py"))
NAMES = {v for k, v in vars(names).items() if k.isupper() and isinstance(v, str)}
TELLING = {name for name in NAMES if "." in name or " " in name}
"""Names that can be nothing else; "ledger" is also a word, a function and a measurement."""
BEGINNINGS = (*(name for name in TELLING if name.endswith(".")), "attention.", "answer.")
ENDINGS = tuple(name for name in TELLING if name.startswith("."))


def literal(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def looked_up(node: ast.AST) -> Iterator[ast.expr]:
    """What stands where a result is named: `Grid("…"`, `study.table("…"`, `study.grids["…"]`."""
    if isinstance(node, ast.Call) and node.args:
        *of, called = ast.unparse(node.func).rsplit(".", 2)
        if called in ("Grid", "Table", "grid", "table", "has_grid") or (
            called == "get" and of and of[-1] in ("grids", "tables")
        ):
            yield node.args[0]
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
        if node.value.attr in ("grids", "tables"):
            yield node.slice
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        within = node.comparators[0]
        if isinstance(within, ast.Attribute) and within.attr in ("grids", "tables"):
            yield node.left


def spelled_out(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The lines on which a result's name is a literal, and the literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and literal(node) in TELLING:
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.JoinedStr):
            first, last = (literal(node.values[i]) or "" for i in (0, -1))
            if first.startswith(BEGINNINGS) or (len(node.values) > 1 and last in ENDINGS):
                yield node.lineno, ast.unparse(node)
        for place in looked_up(node):
            if literal(place) in NAMES:
                yield node.lineno, str(literal(place))


def test_no_other_module_spells_a_result_s_name() -> None:
    spelled = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path in MODULES
        if path != OWN
        for line, text in spelled_out(ast.parse(path.read_text("utf-8")))
    ]
    assert not spelled, "use casestudy.results.names:\n" + "\n".join(spelled)


def test_a_literal_would_be_found() -> None:
    for line in (
        'study.grids["ledger"]',
        'study.grid("ledger", "term")',
        'Table("prompts", columns)',
        'name == "ledger.check"',
        'f"patching.{site}"',
        'f"{name}.effect"',
        '"lens" in study.grids',
    ):
        assert list(spelled_out(ast.parse(line))), line
    assert not list(spelled_out(ast.parse('Measurement("ledger", keep, measure)')))


def test_released_names_stay() -> None:
    """A study stored by 0.1.0 opens: these are names of its files."""
    assert names.mean(names.LEDGER) == "ledger.mean"
    assert names.ranking(names.HEAD_SHARES) == "attribution.head.ranking"
    assert names.by_group(names.CLASS_MASS) == "class_mass.by_group"
    assert names.patching("z", "all") == "patching.z.all"
    assert names.patching("z", "all", "noising") == "patching.noising.z.all"
    assert names.baselines("patching.z.all") == "patching.z.all.baselines.raw"
    assert names.pattern_of(3) == "pattern.3"
    assert names.attention_from("last token") == "attention.last token"
    assert names.paths("direct", "head 1.2<q>", "noising") == "paths.noising.direct.1.2.q"
    assert names.ablation("zero", "z", "all") == "ablation.zero.z.all"
