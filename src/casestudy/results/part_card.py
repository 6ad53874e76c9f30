"""What does a part do, as one stored result?

A card is a folder with `card.json` (what was measured of which model, corpus and behaviour) and
`results.safetensors` (the grids and tables, `part.*`). Its page is made from it alone (see
`show.part_card`). Without torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from casestudy.errors import MeasureError, StudyError
from casestudy.results import names
from casestudy.results.files import read_results, write_atomically, write_results
from casestudy.results.result import Grid, Result, Shown, Table

CARD = 1
"""Version of the card's form."""
MANIFEST, RESULTS = "card.json", "results.safetensors"
FOLDER, PAGE = "parts", "card.html"
"""Where a study's folder has its cards, and what the page of each is called."""


@dataclass(frozen=True)
class PartCard(Shown):
    """What was measured of one part.

    Attributes:
        part: its spelling: "head 0.2", "neuron 4.312".
        kind: "head", "neuron" or "direction".
        about: the model, the corpus, the behaviour and the settings.
        results: grids and tables, `part.*`.
        absent: what was not measured, and why.
        notes: what is approximate, and what to know of the corpus and the prompts.
    """

    part: str
    kind: str
    about: Mapping[str, Any]
    results: tuple[Result, ...]
    absent: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Result:
        """A grid or table by name.

        Raises: MeasureError listing the existing names.
        """
        found = self.get(name)
        if found is None:
            known = ", ".join(result.name for result in self.results)
            raise MeasureError(f"the card of {self.part} has no {name!r}", allowed=known)
        return found

    def get(self, name: str) -> Result | None:
        """A grid or table by name; None if it was not measured."""
        return next((result for result in self.results if result.name == name), None)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A table's rows; none if it was not measured."""
        table = self.get(name)
        return table.rows() if isinstance(table, Table) else []

    @property
    def shown(self) -> Result:
        """The first result."""
        return self.results[0]

    def __repr__(self) -> str:
        kept = ", ".join(result.name for result in self.results)
        return f"PartCard {self.part} of {self.about['model']['name']}: {kept}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: tables as rows, grids as means with their intervals."""
        means = {
            name: _means(grid)
            for name in (
                *(names.PART_SHARE, names.PART_ATTENTION),
                *(names.PART_READS, names.PART_READS_CONTEXTS),
            )
            if isinstance(grid := self.get(names.mean(name)), Grid)
        }
        ablation = self.get(names.mean(names.PART_ABLATION))
        needed: dict[str, Any] = {}
        if isinstance(ablation, Grid):
            needed["behaviour"] = _means(ablation)
        if self.rows(names.PART_LOSS):
            needed["corpus"] = self.rows(names.PART_LOSS)
        reads = {
            key: {"terms": means[name], "error": dict(grid.error)}
            for key, name in (
                ("prompts", names.PART_READS),
                ("contexts", names.PART_READS_CONTEXTS),
            )
            if isinstance(grid := self.get(name), Grid)
        }
        return {
            "part": self.part,
            "kind": self.kind,
            "about": dict(self.about),
            "active": {
                "contexts": self.rows(names.PART_CONTEXTS),
                "values": self.rows(names.PART_VALUES),
                "signs": self.rows(names.PART_SIGNS),
                "selectivity": self.rows(names.PART_SELECTIVITY),
                "attention": means.get(names.PART_ATTENTION, []),
            },
            "writes": {
                "tokens": self.rows(names.PART_TOKENS),
                "sources": self.rows(names.PART_SOURCES),
                "share": means.get(names.PART_SHARE, []),
            },
            "reads": reads,
            "needed": needed,
            "absent": [{"what": what, "why": why} for what, why in self.absent],
            "notes": list(self.notes),
        }

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Store the card in a folder, each file completely or not at all; returns its manifest.

        Raises: StudyError when the disk is full or the folder cannot be written.
        """
        folder = Path(folder)
        write_results(folder / RESULTS, self.results)
        data = {
            "card": CARD,
            "part": self.part,
            "kind": self.kind,
            "about": dict(self.about),
            "absent": [list(entry) for entry in self.absent],
            "notes": list(self.notes),
        }
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
        write_atomically(folder / MANIFEST, text.encode("utf-8"))
        return folder / MANIFEST

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> PartCard:
        """A card that `write` stored.

        Raises: StudyError for a folder without a card, and for one of another form.
        """
        path = Path(folder) / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data["card"]
            if version != CARD:
                raise StudyError(f"{path} is a card of form {version}", allowed=str(CARD))
            absent = tuple((str(what), str(why)) for what, why in data["absent"])
            parts = data["part"], data["kind"], data["about"]
            notes = tuple(map(str, data["notes"]))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise StudyError(f"{path} is no card of a part: {problem}") from problem
        return cls(*parts, tuple(read_results(Path(folder) / RESULTS)), absent, notes)


def card_folder(study: Path, part: str) -> Path:
    """Where a study's folder has the card of a part: "parts/head-0.2"."""
    return study / FOLDER / part.replace(" ", "-")


def stored_cards(study: Path) -> dict[str, PartCard]:
    """The readable cards of a study's folder, by the name of their folder."""
    found = {}
    for manifest in sorted((study / FOLDER).glob(f"*/{MANIFEST}")):
        with suppress(StudyError):  # the study's report says which one is damaged
            found[manifest.parent.name] = PartCard.read(manifest.parent)
    return found


def _means(grid: Grid) -> list[dict[str, Any]]:
    """A grid of means as rows: its axes' labels, mean, ends of the interval and n."""
    rows = []
    for place in np.ndindex(grid.values.shape):
        value = float(grid.values[place])
        if math.isnan(value):
            continue
        row: dict[str, Any] = {
            axis.name: axis.labels[i] for axis, i in zip(grid.axes, place, strict=True)
        }
        row["mean"] = value
        for name, array in (("lower", grid.lower), ("upper", grid.upper)):
            end = float("nan") if array is None else float(array[place])
            row[name] = None if math.isnan(end) else end
        row["n"] = 0 if grid.n is None else int(grid.n[place])
        rows.append(row)
    return rows
