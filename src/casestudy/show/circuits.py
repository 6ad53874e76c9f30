"""What is the circuit? How much of the behaviour a subgraph carries, and which edges it has."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from casestudy.show import draw
from casestudy.show.blocks import Block, Figure, Listing, paragraph
from casestudy.show.means import spoken
from casestudy.show.stored import Missing, Stored
from casestudy.show.text import clean, number, percent, shorten

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
    """The strongest edges."""
    table = study.table("circuit.edges")
    rows = table.rows()
    if not rows:
        raise Missing("no edge was scored")
    if "score" in table.columns:
        rows = sorted(rows, key=lambda row: -abs(row["score"] or 0))
    cells: list[list[str | Markup]] = [
        [number(v, 3) if isinstance(v, float) else shorten(clean(v), 40) for v in row.values()]
        for row in rows[:EDGES]
    ]
    more = f" The first {EDGES} of {len(rows):,}." if len(rows) > EDGES else ""
    head = [spoken(name) for name in table.columns]
    return [Listing("The strongest edges", head, cells, clean(table.about) + more)]
