"""Where do the tables that a script makes stand in a page?

Between two comments that name them: `between` reads them, `put` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def parts(page: str, name: str) -> tuple[str, str, str]:
    """The page up to its tables of a name, the tables, and the rest."""
    start = f"<!-- {name}: made by `make circuits-table` -->\n"
    end = f"<!-- end of {name} -->\n"
    before, rest = page.split(start)
    made, after = rest.split(end)
    return before + start, made, end + after


def put(page: Path, name: str, made: str) -> None:
    """Replace the tables of a name."""
    before, _, after = parts(page.read_text("utf-8"), name)
    page.write_text(f"{before}\n{made}\n{after}", encoding="utf-8")


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, named: int = 1) -> str:
    """In Markdown; the first `named` columns hold names, the others figures."""
    lines = [head, ["---"] * named + ["--:"] * (len(head) - named), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
