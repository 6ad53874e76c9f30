"""What is a report made of?

Prose, figures and tables. A section's parts are functions of a `StoredStudy` that return blocks,
or raise `Missing` with the reason if there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

from markupsafe import Markup

from casestudy.show import svg
from casestudy.show.marks import Data, Mark
from casestudy.show.stored import StoredStudy
from casestudy.show.text import clean


@dataclass(frozen=True)
class Figure:
    """A figure with its title, caption, data and alternative text.

    Attributes:
        title: one line, what is plotted.
        mark: what is plotted.
        alt: the figure's main value in words, for readers who do not see it.
        data: the cells behind the marks, for hover and CSV.
        caption: what was computed and how to read it.
        half: whether two such figures may be placed side by side.
    """

    title: str
    mark: Mark
    alt: str
    data: Data
    caption: str | Markup = ""
    half: bool = False

    @property
    def svg(self) -> Markup:
        """The drawing with its alternative text."""
        return svg.draw(self.mark).svg(self.alt)


@dataclass(frozen=True)
class Listing:
    """A table.

    Attributes:
        title: one line, what a row is.
        head: column titles; one that ends in "#" is a column of numbers.
        rows: cells, text or markup.
        caption: what to note.
        stack: whether a row's cells are placed below one another on a narrow screen.
        fold: how many rows to show at first; the reader can open the rest; 0 for all.
        data: the columns for CSV: unrounded, and perhaps with more rows and columns than the page
            shows. By default the cells as shown.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    caption: str | Markup = ""
    stack: bool = False
    fold: int = 0
    data: Mapping[str, Sequence[object]] = field(default_factory=dict)

    def to_json(self) -> dict[str, list[str | float | None]]:
        """The columns for the page's script."""
        shown = {
            title.removesuffix("#") or f"column {i + 1}": [row[i] for row in self.rows]
            for i, title in enumerate(self.head)
        }
        return {
            clean(name): [_plain(cell) for cell in cells]
            for name, cells in (self.data or shown).items()
        }

    @property
    def columns(self) -> list[tuple[str, Markup]]:
        """Each column's title, and the attribute that a cell of numbers has."""
        return [
            (title.removesuffix("#"), Markup(" class=num" if title.endswith("#") else ""))
            for title in self.head
        ]

    @property
    def parts(self) -> tuple[Sequence[Sequence[str | Markup]], Sequence[Sequence[str | Markup]]]:
        """The rows shown, and those folded away; a fold that would save three rows is none."""
        if not self.fold or len(self.rows) <= self.fold + 3:
            return self.rows, ()
        return self.rows[: self.fold], self.rows[self.fold :]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[object]]:
    """Rows as columns; a value that a row does not have is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _plain(cell: object) -> str | float | None:
    if isinstance(cell, Markup):
        return cell.striptags()
    if cell is None or isinstance(cell, bool):
        return None if cell is None else str(cell).lower()
    if isinstance(cell, Real):
        return float(cell) if math.isfinite(cell) else None
    if isinstance(cell, (list, tuple)):
        return "; ".join(map(clean, cell))
    return clean(cell)


Block = Markup | Figure | Listing


@dataclass(frozen=True)
class SectionPart:
    """A part of a section, before the study is known.

    Attributes:
        what: its name in the list of what was not measured.
        blocks: makes it from a study, or raises `Missing`.
        shows: names of the stored results that it shows; "pattern.*" means every one that
            begins so.
    """

    what: str
    blocks: Callable[[StoredStudy], list[Block]]
    shows: Sequence[str] = ()

    def accounts_for(self, names: Iterable[str]) -> set[str]:
        """The results among these that this part shows."""
        return {name for name in names if any(fnmatchcase(name, shown) for shown in self.shows)}


@dataclass(frozen=True)
class Topic:
    """One section of a report, before the study is known.

    Attributes:
        id: the heading's anchor.
        title: the question, and the field's term for its answer.
        parts: in order.
    """

    id: str
    title: str
    parts: Sequence[SectionPart]


@dataclass(frozen=True)
class Section:
    """One section of a report, for a study."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Absent:
    """Something that was not measured or cannot be shown, with the reason."""

    what: str
    why: str


def paragraph(template: str, *values: object) -> Markup:
    """A paragraph; values are escaped unless they are markup."""
    return Markup("<p>{}</p>").format(Markup(template).format(*values))
