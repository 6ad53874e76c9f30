"""Which heads and neurons carry the behaviour? Their number, faithfulness, controls and effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.components import respelled
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, Listing, columns_of, paragraph
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import clean, count, interval, number, percent, signed
from casestudy.show.wording import Mean, figure_name

NODES, EDGES = 24, 12
"""Rows of each table that are shown at once."""
HELD = "faithfulness on"
CONTROL = "faithfulness, random neurons in the same layers"
ALIKE = 0.75
"""A control with this share of the circuit's faithfulness is close to it."""


def circuit(study: StoredStudy) -> list[Block]:
    """The heads and neurons; nothing where a study did not look for them."""
    if names.NEURON_CIRCUIT_SUMMARY not in study.tables:
        return []
    table = study.table(
        names.NEURON_CIRCUIT_SUMMARY, "figure", "value", "lower", "upper", "n", "about"
    )
    rows = table.rows()
    figures = Listing(
        "The evidence for the circuit of heads and neurons",
        ("figure", "value#", "95 % interval#", "pairs#", "note"),
        [
            (
                figure_name(row["figure"]),
                f"{row['value']:,.0f}" if row["figure"] in ("neurons", "heads") else
                number(row["value"]),
                "" if row["lower"] is None else interval(row["lower"], row["upper"]),
                clean(row["n"]),
                clean(row["about"]),
            )
            for row in rows
        ],
        clean(table.about),
        data=table.columns,
    )  # fmt: skip
    return [_sentence(study, rows), _curve(study), *_layers(study), *_nodes(study), *_edges(study),
            figures]  # fmt: skip


def _sentence(study: StoredStudy, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """`_words`, with the family of the pairs."""
    family = study.about("neurons_about", "family")
    said = f" Pairs are of the family “{family}”." if family else ""
    return paragraph("{}{}", _words(study, rows), said)


def _words(study: StoredStudy, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """The circuit's size and held-out faithfulness, and what as many random neurons carry."""
    found = {str(row["figure"]): row for row in rows}
    judged = next((row for name, row in found.items() if name.startswith(HELD)), None)
    if judged is None or not {"neurons", "heads"} <= set(found):
        raise Missing("the circuit of heads and neurons has no figures")
    low, high = (
        float("nan") if judged[end] is None else float(judged[end]) for end in ("lower", "upper")
    )
    mean = Mean(float(judged["value"]), low, high, int(judged["n"]))
    words = Markup(
        "<b>{}</b> ({}) and <b>{}</b> ({}), each at every position, carry <b>{} of the difference"
        "</b> {} ({}), all other heads and neurons {}."
    ).format(
        *(count(int(found["neurons"]["value"]), "neuron"), clean(found["neurons"]["about"])),
        *(count(int(found["heads"]["value"]), "head"), clean(found["heads"]["about"])),
        *(percent(mean.value), clean(str(judged["figure"]).removeprefix("faithfulness "))),
        *(mean.bracket, _ablated(study)),
    )
    control = found.get(CONTROL)
    if control is not None:
        close = float(control["value"]) >= ALIKE * mean.value
        template = " The same heads with as many random neurons in the same layers carry {}{}."
        words += Markup(template).format(
            percent(float(control["value"])),
            ": it does not matter much which neurons these are" if close else "",
        )
    return words


def sentence(study: StoredStudy) -> Markup:
    """The same for the first paragraph.

    Raises: Missing where the study did not look for heads and neurons.
    """
    table = study.table(names.NEURON_CIRCUIT_SUMMARY, "figure", "value", "lower", "upper", "n")
    return _words(study, table.rows())


def _ablated(study: StoredStudy) -> str:
    """What the other nodes have."""
    kind = study.about("neurons", "choices", "ablation")
    return {
        "corrupted": "as in the corrupted run",
        "mean": "at their means",
        "zero": "at zero",
    }.get(kind, "ablated")


def _curve(study: StoredStudy) -> Figure:
    grid = study.grid(names.NEURON_CIRCUIT_CURVE, "nodes")
    labels = [f"{int(label):,}" for label in grid.axes[0].labels]
    values = np.asarray(grid.values, dtype=float)
    reached = next((i for i, value in enumerate(values) if value >= 0.5), None)
    half = "no number of them shown reaches half" if reached is None else (
        f"{labels[reached]} of them reach {number(float(values[reached]))}"
    )  # fmt: skip
    return Figure(
        "Faithfulness by the number of heads and neurons, the largest scores first",
        marks.Lines(
            labels,
            [marks.Series.of("held out", values, grid.lower, grid.upper)],
            unit=grid.unit,
            axis="heads and neurons",
            height=200,
        ),
        f"Line of faithfulness over the number of nodes; {half}.",
        marks.Data.of(grid),
        f"{clean(grid.about)} One step to the right is not one node: the sizes are those on the "
        "axis.",
    )


def _layers(study: StoredStudy) -> list[Block]:
    """How many of each layer's neurons are in the circuit, as bars."""
    if names.NEURON_CIRCUIT_LAYERS not in study.tables:
        return []
    rows = study.table(names.NEURON_CIRCUIT_LAYERS, "layer", "heads", "neurons").rows()
    labels = [f"layer {row['layer']}" for row in rows]
    values = [float(row["neurons"]) for row in rows]
    most = int(np.argmax(values))
    return [
        Figure(
            "Its neurons by layer",
            marks.Bars(labels, values, "neurons", axis="layer"),
            f"Bars of neurons by layer; most, {values[most]:,.0f}, in {labels[most]}.",
            marks.Data(
                [("layer", [str(row["layer"]) for row in rows])],
                {"value": values, "heads": [float(row["heads"]) for row in rows]},
                "neurons",
            ),
            "The data has the heads of each layer too.",
        )
    ]


def _nodes(study: StoredStudy) -> list[Block]:
    """The first nodes with scores and exact effects; the rests and random ones are in the data."""
    if names.NEURON_CIRCUIT_NODES not in study.tables:
        return []
    table = study.table(names.NEURON_CIRCUIT_NODES, "node", "score", "exact", "faithfulness_lost")
    first = [row for row in table.rows() if row["faithfulness_lost"] is not None]
    cells = [
        (
            clean(row["node"]),
            signed(row["score"]),
            _with_ends(row, "exact"),
            _with_ends(row, "faithfulness_lost"),
        )
        for row in first
    ]
    return [
        Listing(
            "Its first heads and neurons",
            ("node", "score#", "exact effect#", "faithfulness lost without it#"),
            cells[:NODES],
            f"{clean(table.about)} The CSV has the nodes drawn at random and the rests.",
            fold=10,
            data=columns_of(table.rows()),
        )
    ]


def _with_ends(row: Mapping[str, Any], name: str) -> str:
    ends = row.get(f"{name}_lower"), row.get(f"{name}_upper")
    value = signed(row[name])
    return value if None in ends else f"{value} [{interval(*ends)}]"


def _edges(study: StoredStudy) -> list[Block]:
    """The strongest edges between the first nodes."""
    if names.NEURON_CIRCUIT_EDGES not in study.tables:
        return []
    table = study.table(names.NEURON_CIRCUIT_EDGES, "source", "target", "score")
    rows = table.rows()[:EDGES]
    return [
        Listing(
            "Its strongest edges",
            ("edge", "score#"),
            [
                (f"{clean(respelled(row['source']))}→{clean(respelled(row['target']))}",
                 signed(row["score"], 3))
                for row in rows
            ],
            clean(table.about),
            data=table.columns,
        )
    ]  # fmt: skip
