"""A circuit of heads and neurons with its evidence, as tables that can be saved.

`neuron_circuit` describes the search and the evidence. Assumes nothing of its own; costs nothing
beyond it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.agreement import agreement
from casestudy.circuits.neuron_circuit import Ends, NeuronChoices, NeuronEvidence, gather_neurons
from casestudy.circuits.node_sets import NodeSet
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.readout import Metric
from casestudy.measure.metrics import name_and_unit
from casestudy.measure.pairs import Pairs
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.files import finite_only, write_atomically
from casestudy.results.result import Axis, Grid, Result, Shown, Table, measured

CARD = 1
"""Version of the card's format."""


@dataclass(frozen=True)
class NeuronCard(Shown):
    """A circuit of heads and neurons with its evidence.

    Attributes:
        circuit: its nodes.
        evidence: everything that was measured.
        results: the evidence as a grid and tables, `neuron_circuit.*`.
        about: the model, the metric and the settings of the search.
    """

    circuit: NodeSet
    evidence: NeuronEvidence
    results: tuple[Result, ...]
    about: dict[str, Any]

    @property
    def shown(self) -> Result:
        """The figures of the evidence."""
        return self.results[0]

    def __getitem__(self, name: str) -> Result:
        """A grid or table by name.

        Raises: KeyError.
        """
        return {result.name: result for result in self.results}[name]

    def summary(self) -> dict[str, dict[str, Any]]:
        """The figures of `neuron_circuit.summary` by name."""
        table = self.results[0]
        assert isinstance(table, Table)
        return {row["figure"]: row for row in table.rows()}

    def as_dict(self) -> dict[str, Any]:
        """Everything but the card's version, as plain data."""
        tables = {r.name.split(".")[-1]: r.rows() for r in self.results if isinstance(r, Table)}
        curve = self.results[1]
        assert isinstance(curve, Grid)
        points = zip(curve.axis("nodes").labels, curve.values.tolist(), strict=True)
        return {
            **self.about,
            "circuit": self.circuit.names,
            "curve": [{"nodes": int(n), "faithfulness": value} for n, value in points],
            "figures": tables.pop("summary"),
            **tables,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, completely or not at all.

        Raises: StudyError when the disk is full or the folder cannot be written.
        """
        data = finite_only({"card": CARD, **self.as_dict()})
        text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        write_atomically(Path(path), text.encode("utf-8"))


def neuron_circuit(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    choices: NeuronChoices | None = None,
    *,
    documents: Sequence[str] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> NeuronCard:
    """Find the heads and neurons that carry a behaviour, with the evidence for and against them.

    Args:
        model: the decoder, of any architecture.
        pairs: clean and corrupted prompts of equal length.
        contrast: a contrast, or a function of the last token's logits with a gradient.
        choices: the settings of the search; see `NeuronChoices`.
        documents: per prompt, its document; the prompts of one document are on one side of the
            split.
        budget: memory.
        progress: called when a step begins.

    Unit:   faithfulness is a share of the difference between the runs.
    Error:  none of faithfulness, which full forward passes give; scores and edges are estimates,
            and the table of nodes has exact effects beside scores.
    Raises: MeasureError as `attribute_nodes`, for a threshold that keeps no node or all of them,
            and for a metric that is the same in both runs.
    Source: Arora et al. 2026, arXiv 2601.22594.
    """
    choices = NeuronChoices() if choices is None else choices
    evidence = gather_neurons(
        model, pairs, contrast, choices, documents=documents, budget=budget, progress=progress
    )
    metric, unit = name_and_unit(contrast)
    about = {
        "model": model.name,
        "weight_hash": model.weight_hash,
        "metric_name": metric,
        "unit": unit,
        "mean_clean": evidence.difference[0],
        "mean_corrupted": evidence.difference[1],
        "held_out": evidence.held_out,
        "n_found_on": evidence.n[0],
        "n_judged_on": evidence.n[1],
        "settings": dict(choices.__dict__),
    }
    return NeuronCard(evidence.circuit, evidence, _results(evidence, choices, unit), about)


def _results(evidence: NeuronEvidence, choices: NeuronChoices, unit: str) -> tuple[Result, ...]:
    tables: list[Result] = [
        _summary(evidence),
        _curve(evidence, choices),
        _nodes(evidence, unit),
        _layers(evidence),
    ]
    if evidence.edges is not None:
        tables.append(evidence.edges.table(30, name=names.NEURON_CIRCUIT_EDGES))
    return tuple(tables)


def _summary(evidence: NeuronEvidence) -> Table:
    """A row per figure: value, ends of its interval, pairs, and what it is about."""
    rows: list[tuple[str, float | None, float | None, float | None, int, str]] = []
    circuit, (found_on, judged_on) = evidence.circuit, evidence.n

    def add(
        figure: str,
        value: float,
        ends: tuple[float, float] | None = None,
        n: int = judged_on,
        about: str = "",
    ) -> None:
        low, high = (None, None) if ends is None else map(measured, ends)
        rows.append((figure, measured(value), low, high, n, about))

    neurons, heads = circuit.neurons, circuit.heads
    add("neurons", float(neurons.sum()), n=found_on, about=f"of {neurons.size:,}")
    kept = "" if evidence.scores.ranked_heads else ", all kept"
    add("heads", float(heads.sum()), n=found_on, about=f"of {heads.size:,}{kept}")
    for name, value in evidence.faithfulness.items():
        add(f"faithfulness {name}", value.mean, (value.lower, value.upper), value.n)
    for name, values in evidence.controls.items():
        ends = float(values.min()), float(values.max())
        about = f"mean of {len(values)} circuits; the ends are the smallest and the largest"
        add(f"faithfulness, {name}", float(values.mean()), ends, about=about)
    chosen = "nodes" if evidence.scores.ranked_heads else "neurons"
    without = evidence.without
    figure = f"faithfulness of the model without the circuit's {chosen}"
    add(figure, without.mean, (without.lower, without.upper))
    apart = np.abs(evidence.completeness[:, 0] - evidence.completeness[:, 1])
    about = (
        f"mean of {len(apart)} halves knocked out of circuit and model; the ends are the extremes"
    )
    ends = float(apart.min()), float(apart.max())
    add("incompleteness, random halves", float(apart.mean()), ends, about=about)
    drops = np.array([effect.drop[0] for effect in evidence.effects if effect.drop is not None])
    if len(drops):
        ends = float(drops.min()), float(drops.max())
        about = f"median of {len(drops)} nodes; the ends are the extremes"
        add("faithfulness lost without one node", float(np.median(drops)), ends, about=about)
    tried = [(e.score, e.exact[0]) for e in evidence.effects if e.score is not None]
    rho, n = agreement(*np.array(tried).T)
    add("rank correlation of scores with exact effects", rho, n=found_on, about=f"{n} nodes")
    columns = dict(
        zip(
            ("figure", "value", "lower", "upper", "n", "about"),
            map(list, zip(*rows, strict=True)),
            strict=True,
        )
    )
    return Table(
        names.NEURON_CIRCUIT_SUMMARY,
        columns,
        "A row per figure of the evidence, with its 95 % interval over pairs where nothing "
        "else is said.",
    )


def _curve(evidence: NeuronEvidence, choices: NeuronChoices) -> Grid:
    mean, lower, upper = evidence.curve.interval(evidence.documents)
    where = "pairs held out" if evidence.held_out else "the pairs the scores are from"
    kept = "" if evidence.scores.ranked_heads else "; all heads are kept"
    return Grid(
        names.NEURON_CIRCUIT_CURVE,
        mean,
        (Axis("nodes", tuple(map(str, evidence.sizes))),),
        "share of the difference",
        lower,
        upper,
        np.full(len(mean), evidence.n[1]),
        about=f"Faithfulness on {where} of the first nodes by {choices.method} "
        f"({choices.rank} rank), the others {choices.ablation}{kept}. Exact.",
    )


def _nodes(evidence: NeuronEvidence, unit: str) -> Table:
    effects = [effect for effect in evidence.effects if effect.score is not None]
    rests = [effect for effect in evidence.effects if effect.score is None]
    rows = [*effects, *rests]
    inside = set(evidence.circuit.names)
    return Table(
        names.NEURON_CIRCUIT_NODES,
        {
            "node": [effect.node for effect in rows],
            "in_circuit": [effect.node in inside for effect in rows],
            "score": [effect.score for effect in rows],
            **_ends("exact", [effect.exact for effect in rows]),
            **_ends("faithfulness_lost", [effect.drop for effect in rows]),
            "drawn_at_random": [effect.drawn for effect in rows],
            "n": [evidence.n[0]] * len(rows),
        },
        f"The first nodes, nodes drawn at random, and the rest of each MLP: the estimated and the "
        f"exact effect ({unit}) of ablating it in the whole model, on the search pairs, and what "
        f"the circuit's faithfulness loses without it, on the {evidence.n[1]} judging pairs, with "
        "95 % intervals over pairs.",
    )


def _ends(name: str, rows: Sequence[Ends | None]) -> dict[str, list[float | None]]:
    """Three columns: means, and the ends of their intervals."""
    columns = (name, f"{name}_lower", f"{name}_upper")
    return {
        column: [None if row is None else measured(row[i]) for row in rows]
        for i, column in enumerate(columns)
    }


def _layers(evidence: NeuronEvidence) -> Table:
    circuit = evidence.circuit
    layers = range(len(circuit.neurons))
    return Table(
        names.NEURON_CIRCUIT_LAYERS,
        {
            "layer": list(layers),
            "heads": circuit.heads.sum(1).tolist(),
            "neurons": circuit.neurons.sum(1).tolist(),
        },
        "The circuit's heads and neurons in each layer.",
    )
