"""How do two studies differ, and how certain is the difference?

The comparison of two finished studies (two models, checkpoints or sets of prompts) lists the
entries in which their manifests differ. For every measurement that both have it gives each cell's
mean in both studies, the difference, and a 95 % interval of the difference. If the same prompts ran
in both (matched by their text), each prompt is compared with itself, and only prompts measured in
both count; otherwise the studies are two samples. Documents are resampled if they are known (see
`results/stats`). Results that only one study has are named, never treated as zero; results that
cannot be compared have a reason.

A cell's `size` is its difference divided by the largest mean of its measurement in either study, so
logits, shares and probabilities can be ranked together. Even if nothing differs, one in twenty
intervals excludes zero: among hundreds of cells, trust the first rows, not the last clear one.

Assumes that layers and heads correspond if two models have the same numbers of them. This is true
for checkpoints and rewrites of one model, not for models trained separately. No model and no torch
is needed. Cost: reading both studies' stored numbers, one measurement at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from casestudy.claims.same_prompts import SamePrompts, Two
from casestudy.claims.stored_values import Parts, sources
from casestudy.errors import StudyError, unknown
from casestudy.results import components, names
from casestudy.results.result import Array, Axis, Grid, Shown, Table
from casestudy.results.stats import difference_interval
from casestudy.study.store import Store, differences

_COMPARED = ("model", "behaviour", "settings", "measurements", "versions")
"""The parts of a manifest that are compared."""
_BY_LAYER = frozenset({"layer", "head", "kv_head", "neuron", "depth"})
_PLAIN = frozenset({"contrast", "term", "class", "role", "score", "control", "effect", "part"})
"""Axes whose labels need no axis name."""


@runtime_checkable
class Kept(Protocol):
    """What has a study's folder: a `Study`."""

    @property
    def store(self) -> Store:
        """The folder."""


@dataclass(frozen=True)
class Comparison(Shown):
    """Two studies side by side; "a" and "b" throughout.

    Attributes:
        names: their folders.
        about: behaviour and model of each.
        differs: the entries in which the manifests differ; columns what, a, b.
        paired: whether prompts are compared with themselves.
        prompts: how many of the headline prompts are in "both", only in "a", only in "b".
        rows: a row per cell that both have, largest difference first: cells whose interval excludes
            zero (`clear`) before the others, by `size` within each. `a_n` and `b_n` are the numbers
            of prompts; intervals are None if there are too few.
        absent: results of only one study (`only_in`), or that cannot be compared (`why`).
        notes: cautions for the reader.
        one_model: the first note, if both have the same weights or read one checkpoint in two
            number formats; else None.
    """

    names: tuple[str, str]
    about: tuple[str, str]
    differs: Table
    paired: bool
    prompts: Mapping[str, int]
    rows: Table
    absent: Table
    notes: tuple[str, ...]
    one_model: str | None = None

    @property
    def shown(self) -> Table:
        """The rows, largest difference first."""
        return self.rows

    def of(self, measurement: str) -> list[dict[str, Any]]:
        """The rows of one measurement.

        Raises: StudyError listing those compared.
        """
        known = dict.fromkeys(self.rows.columns["measurement"])
        if measurement not in known:
            raise unknown(StudyError, f"{measurement!r} was not compared", measurement, known)
        return [row for row in self.rows.rows() if row["measurement"] == measurement]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "a": {"folder": self.names[0], "about": self.about[0]},
            "b": {"folder": self.names[1], "about": self.about[1]},
            "differs": self.differs.rows(),
            "paired": self.paired,
            "prompts": dict(self.prompts),
            "rows": self.rows.rows(),
            "absent": self.absent.rows(),
            "notes": list(self.notes),
        }


def compare(
    a: Kept | Store | str | os.PathLike[str],
    b: Kept | Store | str | os.PathLike[str],
    *,
    paired: bool | None = None,
) -> Comparison:
    """Compare two finished studies.

    Args:
        a, b: studies, or their folders.
        paired: compare prompts with themselves; by default where at least half of the smaller
            study's headline prompts are in the other.

    Unit:   of each row's measurement; `difference` is b minus a.
    Raises: StudyError if a folder has no finished study, if the two share no contrast, and if
        `paired` is true and no prompt is in both.
    Source: of the intervals, see `stats.difference_interval`.
    """
    stores = _finished(a), _finished(b)
    _check_contrasts(stores)
    prompts = SamePrompts.of(stores, paired)
    read = [sources(store) for store in stores]
    rows: list[_Row] = []
    absent: list[_Absent] = []
    for name in dict.fromkeys((*read[0], *read[1])):
        have = [name in there for there in read]
        if not all(have):
            absent.append((name, "a" if have[0] else "b", "not measured in the other"))
            continue
        why = _incomparable(name, stores)
        if why is not None:
            absent.append((name, None, why))
            continue
        found, missing = _cells(name, read[0][name], read[1][name], prompts, stores)
        rows += found
        absent += missing
    rows += _of_tables(stores)
    if not rows:
        raise StudyError(
            "the two studies have no measurement that can be compared: "
            + "; ".join(f"{what}: {why}" for what, _, why in absent[:5]),
            hint="Run both with the same measurements",
        )
    one_model = _one_model(stores)
    return Comparison(
        names=(str(stores[0].folder), str(stores[1].folder)),
        about=(_about(stores[0]), _about(stores[1])),
        differs=_differs(stores),
        paired=prompts.paired,
        prompts={"both": prompts.both, "a": prompts.only[0], "b": prompts.only[1]},
        rows=_ordered(rows),
        absent=_table(
            "absent", ("what", "only_in", "why"), absent, "What is not compared, and why."
        ),
        notes=(*filter(None, [one_model]), *_notes(stores, prompts)),
        one_model=one_model,
    )


def _finished(study: Kept | Store | str | os.PathLike[str]) -> Store:
    if isinstance(study, str | os.PathLike):
        store = Store.open(study)
    else:
        store = study if isinstance(study, Store) else study.store
    if store.manifest.get("state") != "complete":
        raise StudyError(
            f"the study in {store.folder} is not finished",
            hint="The command that began it continues it",
        )
    return store


def _about(store: Store) -> str:
    return f"{store.manifest['behaviour']['name']} on {store.manifest['model']['name']}"


# Can they be compared?


def _check_contrasts(stores: Two) -> None:
    """Raises: StudyError where both weigh answers and none alike."""
    grids = [store.grids() for store in stores]
    if not all(names.LOGIT_DIFFERENCE in found for found in grids):
        return
    a, b = (found[names.LOGIT_DIFFERENCE].axis("contrast").labels for found in grids)
    if not set(a) & set(b):
        raise StudyError(
            f"the studies share no contrast: {', '.join(a)} in {stores[0].folder}; "
            f"{', '.join(b)} in {stores[1].folder}",
            allowed="two studies of one question",
        )


def _same(stores: Two, part: str, *entries: str) -> bool:
    one, other = (store.manifest.get(part, {}) for store in stores)
    return all(one.get(entry) == other.get(entry) for entry in entries)


def _incomparable(name: str, stores: Two) -> str | None:
    """The reason if a measurement has different definitions in the two studies."""
    if name == names.CLASS_MASS and not _same(stores, "behaviour", "classes"):
        return "the classes are defined otherwise"
    if name.startswith(names.PATCHING):
        of = name.removesuffix(names.EFFECT)
        families = [store.manifest.get("patch_families", {}).get(of) for store in stores]
        if None in families:
            return "which edits were exchanged is not in the manifest; run the study anew"
        if families[0] != families[1]:
            return f"other edits: “{families[0]}” in a, “{families[1]}” in b"
    return None


def _shared_axes(
    name: str, a: Grid, b: Grid, stores: Two
) -> tuple[list[Axis] | None, list[_Absent]]:
    """The cells that both grids have, axis by axis (None if none); and those left out."""
    one, other = ([axis for axis in grid.axes if axis.name != "prompt"] for grid in (a, b))
    if a.unit != b.unit:
        return None, [(name, None, f"in {a.unit} in a, in {b.unit} in b")]
    if [axis.name for axis in one] != [axis.name for axis in other]:
        return None, [(name, None, "its axes differ")]
    alike = _same(stores, "model", "family", "n_layers", "n_heads", "d_model")
    if not alike and _BY_LAYER & {axis.name for axis in one}:
        return None, [(name, None, "the models have other layers or heads")]
    axes: list[Axis] = []
    absent: list[_Absent] = []
    for mine, theirs in zip(one, other, strict=True):
        barred: dict[str, str] = {}
        if not alike and mine.name == "term":
            layered = [t for t in (*mine.labels, *theirs.labels) if components.layer_kind(t)]
            barred = dict.fromkeys(layered, "the models have other layers or heads")
        if mine.name == "contrast" and not _same(stores, "behaviour", "classes", "class_contrast"):
            barred = dict.fromkeys(_class_contrasts(stores), "the classes are defined otherwise")
        every = dict.fromkeys((*mine.labels, *theirs.labels))
        left = {
            label: ("a" if label in mine.labels else "b", "not measured in the other")
            for label in every
            if (label in mine.labels) != (label in theirs.labels)
        } | {label: (None, why) for label, why in barred.items() if label in every}
        for side, why in dict.fromkeys(left.values()):
            labels = [label for label, reason in left.items() if reason == (side, why)]
            absent.append((f"{name}: {mine.name} {_first(labels)}", side, why))
        both = [x for x in mine.labels if x in theirs.labels and x not in barred]
        axes.append(Axis(mine.name, tuple(both)))
    return (axes if all(map(len, axes)) else None), absent


def _class_contrasts(stores: Two) -> list[str]:
    asked = [store.manifest["behaviour"].get("class_contrast") for store in stores]
    return [str(contrast["name"]) for contrast in asked if contrast]


# The differences

_Row = dict[str, Any]
_Absent = tuple[str, str | None, str]
"""What, the only study that has it ("a", "b", None), and why it is not compared."""


def _cells(
    name: str,
    read_a: Callable[[], Parts],
    read_b: Callable[[], Parts],
    prompts: SamePrompts,
    stores: Two,
) -> tuple[list[_Row], list[_Absent]]:
    """One measurement's rows, and its cells that are not compared."""
    parts = read_a(), read_b()
    first = [part if isinstance(part, Grid) else next(part) for part in parts]
    axes, absent = _shared_axes(name, first[0], first[1], stores)
    if axes is None:
        return [], absent or [(name, None, "no cell in common")]
    labels = [_cell(axes, place) for place in np.ndindex(*map(len, axes))]
    unit = first[0].unit
    if "prompt" not in {axis.name for axis in first[0].axes}:
        return _of_models(name, first[0], first[1], axes, labels), absent
    if not all(isinstance(part, Grid) for part in parts):
        parts = read_a(), read_b()  # anew, since their first shard has been taken
    (a, b), there = prompts.sums(parts, axes)
    difference, lower, upper = difference_interval(a, b, unit=unit)
    means = [sums.interval(unit=unit) for sums in (a, b)]
    largest = max(float(np.nanmax(np.abs(mean), initial=0.0)) for mean, *_ in means)
    rows = []
    for i, (contrast, cell) in enumerate(labels):
        if np.isnan(difference[i]):
            continue
        row: _Row = {"measurement": name, "contrast": contrast, "cell": cell, "unit": unit}
        for side, (mean, low, high, n) in zip("ab", means, strict=True):
            row |= {side: float(mean[i]), f"{side}_lower": _number(low[i])}
            row |= {f"{side}_upper": _number(high[i]), f"{side}_n": int(n[i])}
        row |= {"difference": float(difference[i])}
        row |= {"lower": _number(lower[i]), "upper": _number(upper[i])}
        rows.append(row | _weight(row, largest))
    return rows, [*absent, *_holes(name, labels, there, difference)]


def _holes(
    name: str, labels: Sequence[_Label], there: tuple[Array, Array], difference: Array
) -> Iterator[_Absent]:
    """The cells that one study has, or both of other prompts."""
    a, b = there
    for side, cells in (("a", a & ~b), ("b", b & ~a), (None, a & b & np.isnan(difference))):
        which = [", ".join(filter(None, labels[i])) for i in np.flatnonzero(cells).tolist()]
        if which:
            why = "no prompt has it in both" if side is None else "not measured in the other"
            yield f"{name}: {_first(which)}", side, why


def _first(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def _of_models(
    name: str, a: Grid, b: Grid, axes: Sequence[Axis], labels: Sequence[_Label]
) -> list[_Row]:
    """Results that depend only on the models, not on prompts: without n and interval."""
    values = []
    for grid in (a, b):
        for axis in axes:
            grid = grid.take(axis.name, axis.labels)
        values.append(grid.values.reshape(-1))
    largest = float(np.nanmax(np.abs(np.stack(values)), initial=0.0))
    rows = []
    for (contrast, cell), one, other in zip(labels, *values, strict=True):
        if not np.isnan(other - one):
            row: _Row = {"measurement": name, "contrast": contrast, "cell": cell, "unit": a.unit}
            row |= dict.fromkeys(_COLUMNS[4:])
            row |= {"a": float(one), "b": float(other), "difference": float(other - one)}
            rows.append(row | _weight(row, largest))
    return rows


_TABLES = {
    names.NEURON_SHARES: (("contrast", "layer", "neuron"), ("mean",)),
    names.COUNTERFACTUALS: (("family",), ("mean_clean", "mean_corrupted")),
}
"""Tables that keep no more than means and their intervals: what names a row, and its means."""


def _of_tables(stores: Two) -> Iterator[_Row]:
    """What is kept as a mean with its interval: rows that both tables have, as two samples.

    The neurons are those that come first in both studies, over all of their prompts.
    """
    alike = _same(stores, "model", "family", "n_layers", "n_heads", "d_model")
    defined = _same(stores, "behaviour", "classes", "class_contrast")
    barred = [] if defined else _class_contrasts(stores)
    for name, (keys, means) in _TABLES.items():
        tables = [store.tables() for store in stores]
        if not all(name in known for known in tables) or ("layer" in keys and not alike):
            continue
        one, other = (
            {tuple(row[key] for key in keys): row for row in known[name].rows()} for known in tables
        )
        rows: list[_Row] = []
        for key in one:
            at = dict(zip(keys, key, strict=True))
            contrast = at.get("contrast")
            if key not in other or contrast in barred:
                continue
            for mean in means:
                row = _of_intervals(one[key], other[key], mean)
                if row is not None:
                    cell = (
                        components.neuron(at["layer"], at["neuron"])
                        if "neuron" in at
                        else f"{at['family']}, {mean.removeprefix('mean_')}"
                    )
                    rows.append(
                        {"measurement": name, "contrast": contrast, "cell": cell}
                        | {"unit": "logits", **row}
                    )
        largest = max((abs(row[side]) for row in rows for side in "ab"), default=0.0)
        yield from (row | _weight(row, largest) for row in rows)


def _of_intervals(a: Mapping[str, Any], b: Mapping[str, Any], mean: str) -> _Row | None:
    """A row from two means' own intervals (MOVER; Zou and Donner 2008)."""
    if a[mean] is None or b[mean] is None:
        return None
    row: _Row = {}
    ends = [f"{mean}_lower", f"{mean}_upper"] if f"{mean}_lower" in a else ["lower", "upper"]
    for side, of in (("a", a), ("b", b)):
        row |= {side: of[mean], f"{side}_n": of["n"]}
        row |= {f"{side}_lower": of[ends[0]], f"{side}_upper": of[ends[1]]}
    row |= {"difference": b[mean] - a[mean], "lower": None, "upper": None}
    if None not in [of[end] for of in (a, b) for end in ends]:
        up = math.hypot(b[ends[1]] - b[mean], a[mean] - a[ends[0]])
        down = math.hypot(b[mean] - b[ends[0]], a[ends[1]] - a[mean])
        row |= {"lower": row["difference"] - down, "upper": row["difference"] + up}
    return row


_ROUNDING = 1e-5
"""Relative: what batching and order may change in float32 (law 3)."""


def _weight(row: _Row, largest: float) -> _Row:
    """Whether a difference excludes zero, and its size relative to its measurement.

    It also has to be larger than rounding; for logits at least the rounding of a logit of 1.
    """
    known = row["lower"] is not None and row["upper"] is not None
    rounding = _ROUNDING * max(largest, 1.0 if row["unit"] == "logits" else 0.0)
    beyond = abs(row["difference"]) > rounding
    clear = known and beyond and (row["lower"] > 0 or row["upper"] < 0)
    return {"clear": clear, "size": abs(row["difference"]) / largest if largest else 0.0}


_Label = tuple[str | None, str]
"""A cell's contrast, and the rest of it in words."""


def _cell(axes: Sequence[Axis], place: tuple[int, ...]) -> _Label:
    at = {axis.name: axis.labels[i] for axis, i in zip(axes, place, strict=True)}
    contrast = at.pop("contrast", None)
    words = [
        components.head_of(kind, at.pop("layer"), at.pop(kind))
        for kind in ("head", "kv_head")
        if kind in at and "layer" in at
    ]
    words += [label if axis in _PLAIN else f"{axis} {label}" for axis, label in at.items()]
    return contrast, ", ".join(words)


def _number(value: Any) -> float | None:
    number = float(value)
    return None if number != number else number


_COLUMNS = (
    *("measurement", "contrast", "cell", "unit"),
    *("a", "a_lower", "a_upper", "a_n", "b", "b_lower", "b_upper", "b_n"),
    *("difference", "lower", "upper", "clear", "size"),
)


def _ordered(rows: Sequence[_Row]) -> Table:
    order = sorted(rows, key=lambda row: (not row["clear"], -row["size"]))
    return _table(
        "comparison",
        _COLUMNS,
        [tuple(row[column] for column in _COLUMNS) for row in order],
        "Means of two studies with 95 % intervals, and b minus a with its own.",
    )


def _table(name: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], about: str) -> Table:
    return Table(name, {c: [row[i] for row in rows] for i, c in enumerate(columns)}, about)


def _differs(stores: Two) -> Table:
    one, other = ({part: s.manifest.get(part) for part in _COMPARED} for s in stores)
    return _table(
        "differs",
        ("what", "a", "b"),
        list(differences(one, other)),
        "What the manifests disagree about.",
    )


def same_weights(stores: Sequence[Store]) -> Iterator[tuple[Store, Store]]:
    """Stored studies with bit-identical models: each with the first study of the same weights."""
    first: dict[str, Store] = {}
    for store in stores:
        digest = store.manifest.get("model", {}).get("weight_hash")
        if digest and digest in first:
            yield first[digest], store
        elif digest:
            first[digest] = store


def _one_model(stores: Two) -> str | None:
    """The first note, if both have the same weights."""
    for one, other in same_weights(stores):
        what = "the same study" if one.folder.resolve() == other.folder.resolve() else "one model"
        return (
            f"A and B are {what}: their weights are the same bit for bit, so that differences come "
            "from prompts, settings or rounding alone."
        )
    models = [store.manifest.get("model", {}) for store in stores]
    source = models[0].get("source")
    if source and _same(stores, "model", "source", "rewrites"):
        one, other = (model.get("dtype") for model in models)
        if one != other:
            return (
                f"A and B were read from one place ({source}), as {one} and as {other}: unless its "
                "files changed in between, differences come from the number format, prompts, "
                "settings or rounding alone."
            )
    return None


def _notes(stores: Two, prompts: SamePrompts) -> Iterator[str]:
    if not _same(stores, "model", "weight_hash") and _same(
        stores, "model", "family", "n_layers", "n_heads", "d_model"
    ):
        yield (
            "Layers and heads are matched by number, which means something for checkpoints of one "
            "model, and little for models trained apart."
        )
    if prompts.paired and all(names.ANSWERS in store.tables() for store in stores):
        tokens = []
        for store in stores:
            frame = store.columns(names.ANSWERS, ["prompt", "form", "token"])
            own = frame.filter(frame["form"] == "answer")
            tokens.append(dict(zip(own["prompt"], own["token"], strict=True)))
        twins = [
            (tokens[0][i], tokens[1][j])
            for i, j in prompts.twins
            if i in tokens[0] and j in tokens[1]
        ]
        other = sum(x != y for x, y in twins)
        if other:
            yield (
                f"{other} of {len(twins)} prompts have another answer in b: each study chose its "
                "own, so contrasts of single answers weigh other tokens there."
            )
