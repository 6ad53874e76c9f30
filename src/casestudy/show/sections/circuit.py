"""What is the circuit? How much of the behaviour a subgraph carries, and which edges it has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results.result import Grid
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, Listing
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import clean, count, interval, number, percent, shorten, signed
from casestudy.show.wording import Mean, spoken

EDGES = 30
RANDOM = "random circuits of the same size"


def verdict(study: StoredStudy) -> list[Block]:
    """What was found, in a sentence, and the figures for and against it."""
    table = study.table("circuit.summary", "figure", "value", "lower", "upper", "n", "about")
    rows = [row for row in table.rows() if isinstance(row["value"], float)]
    if not rows:
        raise Missing("the circuit has no figures")
    listing = Listing(
        "The circuit’s evidence",
        ["Figure", "Value#", "95 % interval#", "Pairs#", "Note"],
        [
            [
                clean(row["figure"]),
                _figure(row["figure"], row["value"]),
                _ends(row["lower"], row["upper"]),
                clean(row["n"]),
                clean(row["about"]),
            ]
            for row in rows
        ],
        clean(table.about),
        data=table.columns,
    )
    return [Markup("<p>{}</p>").format(sentence(study)), listing]


def sentence(study: StoredStudy) -> Markup:
    """How small a circuit carries how much, held against chance."""
    table = study.table("circuit.summary", "figure", "value", "lower", "upper", "n", "about")
    rows = {clean(row["figure"]): row for row in table.rows()}
    size, parts = rows.get("edges"), rows.get("nodes")
    names = [name for name in rows if name.startswith("faithfulness on") and "," not in name]
    if size is None or parts is None or not names:
        raise Missing("the circuit has no figures")
    judged = rows[names[0]]
    value, lower, upper = (_float(judged[end]) for end in ("value", "lower", "upper"))
    mean = Mean(value, lower, upper, int(judged["n"]))
    phrases = Markup(
        "A circuit of <b>{} of the model’s edges</b> ({}) and {} carries <b>{} of the difference"
        "</b> {} ({}), every other edge {}"
    ).format(
        f"{int(size['value']):,}",
        clean(size["about"]),
        count(int(parts["value"]), "part"),
        percent(mean.value),
        clean(names[0]).removeprefix("faithfulness "),
        mean.bracket,
        clean(study.about("circuit_about", "ablation") or "ablated"),
    )
    chance = _chance(study)
    if chance is not None:
        phrases += Markup("; random circuits of any size tried carry at most {}").format(
            percent(chance)
        )
    return phrases + "."


def _chance(study: StoredStudy) -> float | None:
    """The most that random circuits carry at any size but the whole."""
    grid = study.grids.get("circuit.faithfulness")
    if grid is None or RANDOM not in grid.axis("method").labels:
        return None
    values = grid.select(method=RANDOM).values
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def faithfulness(study: StoredStudy) -> list[Block]:
    """The share of the behaviour that circuits of growing size carry, against controls, and with
    other ablations."""
    grid = study.grid("circuit.faithfulness", "method", "proportion")
    if not np.isfinite(grid.values).any():
        raise Missing("no circuit was evaluated")
    methods = grid.axis("method").labels
    other = [name for name in methods if name.endswith(" ablation")]
    plain = [name for name in methods if name not in other]
    blocks: list[Block] = [
        _curves(grid.take("method", plain), "Faithfulness of circuits by size, and controls")
    ]
    if other:
        base = [name for name in plain if any(o.startswith(f"{name}, ") for o in other)]
        blocks.append(
            _curves(
                grid.take("method", [*base, *other]),
                "The same circuits with other ablations of the rest",
            )
        )
    return blocks


def _curves(grid: Grid, title: str) -> Figure:
    methods, sizes = grid.axis("method").labels, grid.axis("proportion").labels

    none = [None] * len(methods)
    lower, upper = (none if a is None else list(a) for a in (grid.lower, grid.upper))
    series = [
        marks.Series.of(spoken(name), *arrays)
        for name, *arrays in zip(methods, grid.values, lower, upper, strict=True)
    ]
    phrases = []
    for method, row in zip(methods, grid.values, strict=True):
        enough = next((s for s, v in zip(sizes, row, strict=True) if v >= 0.8), None)
        phrases.append(
            f"{spoken(method)} reaches 80 % of it with {_share(enough)} of the edges"
            if enough is not None
            else f"{spoken(method)} never reaches 80 % of it"
        )
    return Figure(
        title,
        marks.Lines(
            [_share(s) for s in sizes],
            series,
            grid.unit,
            axis="share of all edges",
            final=1.0,
        ),
        f"Lines of faithfulness by share of edges, {len(methods)} of them: {'; '.join(phrases)}.",
        marks.Data.of(grid),
        f"{clean(grid.about)} 1 is the whole model, 0 none of its edges.",
    )


def nodes(study: StoredStudy) -> list[Block]:
    """What each part of the circuit is worth to it."""
    table = study.table("circuit.nodes", "node", "faithfulness_without", "minimality")
    rows = table.rows()
    if not rows:
        raise Missing("the circuit has no node")
    return [
        Listing(
            "The circuit’s parts, the most needed first",
            ["Part", "Attribution#", "Faithfulness without it#", "Largest change#"],
            [
                [
                    _spoken_node(clean(row["node"])),
                    number(_float(row.get("score"))),
                    number(_float(row["faithfulness_without"])),
                    number(_float(row["minimality"])),
                ]
                for row in rows
            ],
            clean(table.about),
            fold=12,
            data=table.columns,
        )
    ]


def _spoken_node(label: str) -> str:
    place = _node(label)
    if place is None:
        return label
    return place[0] if place[0].startswith(("mlp", "embed")) else f"head {place[0]}"


def _figure(name: object, value: float) -> str:
    return f"{int(value):,}" if name in ("edges", "nodes") else number(value, 3)


def _ends(lower: object, upper: object) -> str:
    low, high = _float(lower), _float(upper)
    return "" if np.isnan(low) or np.isnan(high) else interval(low, high, 3)


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _share(label: str | None) -> str:
    try:
        return percent(float(label or ""))
    except ValueError:
        return clean(label)


def edges(study: StoredStudy) -> list[Block]:
    """The strongest edges, as a layered graph where their names say where they belong."""
    table = study.table("circuit.edges")
    rows = table.rows()
    if not rows:
        raise Missing("no edge was scored")
    if "score" in table.columns:
        rows = sorted(rows, key=lambda row: -abs(row["score"] or 0))
    rows = rows[:EDGES]
    cells: list[list[str | Markup]] = [
        [number(v, 3) if isinstance(v, float) else shorten(clean(v), 40) for v in row.values()]
        for row in rows
    ]
    total = len(table.rows())
    more = f" The first {EDGES} of {total:,}." if total > EDGES else ""
    head = [spoken(name) for name in table.columns]
    listing = Listing("The strongest edges", head, cells, clean(table.about) + more, fold=10)
    return [*_graph(rows), listing]


def _graph(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    found: list[tuple[str, str, float]] = []
    places: dict[str, tuple[int, int]] = {}
    for row in rows:
        ends = [_node(str(row.get(side, ""))) for side in ("source", "target")]
        if ends[0] is None or ends[1] is None or not isinstance(row.get("score"), float):
            return []
        for name, depth, order in (ends[0], ends[1]):
            places[name] = (depth, order)
        found.append((ends[0][0], ends[1][0], row["score"]))
    source, target, score = found[0]
    return [
        Figure(
            f"The {len(found)} strongest edges",
            marks.Layered(places, found),
            f"Layered graph of {len(places)} parts and {len(found)} edges; the strongest runs from "
            f"{source} to {target}, {signed(score, 3)}.",
            marks.Data(
                [("edge", [f"{row['source']} to {row['target']}" for row in rows])],
                {"value": [score for _, _, score in found]},
                "",
                "tables/circuit.edges.parquet",
            ),
            "The input is below, the logits above; a wider edge has a larger score, blue for "
            "positive and orange for negative.",
        )
    ]


LAST = 10**6
"""The depth of the logits: above every layer."""


def _node(label: str) -> tuple[str, int, int] | None:
    """A node's name without its input (q, k, v), its depth and its order; None if unreadable."""
    text = label.strip().lower()
    if text.startswith(("embed", "input", "pos_embed")):
        return text, 0, 0
    if text.startswith(("logits", "output")):
        return "logits", LAST, 0
    head = re.match(r"(?:a|attn|head|h)?[ ._]?(\d+)[._]h?(\d+)", text)
    if head:
        layer, number_ = int(head[1]), int(head[2])
        return f"{layer}.{number_}", 2 * layer + 1, number_
    mlp = re.match(r"(?:mlp|m)[ ._]?(\d+)", text)
    return (f"mlp {mlp[1]}", 2 * int(mlp[1]) + 2, 0) if mlp else None
