"""What is the circuit? Its faithfulness, its nodes and its edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from casestudy.results import names
from casestudy.results.components import read_component, respelled
from casestudy.results.result import Grid
from casestudy.show import marks
from casestudy.show.blocks import Block, Figure, Listing, columns_of
from casestudy.show.stored import Missing, StoredStudy
from casestudy.show.text import (
    amount,
    capital,
    clean,
    count,
    interval,
    listing,
    number,
    percent,
    shorten,
    signed,
)
from casestudy.show.wording import Mean, figure_name, spoken

EDGES = 30
RANDOM = "random circuits of the same size"
FLIPPED = "signs flipped at random"
LARGER = "least faithfulness at larger sizes"


def verdict(study: StoredStudy) -> list[Block]:
    """The circuit in a sentence, and the figures for and against it."""
    table = study.table(names.CIRCUIT_SUMMARY, "figure", "value", "lower", "upper", "n", "about")
    rows = [row for row in table.rows() if isinstance(row["value"], float)]
    if not rows:
        raise Missing("the circuit has no figures")
    figures = Listing(
        "The circuit’s evidence",
        ["Figure", "Value#", "95 % interval#", "Pairs#", "Note"],
        [
            [
                figure_name(row["figure"]),
                _figure(row["figure"], row["value"]),
                _ends(row["lower"], row["upper"]),
                clean(row["n"]),
                _note(row),
            ]
            for row in rows
        ],
        clean(table.about),
        data=table.columns,
    )
    return [Markup("<p>{}</p>").format(sentence(study)), *_cost(study), figures]


def _cost(study: StoredStudy) -> list[Block]:
    """Which prompts the pairs are of, what the evidence was planned to cost, and what was made
    smaller to fit a limit; nothing for a study that was stored before cards said so."""
    about = study.manifest.get("circuit_about")
    if not isinstance(about, Mapping):
        return []
    plan, further = about.get("plan"), about.get("further_pairs")
    said = []
    if isinstance(further, int) and further:
        said.append(
            f"{capital(count(further, 'pair'))} are of further prompts of the same kind, which "
            "only the circuit uses, so that enough pairs can be held out"
        )
    if isinstance(plan, Mapping) and isinstance(plan.get("words"), str):
        said.append(capital(clean(plan["words"])))
    return [Markup("<p>{}.</p>").format(". ".join(said))] if said else []


def _note(row: Mapping[str, Any]) -> str:
    """A figure's note; the stored verdict on larger circuits as a sentence."""
    note = clean(respelled(str(row["about"] or "")))
    if row["figure"] != LARGER:
        return note
    where, _, verdict = note.partition("; ")
    spike = "less than 0.8 of the circuit’s own faithfulness: the small circuit is a spike"
    holds = "at least 0.8 of the circuit’s own faithfulness: larger circuits are as faithful"
    return f"{where}; {spike if verdict == 'a spike' else holds}"


FEW = 10
"""With fewer pairs than this, a faithfulness is weak evidence."""
WIDE = 0.5
"""An interval of a share that is at least this wide is weak evidence."""
CLOSE = 0.75
"""A control with this share of the circuit's faithfulness is close to it."""


@dataclass(frozen=True)
class _Verdict:
    """A circuit's size and faithfulness.

    Attributes:
        zero: its faithfulness with every other edge at zero.
        flipped: the faithfulness of the strong control of its size (the same method, random signs).
        spike: of a larger circuit that is clearly less faithful: its faithfulness and size.
    """

    edges: int
    edges_share: str
    nodes: int
    where: str
    carried: Mean
    zero: float | None
    flipped: float | None
    spike: tuple[float, str] | None


def _judged(study: StoredStudy) -> _Verdict:
    table = study.table(names.CIRCUIT_SUMMARY, "figure", "value", "lower", "upper", "n", "about")
    rows = {clean(row["figure"]): row for row in table.rows()}
    size, parts = rows.get("edges"), rows.get("nodes")
    judged_on = [name for name in rows if name.startswith("faithfulness on") and "," not in name]
    if size is None or parts is None or not judged_on:
        raise Missing("the circuit has no figures")
    judged, zero = rows[judged_on[0]], rows.get(f"{judged_on[0]}, zero ablation")
    value, lower, upper = (_float(judged[end]) for end in ("value", "lower", "upper"))
    share, flipped = clean(size["about"]), rows.get(f"{judged_on[0]}, {FLIPPED}")
    larger = rows.get(LARGER)
    return _Verdict(
        int(size["value"]),
        share,
        int(parts["value"]),
        clean(judged_on[0]).removeprefix("faithfulness "),
        Mean(value, lower, upper, int(judged["n"])),
        None if zero is None else _float(zero["value"]),
        _at_size(study, FLIPPED, share) if flipped is None else _float(flipped["value"]),
        _derived_spike(study, share, value) if larger is None else _stored_spike(larger),
    )


def _stored_spike(row: Mapping[str, Any]) -> tuple[float, str] | None:
    """The card's own verdict: its note reads "at 0.1 of all edges; a spike", or "; holds"."""
    where, _, verdict = str(row["about"]).partition("; ")
    if verdict != "a spike":
        return None
    return _float(row["value"]), where.removeprefix("at ").removesuffix(" of all edges")


def _derived_spike(study: StoredStudy, share: str, carried: float) -> tuple[float, str] | None:
    """The same from the curve, for a study of version 0.1.0, whose card has no verdict."""
    grid = study.grids.get(names.CIRCUIT_FAITHFULNESS)
    if grid is None:
        return None
    methods = [m for m in grid.axis("method").labels if m not in (RANDOM, FLIPPED)]
    line = grid.select(method=methods[0]).values if methods else np.array([])
    larger = [
        (float(value), label)
        for value, label in zip(line, grid.axis("proportion").labels, strict=True)
        if np.isfinite(value) and float(label) > _proportion(share)
    ]
    least = min(larger, default=None)
    return least if least is not None and least[0] < 0.8 * carried else None


def sentence(study: StoredStudy) -> Markup:
    """The circuit's size and faithfulness, and the strong control's; states if evidence is weak.

    The strong control is the same method with random signs, at the same size.
    """
    found = _judged(study)
    mean = found.carried
    phrases = Markup(
        "A circuit of <b>{} of the model’s edges</b> ({}){} carries <b>{} of the difference</b> "
        "{}{} ({}), every other edge {}"
    ).format(
        *(f"{found.edges:,}", found.edges_share, _parts(study, found.nodes), percent(mean.value)),
        *(_metric(study), found.where, mean.bracket),
        clean(study.about("circuit_about", "ablation") or "ablated"),
    )
    if found.zero is not None:
        phrases += Markup(", and {} with every other edge at zero").format(percent(found.zero))
    control = found.flipped
    if control is not None:
        phrases += Markup("; with signs flipped at random, the same method finds {}").format(
            f"circuits of that size that carry {percent(control)}"
        )
    chance = _at_size(study, RANDOM, found.edges_share)
    if control is None and chance is not None:
        phrases += Markup("; random circuits carry {}").format(percent(chance))
    return phrases + "." + _spike(found) + _weakness(mean, control)


def _metric(study: StoredStudy) -> str:
    """What differs between the runs, from where to where and in which unit: "between clean and
    corrupted prompts (mean logit difference in logits: clean 3.10, corrupted −0.52) "; nothing
    where the study does not say."""
    name, unit = (study.about("circuit_about", key) for key in ("metric_name", "unit"))
    if not name or not unit:
        return ""
    about = study.manifest["circuit_about"]
    means = [_float(about.get(key)) for key in ("mean_clean", "mean_corrupted")]
    said = f"{name} in {unit}"
    if not np.isnan(means).any():
        said = f"mean {said}: clean {number(means[0])}, corrupted {number(means[1])}"
    return f"between clean and corrupted prompts ({said}) "


def _parts(study: StoredStudy, nodes: int) -> str:
    """How many of the model's components are in the circuit; empty if it has all of them."""
    shape = study.manifest.get("model")
    shape = shape if isinstance(shape, Mapping) else {}
    layers, heads = shape.get("n_layers"), shape.get("n_heads")
    if not isinstance(layers, int) or not isinstance(heads, int):
        return f" and {count(nodes, 'part')}"
    total = layers * (heads + 1) + 1  # every head and MLP, and the embeddings
    if nodes >= total:
        return ""
    return f" and {nodes:,} of its {total:,} parts, the embeddings counted,"


def _at_size(study: StoredStudy, method: str, share: str) -> float | None:
    """The faithfulness of a method's circuits at the measured size closest to a circuit's."""
    try:
        grid = study.grid(names.CIRCUIT_FAITHFULNESS, "method", "proportion")
    except Missing:
        return None
    if method not in grid.axis("method").labels:
        return None
    sizes = np.array([float(label) for label in grid.axis("proportion").labels])
    nearest = int(np.argmin(np.abs(np.log(sizes / _proportion(share)))))
    value = float(grid.select(method=method).values[nearest])
    return value if np.isfinite(value) else None


def _proportion(share: str) -> float:
    """ "1.8 % of all" as a number."""
    return float(share.split("%")[0].strip().replace("\u00a0", "")) / 100


def _spike(found: _Verdict) -> str:
    """A sentence if a larger circuit is clearly less faithful: then the small one is a spike."""
    if found.spike is None:
        return ""
    value, share = found.spike
    return (
        f" It does not hold at larger sizes: with {_share(share)} of the edges, the circuit "
        f"by the same scores carries {percent(value)}."
    )


def _weakness(mean: Mean, control: float | None) -> str:
    """The reason if the evidence is weak."""
    width = mean.upper - mean.lower
    reasons = []
    if mean.n < FEW:
        reasons.append(f"{count(mean.n, 'pair')} are few")
    if not np.isfinite(width) or width > WIDE:
        reasons.append("the interval is wide" if np.isfinite(width) else "there is no interval")
    if control is not None and control >= CLOSE * mean.value:
        reasons.append("the control with flipped signs comes close")
    return f" This is weak evidence: {listing(reasons)}." if reasons else ""


def faithfulness(study: StoredStudy) -> list[Block]:
    """Faithfulness by size, with controls and other ablations."""
    grid = study.grid(names.CIRCUIT_FAITHFULNESS, "method", "proportion")
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
    return [*blocks, *_sizes(study)]


def _sizes(study: StoredStudy) -> list[Block]:
    """How many edges the circuits of each curve have after pruning; nothing where not stored."""
    try:
        grid = study.grid(names.CIRCUIT_SIZES, "method", "proportion")
    except Missing:
        return []
    # what the rest carries does not change which edges a circuit has
    grid = grid.take("method", [m for m in grid.axis("method").labels if " ablation" not in m])
    methods, shares = grid.axis("method").labels, grid.axis("proportion").labels
    rows: list[list[str | Markup]] = [
        [_share(share), *(amount(value) for value in column)]
        for share, column in zip(shares, grid.values.T, strict=True)
    ]
    head = ["Share of all edges", *(f"{spoken(method)}#" for method in methods)]
    data: dict[str, list[object]] = {"proportion": list(shares)}
    data |= {m: list(row) for m, row in zip(methods, grid.values.tolist(), strict=True)}
    return [
        Listing("Edges of these circuits after pruning", head, rows, clean(grid.about), data=data)
    ]


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
    """The circuit's nodes, with its faithfulness without each."""
    table = study.table(names.CIRCUIT_NODES, "node", "faithfulness_without", "minimality")
    rows = table.rows()
    if not rows:
        raise Missing("the circuit has no node")
    return [
        Listing(
            "The circuit’s parts, the most needed first",
            ["Part", "Attribution#", "Faithfulness without it#", "Largest change#"],
            [
                [
                    respelled(clean(row["node"])),
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
    """The strongest edges, as a layered graph if all names can be read."""
    table = study.table(names.CIRCUIT_EDGES)
    rows = table.rows()
    if not rows:
        raise Missing("no edge was scored")
    if "score" in table.columns:
        rows = sorted(rows, key=lambda row: -abs(row["score"] or 0))
    paths = strongest_paths(rows)
    total, every = len(rows), columns_of(rows)
    rows = rows[:EDGES]
    cells: list[list[str | Markup]] = [
        [_edge_cell(value) for value in row.values()] for row in rows
    ]
    more = f" The first {EDGES} of {total:,}." if total > EDGES else ""
    head = [spoken(name) for name in table.columns]
    about = clean(table.about) + more
    strongest = Listing("The strongest edges", head, cells, about, fold=10, data=every)
    return [*_graph(paths, total), strongest]


def _edge_cell(value: object) -> str:
    if isinstance(value, float):
        return number(value, 3)
    return "" if value is None else respelled(shorten(clean(value), 40))


def _graph(rows: Sequence[Mapping[str, Any]], total: int) -> list[Block]:
    found: list[tuple[str, str, float]] = []
    places: dict[str, tuple[int, int]] = {}
    for row in rows:
        ends = [_node(str(row.get(side, ""))) for side in ("source", "target")]
        if ends[0] is None or ends[1] is None or not isinstance(row.get("score"), float):
            return []
        # a row of the drawing holds up to a dozen heads, and has no room for the word
        source, target = (name.removeprefix("head ") for name, *_ in (ends[0], ends[1]))
        places |= {source: ends[0][1:], target: ends[1][1:]}
        found.append((source, target, row["score"]))
    source, target = (respelled(name) for name in found[0][:2])
    score = found[0][2]
    return [
        Figure(
            f"The {count(len(found), 'edge')} of the circuit"
            if len(found) == total
            else f"The strongest paths: {len(found)} of {total:,} edges",
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
            "positive and orange for negative."
            + (
                f" The other {total - len(found):,} edges are weaker, or on no path from the "
                "embeddings to the logits that is as strong; the table’s CSV has them."
                if total > len(found)
                else ""
            ),
        )
    ]


def strongest_paths(
    rows: Sequence[Mapping[str, Any]], most: int = EDGES
) -> Sequence[Mapping[str, Any]]:
    """The edges of the strongest paths from the embeddings to the logits, up to a limit.

    The strength of a path is that of its weakest edge. The strongest path is taken, its weakest
    edge is removed, and so on. If there are few edges, all are returned; if there is no path or a
    name cannot be read, the strongest edges.
    """
    ends = [tuple(_node(str(row.get(side, ""))) for side in ("source", "target")) for row in rows]
    readable = all(a and b for a, b in ends) and all(
        isinstance(row.get("score"), float) for row in rows
    )
    if len(rows) <= most or not readable:
        return rows[:most]
    left = {i: (a, b, abs(rows[i]["score"])) for i, (a, b) in enumerate(ends) if a and b}
    chosen: set[int] = set()
    while path := _widest(left):
        if len(chosen | set(path)) > most:
            break
        chosen |= set(path)
        del left[min(path, key=lambda i: left[i][2])]
    return [rows[i] for i in sorted(chosen)] or rows[:most]


_Place = tuple[str, int, int]


def _widest(edges: Mapping[int, tuple[_Place, _Place, float]]) -> list[int]:
    """The path from the embeddings to the logits whose weakest edge is strongest; [] for none."""
    best: dict[str, tuple[float, int | None]] = {}
    order = sorted(edges, key=lambda i: (edges[i][0][1], edges[i][1][1]))
    for i in order:
        source, target, size = edges[i]
        if source[1] == 0:
            best.setdefault(source[0], (float("inf"), None))
        if source[0] not in best:
            continue
        width = min(best[source[0]][0], size)
        if target[0] not in best or width > best[target[0]][0]:
            best[target[0]] = (width, i)
    path: list[int] = []
    at = "logits"
    while (step := best.get(at, (0.0, None))[1]) is not None:
        path.append(step)
        at = edges[step][0][0]
    return path[::-1]


LAST = 10**6
"""The depth of the logits: above every layer."""


def _node(label: str) -> _Place | None:
    """A node's name without its input (q, k, v), its depth and its order; None if unreadable."""
    part = read_component(label)
    if part is None:
        return None
    name = str(replace(part, side=""))
    if part.layer is None:
        return name, LAST if part.kind == "logits" else 0, 0
    at_mlp = part.kind in ("mlp", "neuron")
    return name, 2 * part.layer + (2 if at_mlp else 1), part.index or 0
