"""What is the circuit? How much of the behaviour a subgraph carries, and which edges it has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.show import draw
from casestudy.show.blocks import Block, Figure, Listing, paragraph
from casestudy.show.means import spoken
from casestudy.show.stored import Missing, Stored
from casestudy.show.text import clean, number, percent, shorten, signed

EDGES = 30


def faithfulness(study: Stored) -> list[Block]:
    """The share of the behaviour that circuits of growing size carry."""
    grid = study.grid("circuit.faithfulness", "method", "proportion")
    methods, sizes = grid.axis("method").labels, grid.axis("proportion").labels
    if not np.isfinite(grid.values).any():
        raise Missing("no circuit was evaluated")
    series = {spoken(m): draw.numbers(row) for m, row in zip(methods, grid.values, strict=True)}

    def edges_of(array: object) -> dict[str, list[draw.Number]]:
        rows = np.asarray(array, dtype=float)
        return {spoken(m): draw.numbers(row) for m, row in zip(methods, rows, strict=True)}

    said = []
    for method, row in zip(methods, grid.values, strict=True):
        enough = next((s for s, v in zip(sizes, row, strict=True) if v >= 0.8), None)
        said.append(
            f"{spoken(method)} reaches 80 % of it with {_share(enough)} of the edges"
            if enough is not None
            else f"{spoken(method)} never reaches 80 % of it"
        )
    return [
        paragraph("How much of the difference a circuit alone carries: {}.", "; ".join(said)),
        Figure(
            "Faithfulness of circuits by size",
            draw.lines(
                [_share(s) for s in sizes],
                series,
                unit=grid.unit,
                axis="share of all edges",
                lower=None if grid.lower is None else edges_of(grid.lower),
                upper=None if grid.upper is None else edges_of(grid.upper),
                final=1.0,
            ),
            f"Lines of faithfulness by share of edges, {len(methods)} methods: {'; '.join(said)}.",
            draw.Data.of(grid),
            f"{clean(grid.about)} 1 is the whole model, 0 none of its edges.",
        ),
    ]


def _share(label: str | None) -> str:
    try:
        return percent(float(label or ""))
    except ValueError:
        return clean(label)


def edges(study: Stored) -> list[Block]:
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
            draw.layered(places, found),
            f"Layered graph of {len(places)} parts and {len(found)} edges; the strongest runs from "
            f"{source} to {target}, {signed(score, 3)}.",
            draw.Data(
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
