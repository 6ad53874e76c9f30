"""What are the grids and tables of a circuit's evidence?

They are made from the evidence's values, without a model. The results are named `circuit.*`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from casestudy.circuits.agreement import agreement
from casestudy.circuits.curves import PROPORTIONS, Curve
from casestudy.circuits.evidence import Evidence, Faithfulness, Question
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid, Result, Table, measured


@dataclass(frozen=True)
class MetricRead:
    """The metric that a circuit is evaluated with, and its means in the two runs.

    Attributes:
        name, unit: see `NamedMetric`.
        clean, corrupted: the metric's mean over all pairs in each run.
    """

    name: str
    unit: str
    clean: float
    corrupted: float

    @property
    def about(self) -> dict[str, Any]:
        """As stored in a card's `about`."""
        return {
            "metric_name": self.name,
            "unit": self.unit,
            "mean_clean": self.clean,
            "mean_corrupted": self.corrupted,
        }

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.unit}), on average {self.clean:.3g} in the clean runs and "
            f"{self.corrupted:.3g} in the corrupted ones"
        )


def metric_means(question: Question, evidence: Evidence) -> tuple[float, float]:
    """The metric's means over all pairs, in the clean and in the corrupted runs."""
    scores = evidence.scores
    clean, corrupted = [scores.clean], [scores.corrupted]
    if question.held_out:
        evaluations = [curve.evaluation for curve in evidence.curves.values()]
        held = next(e for e in evaluations if e.ablation == "corrupted")
        clean.append(held.full)
        corrupted.append(held.empty)
    return float(np.concatenate(clean).mean()), float(np.concatenate(corrupted).mean())


def card_tables(question: Question, evidence: Evidence, read: MetricRead) -> tuple[Result, ...]:
    """All grids and tables of the evidence; `read` is the metric of the evaluation."""
    return (
        faithfulness_grid(question, evidence, read),
        sizes_grid(question, evidence.curves),
        edge_table(question, evidence, read),
        node_table(question, evidence),
        summary_table(question, evidence, read),
    )


def faithfulness_grid(question: Question, evidence: Evidence, read: MetricRead) -> Grid:
    """(method, proportion) faithfulness of the curves and their controls."""
    curves, controls, judge = evidence.curves, evidence.controls, question.judge
    rows = [curve.evaluation.interval(judge.documents) for curve in curves.values()]
    rows += [_spread(values) for values in controls.values()]
    mean, lower, upper = (np.stack(ends) for ends in zip(*rows, strict=True))
    errors = [curve.evaluation.error for curve in curves.values()]
    worst = max(errors, key=lambda error: error["gap"])
    where = "pairs held out" if question.held_out else "the pairs the scores are from"
    return Grid(
        names.CIRCUIT_FAITHFULNESS,
        mean,
        (Axis("method", (*curves, *controls)), _proportions()),
        "share of the difference",
        lower,
        upper,
        _pairs_of_rows(question, evidence, mean.shape),
        error=dict(worst),
        about=f"Faithfulness on {where} of the first edges by score, dangling ones pruned, as a "
        f"share of the difference between clean and corrupted runs in {read}; "
        f"other edges {question.choices.ablation} unless said. Of the controls the interval is the "
        "spread of the circuits. Mueller et al. 2025.",
    )


def _pairs_of_rows(question: Question, evidence: Evidence, shape: tuple[int, ...]) -> Array:
    """(method, proportion) pairs; controls may be on fewer of them."""
    n = np.full(shape, len(question.judge))
    n[len(evidence.curves) :] = len(question.with_judges(evidence.plan.extent.pairs).judge)
    return n


def _spread(values: Array) -> tuple[Array, Array, Array]:
    """(size,) mean over a control's circuits, and their 2.5 % and 97.5 % quantiles; NaN if no
    circuit was measured."""
    there = ~np.isnan(values).all(1)
    mean, lower, upper = np.full((3, len(values)), np.nan)
    if there.any():
        mean[there] = values[there].mean(1)
        lower[there], upper[there] = np.quantile(values[there], (0.025, 0.975), axis=1)
    return mean, lower, upper


def _proportions() -> Axis:
    return Axis("proportion", tuple(f"{p:g}" for p in PROPORTIONS))


def sizes_grid(question: Question, curves: dict[str, Curve]) -> Grid:
    """(method, proportion) edges left after pruning."""
    sizes = [[c.n_edges for c in curve.evaluation.circuits] for curve in curves.values()]
    return Grid(
        names.CIRCUIT_SIZES,
        np.array(sizes, dtype=np.float64),
        (Axis("method", tuple(curves)), _proportions()),
        "edges",
        about=f"How many of the {question.graph.n_edges:,} edges are left after pruning.",
    )


def edge_table(question: Question, evidence: Evidence, read: MetricRead) -> Table:
    """The circuit's edges, strongest first."""
    circuit, scores, exact = evidence.circuit, evidence.scores, evidence.exact
    inside = replace(scores, values=np.where(circuit.mask, scores.values, np.nan))
    columns = dict(inside.table(circuit.n_edges).columns)
    n = columns.pop("n")
    if exact is not None:
        ends = zip(columns["source"], columns["target"], strict=True)
        columns["exact"] = [measured(exact.scores[f"{s}->{t}"]) for s, t in ends]
    columns["n"] = n
    return Table(
        names.CIRCUIT_EDGES,
        columns,
        f"The {circuit.n_edges} edges of the smallest circuit with a faithfulness of at least "
        f"{question.choices.faithful:g} where it was looked for. Scores by {scores.method}, in "
        f"{read.unit} of the {read.name}: what is lost, by estimate, when the edge carries the "
        "corrupted activation; exact is that loss where it was patched.",
    )


def node_table(question: Question, evidence: Evidence) -> Table:
    """The circuit's nodes: their scores, and the circuit's faithfulness without each."""
    knockouts, node_scores = evidence.knockouts, evidence.scores.nodes
    without = dict(zip(knockouts.nodes, knockouts.circuit[1:], strict=False))
    minimality = dict(zip(knockouts.nodes, knockouts.minimality, strict=True))
    order = sorted(knockouts.nodes, key=lambda name: -minimality[name])
    return Table(
        names.CIRCUIT_NODES,
        {
            "node": order,
            "score": [float(node_scores[question.graph.node(name)]) for name in order],
            "faithfulness_without": [float(without[name]) for name in order],
            "minimality": [float(minimality[name]) for name in order],
        },
        f"{_which_nodes(evidence)}: attribution patching's score, the circuit's faithfulness "
        "without the node, and the largest change in faithfulness that knocking it out made (Wang "
        "et al. 2022, section 4.2).",
    )


def _which_nodes(evidence: Evidence) -> str:
    """Which of the circuit's nodes were knocked out: all but the embeddings, or the largest."""
    knockouts, total = evidence.knockouts, len(evidence.circuit.nodes)
    tried, others = len(knockouts.nodes), len(knockouts.members or knockouts.nodes)
    words = f"{tried} of the circuit's {total} nodes"
    if others < total:
        words += " (the embeddings, which everything comes from, are not knocked out)"
    return words + (", those with the largest scores" if tried < others else "")


class SummaryRow(NamedTuple):
    """A row of the summary; lower and upper are None if the figure has no interval."""

    figure: str
    value: float
    n: int
    about: str
    lower: float | None = None
    upper: float | None = None


def summary_table(question: Question, evidence: Evidence, read: MetricRead) -> Table:
    """One row per figure."""
    figures = [
        *_size_and_faithfulness(question, evidence),
        *_at_larger_sizes(question, evidence),
        *_areas(evidence.curves, question.judge.documents, len(question.judge)),
        *_completeness(question, evidence),
        *_reliability(question, evidence),
    ]
    columns: dict[str, list[Any]] = {"figure": [row.figure for row in figures]}
    for end in ("value", "lower", "upper"):
        columns[end] = [measured(getattr(row, end)) for row in figures]
    columns["n"] = [row.n for row in figures]
    columns["about"] = [row.about for row in figures]
    about = "The circuit's evidence in figures; n counts pairs. Faithfulness is a share of the "
    about += f"difference between clean and corrupted runs in {read}."
    return Table(names.CIRCUIT_SUMMARY, columns, about)


def _size_and_faithfulness(question: Question, evidence: Evidence) -> list[SummaryRow]:
    circuit, n = evidence.circuit, len(question.search)
    share = circuit.n_edges / question.graph.n_edges
    return [
        SummaryRow("edges", circuit.n_edges, n, f"{share * 100:.2g} % of all"),
        SummaryRow("nodes", len(circuit.nodes), n, "embeddings among them"),
        *(
            SummaryRow(f"faithfulness {name}", f.mean, f.n, _whole(f), f.lower, f.upper)
            for name, f in evidence.faithfulness.items()
        ),
    ]


def _whole(found: Faithfulness) -> str:
    """What 1 is, and why there is no interval where there is none."""
    few = f"; no interval, n = {found.n}" if math.isnan(found.lower) else ""
    return f"1 is the whole model{few}"


HOLDS = 0.8
"""The larger circuits on the curve must keep this share of the circuit's faithfulness; otherwise
the circuit is a spike of the curve."""


def _at_larger_sizes(question: Question, evidence: Evidence) -> list[SummaryRow]:
    """The least faithfulness of the larger circuits on the curve; empty if there are none."""
    found = _least_above(question, evidence)
    if found is None:
        return []
    value, share = found
    about = f"at {share:g} of all edges; " + ("holds" if holds(question, evidence) else "a spike")
    n = len(question.judge)
    return [SummaryRow("least faithfulness at larger sizes", value, n, about)]


def _least_above(question: Question, evidence: Evidence) -> tuple[float, float] | None:
    """The least faithfulness on the curve above the circuit's size, and its share of edges."""
    curve = evidence.curves[question.choices.curve_name]
    larger = [
        (float(value), share)
        for share, circuit, value in zip(
            curve.proportions,
            curve.evaluation.circuits,
            curve.evaluation.faithfulness,
            strict=True,
        )
        if circuit.n_edges > evidence.circuit.n_edges and np.isfinite(value)
    ]
    return min(larger, default=None)


def holds(question: Question, evidence: Evidence) -> bool:
    """Whether larger circuits on the curve are about as faithful as the circuit, on the held-out
    pairs; if not, the circuit may be that small by chance."""
    found = _least_above(question, evidence)
    own = [f.mean for name, f in evidence.faithfulness.items() if name.startswith("on ")]
    return found is None or not own or found[0] >= HOLDS * own[0]


def headline(question: Question, evidence: Evidence) -> dict[str, Any]:
    """The figures to show with a circuit's size and faithfulness, by name: whether it holds at
    larger sizes, its faithfulness under zero ablation, and the strong control's at its size."""
    values = {name.partition(", ")[2]: f.mean for name, f in evidence.faithfulness.items()}
    return {
        "holds_at_larger_sizes": holds(question, evidence),
        "zero_ablation": values.get("zero ablation"),
        "signs_flipped": values.get("signs flipped at random"),
    }


AREAS = {
    "CPR": "circuit performance ratio: the area under the faithfulness curve (MIB, the benchmark "
    "of Mueller et al. 2025)",
    "CMD": "circuit-model distance: the area between the faithfulness curve and 1 (MIB)",
}
"""The two areas of a curve, spelt out."""


def _areas(curves: dict[str, Curve], documents: Sequence[str] | None, n: int) -> list[SummaryRow]:
    figures = []
    for name, curve in curves.items():
        intervals = curve.intervals(documents)
        for area, value in (("CPR", curve.cpr), ("CMD", curve.cmd)):
            ends = intervals[area.lower()]
            figures.append(SummaryRow(f"{area} ({name})", value, n, AREAS[area], *ends))
    return figures


def _completeness(question: Question, evidence: Evidence) -> list[SummaryRow]:
    knockouts = evidence.knockouts
    n = len(question.with_judges(evidence.plan.extent.pairs).judge)
    n_nodes = len(knockouts.nodes)
    _, alone, sets = np.split(knockouts.incompleteness, (1, n_nodes + 1))
    figures = [
        SummaryRow(
            "incompleteness, single nodes",
            float(alone.mean()),
            n,
            f"at most {alone.max():.2f}; 0 is complete",
        )
    ]
    if len(sets):
        about = f"at most {sets.max():.2f}, by a greedy search among them"
        figures.append(SummaryRow("incompleteness, sets of nodes", float(sets.mean()), n, about))
    least = int(knockouts.minimality.argmin())
    value, node = float(knockouts.minimality[least]), knockouts.nodes[least]
    return [*figures, SummaryRow("minimality, least of a node", value, n, node)]


def _reliability(question: Question, evidence: Evidence) -> list[SummaryRow]:
    """How stable the scores are under resampling, and how they agree with exact patching."""
    circuit, scores, exact = evidence.circuit, evidence.scores, evidence.exact
    figures, n = [], len(question.search)
    if scores.replicates is not None:
        mean, *ends = scores.stability(circuit.n_edges, question.choices.rank)
        about = f"Jaccard of the first {circuit.n_edges} edges"
        figures.append(SummaryRow("edge overlap under resampling", mean, n, about, *ends))
    if exact is not None:
        drawn = np.where(exact.drawn, exact.scores.values, np.nan)
        rho, edges = agreement(scores.values, drawn)
        about = f"Spearman over {edges} edges drawn at random"
        figures.append(SummaryRow("rank correlation with exact patching", rho, n, about))
    return figures
