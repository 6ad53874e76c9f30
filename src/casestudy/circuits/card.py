"""A circuit with the evidence for and against it, as one value that can be saved.

The module `evidence` describes the evidence and its cost; `card_tables` makes its tables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.card_tables import MetricRead, card_tables, headline, metric_means
from casestudy.circuits.evidence import Choices, Evidence, Question, gather, writing_up
from casestudy.circuits.graph import Circuit, Graph, Scores
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError
from casestudy.measure.halves import Half
from casestudy.measure.metrics import name_and_unit
from casestudy.measure.patching import Pairs
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.files import write_atomically
from casestudy.results.result import Result, Shown, Table

CARD = 1
"""Version of the card's format."""


@dataclass(frozen=True)
class Card(Shown):
    """A circuit with its evidence.

    Attributes:
        circuit: the smallest circuit with the required faithfulness on the search pairs.
        scores: of every edge.
        results: the evidence as grids and tables, `circuit.*`.
        model_name, model_hash: of the model.
        about: the prompts, the metric and the settings of the search.
    """

    circuit: Circuit
    scores: EdgeScores
    results: tuple[Result, ...]
    model_name: str
    model_hash: str
    about: dict[str, Any]

    def __getitem__(self, name: str) -> Result:
        """A grid or table of the evidence by name.

        Raises: MeasureError listing the existing names.
        """
        for result in self.results:
            if result.name == name:
                return result
        known = ", ".join(result.name for result in self.results)
        raise MeasureError(f"the card has no {name!r}", allowed=known)

    @property
    def shown(self) -> Result:
        """The curves with their controls."""
        return self[names.CIRCUIT_FAITHFULNESS]

    def summary(self) -> dict[str, dict[str, Any]]:
        """The figures of `circuit.summary` by name."""
        table = self[names.CIRCUIT_SUMMARY]
        assert isinstance(table, Table)
        return {row["figure"]: row for row in table.rows()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the circuit, its scores and its figures as JSON, completely or not at all.

        Raises: StudyError when the disk is full or the folder cannot be written.
        """
        graph = self.circuit.graph
        names = graph.names()
        scores = [None if np.isnan(v) else float(v) for v in self.scores.values[graph.real]]
        data = {
            "card": CARD,
            "model": {"name": self.model_name, "weight_hash": self.model_hash},
            "about": self.about,
            "neurons": {str(layer): list(chosen) for layer, chosen in graph.neurons.items()},
            "circuit": self.circuit.edges,
            "scores": dict(zip(names, scores, strict=True)),
            "summary": self.summary(),
        }
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
        write_atomically(Path(path), text.encode("utf-8"))


def read_card(path: str | os.PathLike[str], model: Model) -> tuple[Circuit, Scores]:
    """A saved card's circuit and scores.

    Raises: MeasureError for a file that is not a card, or of another model; SiteError for edges
    the model does not have.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        version, theirs = data["card"], data["model"]["weight_hash"]
        names, edges, neurons = data["scores"], data["circuit"], data["neurons"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise MeasureError(f"{path} is no circuit card: {problem}") from problem
    if version != CARD:
        raise MeasureError(f"{path} is a card of form {version}", allowed=str(CARD))
    if theirs != model.weight_hash:
        raise MeasureError(
            f"{path} is a circuit of {data['model'].get('name')}, weights {theirs[:12]}",
            allowed=f"{model.name}'s, weights {model.weight_hash[:12]}",
            hint="Load the model it was found in, or find the circuit again",
        )
    graph = Graph(model.config, {int(layer): tuple(some) for layer, some in neurons.items()})
    scores = np.full(graph.real.shape, np.nan)
    for name, value in names.items():
        scores[graph.edge(name)] = np.nan if value is None else float(value)
    return graph.circuit(edges), scores


def circuit_card(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    choices: Choices | None = None,
    *,
    graph: Graph | None = None,
    documents: Sequence[str] | None = None,
    unit: str | None = None,
    budget: Budget = DEFAULT_BUDGET,
    known: Mapping[str, Any] | None = None,
    keep: Callable[[str, Any], None] | None = None,
    progress: Tell | None = None,
) -> Card:
    """Find a circuit and gather the evidence for and against it.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length.
        contrast: a contrast, or a function of the last token's logits with a gradient.
        choices: the settings of the search; see `Choices`.
        graph: by default the model's own.
        documents: per prompt, its document; the prompts of one document are on one side of the
            split, and are resampled together.
        unit: of a metric without a unit of its own (see `NamedMetric`).
        budget: memory, and the size of the checks.
        known: values of earlier steps; see `gather`.
        keep: called with each step's name and value, to store them.
        progress: called when a step begins.

    Raises: as `attribute_edges` and `evaluate_circuit`; MeasureError if no circuit is faithful
        enough.
    """
    choices = Choices() if choices is None else choices
    everything = Half(pairs, contrast, None if documents is None else tuple(documents))
    question = Question.of(model, everything, choices, graph=graph, budget=budget)
    evidence = gather(question, known, keep=keep, progress=progress)
    if progress is not None:
        progress(writing_up())
    return write_card(question, evidence, unit)


def write_card(question: Question, evidence: Evidence, unit: str | None = None) -> Card:
    """Make the card from the evidence.

    Args:
        question: of the evidence.
        evidence: every step's value.
        unit: of a metric without a unit of its own.
    """
    name, own_unit = name_and_unit(question.search.metric)
    read = MetricRead(name, unit or own_unit, *metric_means(question, evidence))
    about = {
        **question.choices.__dict__,
        "n_found_on": len(question.search),
        "n_judged_on": len(question.judge),
        "held_out": question.held_out,
        **read.about,
        "n_edges": question.graph.n_edges,
        "nodes_knocked_out": len(evidence.knockouts.nodes),
        "knockout_evaluations": evidence.knockouts.evaluations,
        "plan": evidence.plan.about,
        **headline(question, evidence),
    }
    results = card_tables(question, evidence, read)
    name, weights = question.model.name, question.model.weight_hash
    return Card(evidence.circuit, evidence.scores, results, name, weights, about)
