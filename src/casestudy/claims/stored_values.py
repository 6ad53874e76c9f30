"""What did a stored study measure per prompt, and how is it read?

A measurement is read when it is used. Values per prompt that were too many to join are read shard
by shard. Patches are read twice: as shares of the difference between their two runs, and as changes
in logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from casestudy.results import names
from casestudy.results.result import Axis, Grid
from casestudy.results.stats import ratio_in_parts
from casestudy.study.store import Store

if TYPE_CHECKING:
    import polars as pl

_CHECKS = (names.LEDGER_CHECK,)
"""Grids per prompt whose mean has no meaning."""

SHARE = "share of the difference between the runs"

Parts = Grid | Iterator[Grid]
"""A measurement's values per prompt: one grid, or an iterator over shards if they are too many."""


def sources(store: Store) -> dict[str, Callable[[], Parts]]:
    """For each measurement of a study, by name, the function that reads it."""
    found: dict[str, Callable[[], Parts]] = {}
    if names.ANSWERS in store.tables():
        for what in ANSWERS:
            found[names.answer(what)] = partial(stored_answers, store, what)
    grids = [name for name in store.grids() if name not in _CHECKS]
    for name in grids:
        if name.startswith(names.PATTERNS) or name.endswith((names.BY_GROUP, names.KNOWN)):
            continue
        if name.endswith(names.BASELINES):
            of = name.removesuffix(names.BASELINES)
            found[of] = partial(_patched, store, of, share=True)
            found[names.effect(of)] = partial(_patched, store, of, share=False)
        elif name.endswith(names.MEAN) and name.removesuffix(names.MEAN) not in grids:
            found[name.removesuffix(names.MEAN)] = partial(
                store.stream, name.removesuffix(names.MEAN)
            )
        elif not name.endswith((names.MEAN, names.RAW)):
            found.setdefault(name, partial(_read, store, name))
    return found


def _read(store: Store, name: str) -> Grid:
    return store.grids()[name]


def _patched(store: Store, name: str, *, share: bool) -> Grid:
    """A patch, per prompt: the prompt's part of the normalised share, or the change in logits."""
    raw, baselines = _read(store, names.raw(name)), _read(store, names.baselines(name))
    runs = dict(zip(baselines.axis("run").labels, baselines.values, strict=True))
    if share:
        values = ratio_in_parts(raw.values, runs["unpatched"], runs["other"])
        return replace(raw, values=values, unit=SHARE)
    return replace(raw, values=raw.values - runs["unpatched"])


ANSWERS = {
    "probability": ("prob", "probability"),
    "rank": ("rank", "rank (1 is the first)"),
    "top-1": ("rank", "share of prompts"),
}
"""What the table of answers says of each prompt's answer: the column, and the unit."""


def answer_grid(answers: pl.DataFrame, what: str) -> Grid:
    """Each prompt's answer as the model sees it; prompts without an answer are not in it.

    Args:
        answers: the table of answers; of its columns prompt, form, and the one in `ANSWERS`.
        what: "probability", "rank", or "top-1": 1 where the answer is the first prediction.

    Shape:  (prompt).
    """
    column, unit = ANSWERS[what]
    own = answers.filter(answers["form"] == "answer").sort("prompt")
    values = own[column].to_numpy().astype(np.float64)
    if is_yes_or_no(what):
        values = (values == 0).astype(np.float64)
    elif what == "rank":
        values = values + 1  # tables count from 0, a person from 1
    labels = tuple(map(str, own["prompt"].to_list()))
    return Grid(names.answer(what), values, (Axis("prompt", labels),), unit)


def is_yes_or_no(what: str) -> bool:
    """Whether a number of `ANSWERS` is 0 or 1 for each prompt, so that its mean is a share."""
    return what == "top-1"


def stored_answers(store: Store, what: str) -> Grid:
    """`answer_grid` of a study that measured predictions.

    Raises: StudyError if the study has no answers.
    """
    return answer_grid(store.columns(names.ANSWERS, ["prompt", "form", ANSWERS[what][0]]), what)
