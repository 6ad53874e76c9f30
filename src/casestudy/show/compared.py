"""The HTML page of a comparison of two studies.

One HTML file in the report's style, made from a `Comparison` alone: the differences in a sentence
and two figures, every mean with its interval as a table (also as CSV), the entries in which the
manifests differ, and what could not be compared. Like the report it loads nothing from a network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casestudy.claims.compare import Comparison
from casestudy.results.files import write_atomically
from casestudy.show import marks
from casestudy.show.blocks import Absent, Block, Figure, Listing, Section, columns_of, paragraph
from casestudy.show.page import environment
from casestudy.show.report import frame
from casestudy.show.text import (
    clean,
    count,
    how_they_differ,
    interval,
    number,
    shorten,
    signed,
)
from casestudy.show.weighed import form_of

MOST = 20
"""Differences drawn."""
FOLD = 60
"""Rows of the table that are shown at first."""
HEADLINE = "logit_difference"


def write_comparison(found: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the page, completely or not at all, and return its path.

    Raises: StudyError if the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, comparison_html(found).encode("utf-8"))
    return path


def comparison_html(found: Comparison) -> str:
    """The whole page."""
    rows = found.rows.rows()
    headline = [row for row in rows if row["measurement"] == HEADLINE]
    others = [row for row in rows if row["measurement"] != HEADLINE]
    sections = [
        Section("contrasts", "The contrasts", _contrasts(headline)) if headline else None,
        Section("most", "What else differs most", _most(others)) if others else None,
        Section("all", "Every mean that both have", [_table(rows)]),
        Section("manifests", "What the manifests disagree about", [_manifests(found)]),
    ]
    absent = [
        Absent(row["what"], {"a": "only in A", "b": "only in B"}.get(row["only_in"], row["why"]))
        for row in found.absent.rows()
    ]
    answer = _answer(found, rows, headline)
    title = " against ".join(dict.fromkeys(found.about))
    return (
        environment()
        .get_template("comparison.html")
        .render(
            title=clean(title),
            description=shorten(answer[0].striptags(), 300),
            answer=[*(paragraph("{}", note) for note in [found.one_model] if note), *answer],
            sections=[section for section in sections if section is not None],
            absent=absent,
            facts=[
                ("A", f"{clean(found.about[0])}, in {clean(found.names[0])}"),
                ("B", f"{clean(found.about[1])}, in {clean(found.names[1])}"),
                ("Prompts", _prompts(found)),
                *(("Note", note) for note in found.notes),
            ],
            shared={"prompts": {}, "patterns": {}},
            **frame(),
        )
    )


def _prompts(found: Comparison) -> str:
    n = found.prompts
    how = "each compared with itself" if found.paired else "compared as two samples"
    return f"{n['both']:,} in both, {n['a']:,} in A alone, {n['b']:,} in B alone: {how}"


def _answer(
    found: Comparison, rows: Sequence[dict[str, Any]], headline: Sequence[dict[str, Any]]
) -> list[Any]:
    """The contrast with the largest difference, and how many of the others may be chance."""
    known = sum(row["lower"] is not None for row in rows)
    clear = sum(row["clear"] for row in rows)
    luck = paragraph(
        "Of {} intervals of differences {} leave out zero; where nothing differs, about {} would.",
        *(f"{known:,}", f"{clear:,}", f"{known / 20:,.0f}"),
    )
    if not headline:
        return [luck]
    row = headline[0]
    return [
        paragraph(
            "The answer leads {} by {} logits in A and by {} in B: a difference of <b>{}</b> "
            "(95 % interval {}), over {}.",
            form_of(str(row["contrast"])),
            number(row["a"]),
            number(row["b"]),
            signed(row["difference"]),
            interval(row["lower"], row["upper"]),
            count(max(row["a_n"], row["b_n"]), "prompt"),
        ),
        luck,
    ]


def _contrasts(rows: Sequence[dict[str, Any]]) -> list[Block]:
    return [
        _bars(
            "Mean logit difference by contrast, B minus A",
            [clean(row["contrast"]) for row in rows],
            rows,
            [1.0] * len(rows),
            "logits, B minus A",
        )
    ]


def _most(rows: Sequence[dict[str, Any]]) -> list[Block]:
    shown = [row for row in rows if row["size"]][:MOST]
    if not shown:
        return [paragraph("Nothing: every other mean is the same in both.")]
    # each on its measurement's own scale: size is the difference's over the largest mean
    scales = [row["size"] / abs(row["difference"]) for row in shown]
    return [
        _bars(
            f"The {len(shown)} largest differences, each for its measurement",
            [_label(row) for row in shown],
            shown,
            scales,
            "share of the measurement's largest mean, B minus A",
            "Each bar is a difference over the largest mean of its measurement in either study, "
            "its line the 95 % interval. Differences whose interval leaves out zero come first.",
        )
    ]


def _bars(
    title: str,
    labels: Sequence[str],
    rows: Sequence[dict[str, Any]],
    scales: Sequence[float],
    unit: str,
    caption: str = "95 % intervals of the differences.",
) -> Figure:
    def scaled(key: str) -> list[float | None]:
        values = (row[key] for row in rows)
        return [None if v is None else v * s for v, s in zip(values, scales, strict=True)]

    value, lower, upper = (scaled(key) for key in ("difference", "lower", "upper"))
    largest = rows[max(range(len(rows)), key=lambda i: abs(value[i] or 0.0))]
    return Figure(
        title,
        marks.Bars(
            labels,
            value,
            unit=unit,
            lower=lower,
            upper=upper,
            shown=[signed(row["difference"], 3) for row in rows],
        ),
        f"{title}; the largest is {_cell(largest)} with {signed(largest['difference'], 3)} "
        f"{clean(largest['unit'])}.",
        marks.Data(
            [("cell", [_cell(row) for row in rows])],
            {"value": value, "lower": lower, "upper": upper, "n": [row["b_n"] for row in rows]},
            unit,
        ),
        caption,
    )


def _label(row: dict[str, Any]) -> str:
    """A row's label next to its bar; the cell first, because only its start and end have room."""
    return clean(", ".join(filter(None, (row["cell"], row["contrast"], row["measurement"]))))


def _cell(row: dict[str, Any]) -> str:
    name = " ".join(filter(None, (row["measurement"], row["contrast"])))
    return clean(f"{name}: {row['cell']}" if row["cell"] else name)


def _table(rows: Sequence[dict[str, Any]]) -> Listing:
    def n(row: dict[str, Any]) -> str:
        if row["a_n"] is None:
            return ""
        return f"{row['a_n']:,}" if row["a_n"] == row["b_n"] else f"{row['a_n']:,}, {row['b_n']:,}"

    return Listing(
        "Means of both studies, and the difference with its 95 % interval",
        ("cell", "A#", "B#", "B − A#", "interval#", "n#", "unit"),
        [
            (
                _cell(row),
                number(row["a"], 3),
                number(row["b"], 3),
                signed(row["difference"], 3),
                interval(row["lower"], row["upper"], 3),
                n(row),
                clean(row["unit"]),
            )
            for row in rows
        ],
        "What differs most comes first; CSV has every row unrounded, with both studies’ intervals.",
        stack=True,
        fold=FOLD,
        data=columns_of(rows),
    )


def _manifests(found: Comparison) -> Listing:
    rows = [(clean(r["what"]), *how_they_differ(r["a"], r["b"], 60)) for r in found.differs.rows()]
    return Listing(
        "Entries of manifest.json that are not the same",
        ("entry", "A", "B"),
        rows or [("none", "", "")],
        stack=True,
        fold=30,
    )
