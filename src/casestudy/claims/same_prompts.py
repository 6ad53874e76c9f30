"""Which prompts of two studies are the same, and what is resampled?

Prompts are matched by their text. If several prompts have the same text, the first of one study is
matched with the first of the other, and so on. If enough prompts match, each is compared with
itself, and only prompts that both studies measured count. The units of resampling are documents if
they are known, prompts otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.main_groups import in_main_groups
from casestudy.claims.stored_values import Parts
from casestudy.errors import StudyError
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid
from casestudy.results.stats import Sums, units_named
from casestudy.study.store import Store

Two = tuple[Store, Store]
"""The studies that are compared, a and b."""

Key = tuple[str, int]
"""A prompt's text, and how many prompts of the same text come before it."""


@dataclass(frozen=True)
class SamePrompts:
    """The headline prompts of both studies, and which of them are the same.

    Attributes:
        paired: whether each prompt is compared with itself.
        both: the number of prompts in both studies.
        only: the numbers of prompts in a alone and in b alone.
        units: the number of units of resampling.
        unit: for each study, the unit of each prompt, by index; -1 for one that does not count.
        pair: for each study, the pair of each prompt, by index; -1 for one without a pair.
        twins: for each pair, the prompt's index in a and in b.
    """

    paired: bool
    both: int
    only: tuple[int, int]
    units: int
    unit: tuple[NDArray[np.int64], NDArray[np.int64]]
    pair: tuple[NDArray[np.int64], NDArray[np.int64]]
    twins: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, stores: Two, paired: bool | None) -> SamePrompts:
        """Match the prompts of two studies by text.

        Raises: StudyError if pairs are required and there are none.
        """
        keys, documents, sizes = zip(*(headline(store) for store in stores), strict=True)
        places = [{key: index for index, key in own.items()} for own in keys]
        twins = tuple((i, places[1][key]) for key, i in places[0].items() if key in places[1])
        if paired and not twins:
            raise StudyError("no prompt is in both studies", hint="Compare them as two samples")
        if paired is None:
            paired = 0 < min(map(len, keys)) <= 2 * len(twins)
        named = [
            [
                (side, index, documents[side].get(index, ""), key)
                for index, key in keys[side].items()
                if not paired or key in places[1 - side]
            ]
            for side in (0, 1)
        ]
        counted = [*named[0], *named[1]]
        known = len({document for _, _, document, _ in counted}) > 1
        names = [
            f"document {document}" if known and document else f"prompt {key!r}"
            for _, _, document, key in counted
        ]
        unit_of = units_named(names)
        unit = tuple(np.full(size, -1, dtype=np.int64) for size in sizes)
        pair = tuple(np.full(size, -1, dtype=np.int64) for size in sizes)
        for (side, index, _, _), which in zip(counted, unit_of.tolist(), strict=True):
            unit[side][index] = which
        for place, two in enumerate(twins):
            for side, index in enumerate(two):
                pair[side][index] = place
        return cls(
            paired,
            len(twins),
            (len(keys[0]) - len(twins), len(keys[1]) - len(twins)),
            int(unit_of.max(initial=-1)) + 1,
            (unit[0], unit[1]),
            (pair[0], pair[1]),
            twins,
        )

    def sums(
        self, parts: tuple[Parts, Parts], axes: Sequence[Axis]
    ) -> tuple[tuple[Sums, Sums], tuple[Array, Array]]:
        """The sums of both studies' cells per unit, over the prompts that count.

        Also returns, for each study, which cells it has for at least one headline prompt.
        """
        cells = int(np.prod([len(axis) for axis in axes]))
        made = Sums(self.units, cells), Sums(self.units, cells)
        if self.paired and all(isinstance(part, Grid) for part in parts):
            values = [np.full((self.both, cells), np.nan) for _ in made]
            for side, part in enumerate(parts):
                assert isinstance(part, Grid)
                index, flat = _flat(part, axes)
                place = self.pair[side][index]
                values[side][place[place >= 0]] = flat[place >= 0]
            there = [np.asarray(~np.isnan(own).all(0)) for own in values]
            # a prompt counts for a cell if both studies have that cell
            hole = np.isnan(values[0]) | np.isnan(values[1])
            unit = self.unit[0][[first for first, _ in self.twins]]
            for own, sums in zip(values, made, strict=True):
                sums.add(np.where(hole, np.nan, own), unit)
            return made, (there[0], there[1])
        for side, part in enumerate(parts):
            for grid in [part] if isinstance(part, Grid) else part:
                index, flat = _flat(grid, axes)
                unit = self.unit[side][index]
                made[side].add(flat[unit >= 0], unit[unit >= 0])
        counted = [np.asarray(sums.counts.any(0)) for sums in made]
        return made, (counted[0], counted[1])


def headline(store: Store) -> tuple[dict[int, Key], dict[int, str], int]:
    """The keys and documents of the headline prompts, by index, and the number of all prompts."""
    main = store.manifest["behaviour"].get("main") or ()
    frame = store.columns(names.PROMPTS, ["prompt", "text", "groups", "document"]).sort("prompt")
    seen: dict[str, int] = {}
    keys: dict[int, Key] = {}
    documents: dict[int, str] = {}
    for index, text, groups, document in frame.iter_rows():
        if in_main_groups(groups, main):
            keys[index] = (text, seen.get(text, 0))
            documents[index] = document
            seen[text] = seen.get(text, 0) + 1
    return keys, documents, len(frame)


def _flat(grid: Grid, axes: Sequence[Axis]) -> tuple[NDArray[np.int64], Array]:
    """The prompts' indices, and these cells as (prompt, cell)."""
    for axis in axes:
        if grid.axis(axis.name).labels != axis.labels:
            grid = grid.take(axis.name, axis.labels)
    index = np.array([int(label) for label in grid.axis("prompt").labels], dtype=np.int64)
    values = np.moveaxis(grid.values, grid.dim("prompt"), 0)
    return index, values.reshape(len(index), -1).astype(np.float64)
