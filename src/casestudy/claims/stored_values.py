"""What did a stored study measure, prompt by prompt, and how is it read?

Nothing is read until it is asked for; per-prompt values that were too many to join come shard by
shard. Patches are read as shares of the difference between their two runs, and as changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from casestudy.results import names
from casestudy.results.result import Axis, Grid
from casestudy.results.stats import ratio_in_parts
from casestudy.study.store import Store

_CHECKS = (names.LEDGER_CHECK,)
"""Per-prompt grids whose mean would mean nothing."""

SHARE = "share of the difference between the runs"

Parts = Grid | Iterator[Grid]
"""A measurement's per-prompt values: whole, or shard by shard where they are too many."""


def sources(store: Store) -> dict[str, Callable[[], Parts]]:
    """What a study measured, by name, and how to read it; nothing is read yet."""
    found: dict[str, Callable[[], Parts]] = {}
    if names.ANSWERS in store.tables():
        for what in ANSWERS:
            found[names.answer(what)] = partial(answer_grid, store, what)
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
    """A patch per prompt: its part of the normalised share, or its change in logits."""
    raw, baselines = _read(store, names.raw(name)), _read(store, names.baselines(name))
    runs = dict(zip(baselines.axis("run").labels, baselines.values, strict=True))
    if share:
        values = ratio_in_parts(raw.values, runs["unpatched"], runs["other"])
        return replace(raw, values=values, unit=SHARE)
    return replace(raw, values=raw.values - runs["unpatched"])


ANSWERS = {
    "probability": ("prob", "probability"),
    "rank": ("rank", "rank (0 is the first)"),
    "top-1": ("rank", "share of prompts"),
}
"""What the answers' table says of each prompt's answer: its column, and the unit."""


def answer_grid(store: Store, what: str) -> Grid:
    """Each prompt's answer as the model sees it; prompts without an answer are not in it.

    Args:
        store: a study that measured predictions.
        what: "probability", "rank", or "top-1": 1 where the answer is the first prediction.

    Shape:  (prompt).
    Raises: StudyError where the study has no answers.
    """
    column, unit = ANSWERS[what]
    frame = store.columns(names.ANSWERS, ["prompt", "form", column])
    own = frame.filter(frame["form"] == "answer").sort("prompt")
    values = own[column].to_numpy().astype(np.float64)
    if what == "top-1":
        values = (values == 0).astype(np.float64)
    labels = tuple(map(str, own["prompt"].to_list()))
    return Grid(names.answer(what), values, (Axis("prompt", labels),), unit)
