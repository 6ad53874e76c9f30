"""How do results read in a terminal? Results go to stdout, everything else to stderr.

Numbers here have three decimals and a plain minus sign, so that they can be copied; how tokens are
shown is show/text's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casestudy.cli.schema import stamped
from casestudy.errors import CasestudyError
from casestudy.show.text import visible

if TYPE_CHECKING:
    from casestudy.results.result import Grid


def print_json(command: str, found: dict[str, Any]) -> None:
    """A command's object on stdout, with its schema and version first (see `schema`)."""
    from casestudy.results.files import finite_only

    value = finite_only(stamped(command, found))
    print(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))


def print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table of texts on stdout, its title above it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if title:  # a table's own is cut to the table's width
        console.print(Text(title, style="italic"))
    console.print(table)


def print_words(text: str) -> None:
    """A sentence on stdout, broken between words where the line ends."""
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(text))


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr; square brackets are rich's markup."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text)


_ARGUMENT = re.compile(r"(?<![\w-])([a-z][a-z_]*)=(?:'([^']*)'|(True|False))?(?=[\s.,;:)]|$)")

_OPTIONS = {"prepend_bos": "bos", "exact_edges": "exact"}
"""Options whose names are not those of the Python arguments."""


def in_options(text: str) -> str:
    """A message of the library with its Python arguments as the command line's options:
    "Give one with corrupted=." becomes "Give one with --corrupted."."""

    def option(found: re.Match[str]) -> str:
        name, value, switch = found.groups()
        name = _OPTIONS.get(name, name).replace("_", "-")
        off = "no-" if switch == "False" else ""
        return f"--{off}{name}" + (f" {value}" if value is not None else "")

    return _ARGUMENT.sub(option, text)


def escape(text: str) -> str:
    """A text whose square brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def write_figure(grid: Grid, path: Path | None) -> None:
    """Writes the grid's figure as a page of its own, where one is asked for."""
    if path is not None:
        try:
            grid.plot().write_html(path, include_plotlyjs=True)
        except OSError as error:
            raise CasestudyError(
                f"{path} could not be written: {error.strerror}", hint="Choose another --figure"
            ) from error
        say(f"figure: {escape(str(path))}")


def finite(value: Any) -> float | None:
    """A number, None where it is not one: JSON has no NaN."""
    number = float(value)
    return None if number != number else number


def decimal(value: float | None) -> str:
    """A number with three decimals."""
    return "not measured" if value is None else f"{value:.3f}"


def interval(ends: Sequence[float | None]) -> str:
    """A 95 % interval, nothing where there is none."""
    low, high = ends
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def gap(largest: float | None, bound: float | None) -> str:
    """The largest error found by a check, beside the bound it has to keep."""
    if largest is None:
        return ""
    none = bound is None or math.isinf(bound)  # infinite in studies of version 0.1.0
    return f"{largest:.1e} ({'no bound is guaranteed' if none else f'bound {bound:.0e}'})"


def bar(value: float, largest: float, width: int = 20) -> str:
    """A bar from zero, to the left for what is negative."""
    if value != value or not largest:
        return ""
    filled = round(abs(value) / largest * width / 2)
    half = width // 2
    left, right = (filled, 0) if value < 0 else (0, filled)
    return " " * (half - left) + "█" * left + "│" + "█" * right


def preference(model: str, sides: Sequence[str], difference: float, unit: str = "logits") -> str:
    """Which of two answers, answer and counterpart, a model prefers, and by how much."""
    preferred, other = map(visible, sides if difference >= 0 else sides[::-1])
    return f"{model} prefers {preferred} to {other} by {abs(difference):.2f} {unit}"


def duration(seconds: float) -> str:
    """4:05, or 2 h 04 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
