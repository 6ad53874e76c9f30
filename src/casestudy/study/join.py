"""How are the results of all chunks joined?

Shards are read one after another, so that memory does not grow with the number of prompts: means
and intervals come from sums per document (see `stats.Sums`), and per-prompt values are put in the
behaviour's order where they are few enough to be one array (`JOINED_CELLS`). Larger
values stay in the shards, where `Store.stream` reads them, and the text of their mean says so.

Every grid with a prompt axis gets `NAME.mean`, over the behaviour's main groups, and
`NAME.by_group`, with an axis "group" in front, where there are groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.prompts import Behaviour
from casestudy.engine.batch import Measurement
from casestudy.errors import StudyError
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid, Result, Table, worst_error
from casestudy.results.stats import Sums, compare_groups, mean_grid, ranking, units_of
from casestudy.study.store import TABLE_ROWS, Store, merge_grids

JOINED_CELLS = 1 << 24
"""Per-prompt grids of at most so many numbers (128 MiB in float64) are joined into one array."""

GROUP_CELLS = 20_000
"""Means by group are kept for at most so many numbers (groups times cells of a prompt)."""

COMPARED_GROUPS = 20
_CHECKS = (names.LEDGER_CHECK,)
"""Per-prompt grids whose mean has no meaning."""
_RANKED = (names.HEAD_SHARES,)


@dataclass(frozen=True)
class Sets:
    """Which prompts are in which group.

    Attributes:
        members: per group, which of the behaviour's prompts are in it.
        main: the prompts that the main means are taken over.
        unit: each prompt's unit of resampling.
        said: the sentence about `main` in the text of the means.
    """

    members: dict[str, NDArray[np.bool_]]
    main: NDArray[np.bool_]
    unit: NDArray[np.int64]
    said: str

    @classmethod
    def of(cls, behaviour: Behaviour) -> Sets:
        """The sets of a behaviour."""
        prompts = behaviour.prompts
        place = {name: i for i, name in enumerate(behaviour.groups)}
        inside = np.zeros((len(place), len(prompts)), dtype=bool)
        for i, prompt in enumerate(prompts):
            for name in prompt.groups:
                inside[place[name], i] = True
        documents = [prompt.document for prompt in prompts]
        known = any(documents)
        said = "Mean over all prompts"
        if behaviour.main:
            said = f"Mean over {', '.join(behaviour.main)} (the others are in by_group)"
        said += f"; the interval resamples {'documents' if known else 'prompts'}"
        return cls(
            {name: inside[i] for name, i in place.items()},
            np.array([behaviour.is_main(prompt) for prompt in prompts]),
            units_of(len(prompts), documents if known else None),
            said,
        )

    @property
    def overlapping(self) -> set[frozenset[str]]:
        """Pairs of groups that share a prompt."""
        names = list(self.members)
        return {
            frozenset((a, b))
            for i, a in enumerate(names)
            for b in names[i + 1 :]
            if (self.members[a] & self.members[b]).any()
        }


def join(
    store: Store,
    behaviour: Behaviour,
    measurements: Sequence[Measurement],
    left_out: Table,
) -> None:
    """Write a study's joined results, one at a time.

    Args:
        store: all of its shards are sealed.
        behaviour: whose prompts they are.
        measurements: which may have partial results to combine.
        left_out: rows of the table "prompts" for those that could not be run.

    Raises: StudyError naming a shard that is damaged.
    """
    sets = Sets.of(behaviour)
    names = list(dict.fromkeys(name for path in store.shards() for name in store.names(path)))
    for measurement in measurements:
        if measurement.partial:
            present = [name for name in measurement.partial if name in names]
            parts = {n: [merge_grids(store.stream(n), summed=True)] for n in present}
            store.write_final(measurement.combine(parts))
    partial = {name for measurement in measurements for name in measurement.partial}
    for name in names:
        if name not in partial:
            for result in _joined(store, name, sets):
                store.write_final([result])
    for name, about in store.shard_tables().items():
        _join_table(store, name, about, left_out)


def _join_table(store: Store, name: str, about: str, left_out: Table) -> None:
    import polars as pl

    rows = store.scan(name)
    if name == left_out.name and left_out.columns["prompt"]:
        rows = pl.concat([rows, left_out.to_polars().lazy()], how="vertical_relaxed")
    if "prompt" in rows.collect_schema().names():
        if rows.select(pl.len()).collect().item() <= TABLE_ROWS:
            store.write_table(name, rows.collect().sort("prompt", maintain_order=True), about)
            return
        about = f"{about} Rows are in the order of the plan, not of the prompts."
    store.write_table(name, rows, about)


def _joined(store: Store, name: str, sets: Sets) -> Iterator[Result]:
    """A grid over all shards, its means, and its means by group."""
    first = next(store.stream(name))
    if not any(axis.name == "prompt" for axis in first.axes):
        yield first
        return
    axes, labels = _widest(store, name)
    dim = first.dim("prompt")
    rest = axes[:dim] + axes[dim + 1 :]
    cells = int(np.prod([len(axis) for axis in rest]))
    means = name not in _CHECKS
    units = int(sets.unit.max(initial=-1)) + 1
    grouped = means and bool(sets.members) and len(sets.members) * cells <= GROUP_CELLS
    main = Sums(units, cells if means else 0)
    by_group = {g: Sums(units, cells) for g in sets.members} if grouped else {}
    order = np.sort(labels)
    whole: Array | None = None
    if cells * len(order) <= JOINED_CELLS:
        shape = [len(axis) for axis in axes]
        shape[dim] = len(order)
        whole = np.full(shape, np.nan, dtype=first.values.dtype)
    errors = []
    for grid in store.stream(name):
        errors.append(grid.error)
        prompts = np.array([int(label) for label in grid.axis("prompt").labels])
        values = np.moveaxis(widen(grid.values, axes, dim), dim, 0)
        if whole is not None:
            np.moveaxis(whole, dim, 0)[np.searchsorted(order, prompts)] = values
        if means:
            flat = values.reshape(len(prompts), cells).astype(np.float64)
            _add(main, flat, prompts, sets.main, sets.unit)
            for group, sums in by_group.items():
                _add(sums, flat, prompts, sets.members[group], sets.unit)
    axes = (*axes[:dim], Axis("prompt", tuple(map(str, order.tolist()))), *axes[dim + 1 :])
    error = worst_error(errors)
    if whole is not None:
        yield replace(first, values=whole, axes=axes, error=error)
    if not means:
        return
    # a grid with axes and text but without values: the means are taken of it
    frame = replace(
        first,
        values=np.empty((0, *(len(axis) for axis in rest))),
        axes=(Axis("prompt", ()), *rest),
        error=error,
    )
    mean = mean_grid(frame, main.interval(unit=first.unit))
    where = "" if whole is not None else " Per-prompt values are in the study's shards."
    yield replace(mean, about=f"{first.about} {sets.said}.{where}".strip())
    if by_group:
        yield _by_group(frame, by_group)
    if name in _RANKED:
        contrast = names.main_contrast(frame.axis("contrast").labels)
        yield ranking(frame, main, contrast=contrast)
    if name == "logit_difference" and 2 <= len(by_group) <= COMPARED_GROUPS:
        contrast = names.main_contrast(rest[0].labels)
        cell = rest[0].labels.index(contrast)
        yield compare_groups(by_group, sets.overlapping, cell, contrast)


def _add(
    sums: Sums,
    values: Array,
    prompts: NDArray[np.int64],
    who: NDArray[np.bool_],
    unit: NDArray[np.int64],
) -> None:
    chosen = who[prompts]
    sums.add(values[chosen], unit[prompts[chosen]])


def _by_group(frame: Grid, by_group: dict[str, Sums]) -> Grid:
    means = [mean_grid(frame, sums.interval(unit=frame.unit)) for sums in by_group.values()]

    def stacked(part: str) -> Array:
        return np.stack([getattr(mean, part) for mean in means])

    return replace(
        means[0],
        name=names.by_group(frame.name),
        axes=(Axis("group", tuple(by_group)), *means[0].axes),
        about=f"{frame.about} Mean by group of prompts; a prompt may be in several.".strip(),
        values=stacked("values"),
        lower=stacked("lower"),
        upper=stacked("upper"),
        n=stacked("n"),
    )


def _widest(store: Store, name: str) -> tuple[tuple[Axis, ...], NDArray[np.int64]]:
    """A grid's axes over all shards, each as long as anywhere, and the prompts in plan order."""
    axes: list[Axis] = []
    labels: list[int] = []
    for found in store.axes(name):
        if not axes:
            axes = list(found)
        for i, axis in enumerate(found):
            if axis.name == "prompt":
                labels += map(int, axis.labels)
                continue
            short, long = sorted((axes[i], axis), key=len)
            if short.name != long.name or long.labels[: len(short)] != short.labels:
                raise StudyError(f"shards of {name} disagree on axis {axis.name}")
            axes[i] = long
    return tuple(axes), np.array(labels, dtype=np.int64)


def widen(values: Array, axes: Sequence[Axis], dim: int) -> Array:
    """An array padded with NaN ("not measured") to the length of all axes but one."""
    pad = [(0, 0 if i == dim else len(axes[i]) - size) for i, size in enumerate(values.shape)]
    return np.pad(values, pad, constant_values=np.nan) if any(p[1] for p in pad) else values
