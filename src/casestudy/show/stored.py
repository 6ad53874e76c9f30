"""What of a stored study can be shown?

A `StoredStudy` is read file by file, so a damaged or missing file affects only its own figure.
Sections read grids by name and axes. A grid that is absent or unexpected is `Missing` with a
reason, and is listed as not measured. Without torch, model or network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from casestudy.behaviour.main_groups import in_main_groups
from casestudy.errors import CasestudyError, StudyError
from casestudy.results import names
from casestudy.results.files import read_results, read_table
from casestudy.results.part_card import FOLDER, PAGE, PartCard
from casestudy.results.result import Array, Grid, Table
from casestudy.show.text import clean
from casestudy.study.store import FORMAT, Store

UNEXPECTED = (CasestudyError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""The errors that a result of an unexpected shape can cause in a section."""


MOST_ROWS = 500_000
"""The largest number of rows that a page reads of a table: more cannot be shown."""


class Missing(Exception):
    """Something a section needs is not in the study; the message is the reason."""


@dataclass
class StoredStudy:
    """A study as read for the report.

    Attributes:
        manifest: the content of manifest.json.
        grids, tables: by name.
        notices: cautions for the reader of the page.
        cards: of single parts, by the name of their folder, where they have a page.
    """

    manifest: Mapping[str, Any]
    grids: dict[str, Grid] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    cards: dict[str, PartCard] = field(default_factory=dict)

    @classmethod
    def read(cls, store: Store) -> StoredStudy:
        """Everything of a study's folder that can be read."""
        study = cls(store.manifest)
        version = store.manifest.get("format")
        if version != FORMAT:
            study.notices.append(
                f"This study was stored in format {clean(version)}; this version of casestudy "
                f"writes format {FORMAT}. What it could read is shown; the rest is listed under "
                "“What was not measured”."
            )
        if store.manifest.get("state") != "complete":
            study.notices.append(
                "This study is not complete: it was interrupted, is still running, or was given "
                "less time than it takes. Run the same command again to finish it."
            )
        for path in sorted((store.folder / "arrays").glob("*.safetensors")):
            try:
                results = read_results(path)
            except (StudyError, LookupError, TypeError, ValueError) as error:
                study.notices.append(f"{path.name} could not be read and is left out: {error}")
                continue
            study.grids.update({r.name: r for r in results if isinstance(r, Grid)})
            study.tables.update({r.name: r for r in results if isinstance(r, Table)})
        for path in sorted((store.folder / "tables").glob("*.parquet")):
            try:
                study.tables[path.stem] = read_table(path, most=MOST_ROWS)
            except StudyError as error:
                study.notices.append(f"{path.name} could not be read and is left out: {error}")
        for path in sorted((store.folder / FOLDER).glob(f"*/{PAGE}")):
            try:
                study.cards[path.parent.name] = PartCard.read(path.parent)
            except (StudyError, LookupError, TypeError, ValueError) as error:
                study.notices.append(f"A card could not be read and is left out: {error}")
        return study

    def grid(self, name: str, *axes: str) -> Grid:
        """A grid with these axes, in this order.

        Raises: Missing if there is none, or its axes differ.
        """
        if name not in self.grids:
            raise Missing(f"the study holds no grid “{name}”")
        grid = self.grids[name]
        found = tuple(axis.name for axis in grid.axes)
        if axes and sorted(found) != sorted(axes):
            raise Missing(f"“{name}” has the axes {', '.join(found)}, not {', '.join(axes)}")
        return transposed(grid, axes) if axes else grid

    def table(self, name: str, *needed: str) -> Table:
        """A table with at least these columns.

        Raises: Missing if there is none, or a column is missing.
        """
        if name not in self.tables:
            raise Missing(f"the study holds no table “{name}”")
        table = self.tables[name]
        absent = [column for column in needed if column not in table.columns]
        if absent:
            raise Missing(f"the table “{name}” has no column {', '.join(absent)}")
        return table

    def about(self, *keys: str) -> str:
        """A text in the manifest by its path, "" where there is none."""
        value: Any = self.manifest
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return "" if value is None else clean(value)

    def main_prompts(self, labels: Sequence[str]) -> list[int]:
        """The indices of the headline prompts; all if none are named."""
        table = self.tables.get(names.PROMPTS)
        columns = table.columns if table is not None else {}
        behaviour = self.manifest.get("behaviour")
        main = behaviour.get("main") if isinstance(behaviour, Mapping) else None
        main = main if isinstance(main, list) else []
        if "prompt" not in columns or not ("main" in columns or (main and "groups" in columns)):
            return list(range(len(labels)))
        counts = columns.get("main") or [
            in_main_groups(groups or (), main) for groups in columns["groups"]
        ]
        chosen = {str(p) for p, yes in zip(columns["prompt"], counts, strict=True) if yes}
        return [i for i, label in enumerate(labels) if label in chosen]

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The contrasts' names, the main one first."""
        for name in (
            names.LOGIT_DIFFERENCE,
            names.mean(names.LOGIT_DIFFERENCE),
            names.mean(names.LEDGER),
            names.LEDGER,
        ):
            grid = self.grids.get(name)
            if grid is not None and any(axis.name == "contrast" for axis in grid.axes):
                return grid.axis("contrast").labels
        return ()

    @property
    def contrast(self) -> str:
        """The main contrast.

        Raises: Missing if the study has none.
        """
        if not self.contrasts:
            raise Missing("the study holds no contrast")
        main = names.main_contrast(self.contrasts)
        whole = main in names.WHOLES.values()
        return "lowercase" if "lowercase" in self.contrasts and not whole else main

    def contrast_in(self, contrasts: Sequence[str]) -> str:
        """The main contrast, or the first of these where it is not among them: whole answers are
        not measured everywhere."""
        return self.contrast if self.contrast in contrasts or not contrasts else contrasts[0]

    @property
    def unit(self) -> str:
        """The main contrast's unit: nats, where it is of log-probabilities."""
        of_log_probs = (names.WHOLES["sum"], names.WHOLES["mean"])
        return "nats" if self.contrasts and self.contrast in of_log_probs else "logits"


def transposed(grid: Grid, axes: tuple[str, ...]) -> Grid:
    """The same grid with its axes in this order."""
    order = [grid.dim(name) for name in axes]

    def turn(array: Array) -> Array:
        return np.transpose(array, order)

    return grid._map(turn, tuple(grid.axes[i] for i in order))
