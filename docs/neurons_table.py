"""Write the tables of docs/circuits.md on how few nodes carry a behaviour.

    python -m docs.neurons_table

On `tiny` and SmolLM2 (`make smollm2`), for three behaviours: the smallest circuits of heads and
neurons, and of edges between heads and MLPs, that are 85 % faithful on half of the pairs, and their
faithfulness on the other half; for one of them, the same by how the pairs are split. What is
measured is kept in docs/neurons.json; without it about three minutes for `tiny`, and twenty for
SmolLM2.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

from docs.markers import put, table
from docs.scores_table import BEHAVIOURS, MODELS, PAGE, half_of_behaviour, rounded

from casestudy.circuits.edge_scores import attribute_edges
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.evidence import Choices, Question, smallest_circuit
from casestudy.circuits.neuron_card import neuron_circuit
from casestudy.circuits.neuron_circuit import NeuronChoices, nodes_needed
from casestudy.measure.halves import Half
from casestudy.model.loading import load
from casestudy.model.model import Model

KEPT = Path(__file__).with_name("neurons.json")
PAIRS = {"tiny": 32, "smollm2": 16}
"""Pairs per behaviour, at most."""
HELD = "faithfulness on pairs held out"
CONTROLS = {
    "random neurons": "faithfulness, random neurons in the same layers",
    "random nodes": "faithfulness, random nodes in the same layers",
}


def neurons_needed(model: Model, half: Half) -> dict[str, Any]:
    """How many heads and neurons, and what they and random ones carry."""
    start = perf_counter()
    card = neuron_circuit(model, half.pairs, half.metric, documents=half.documents)
    figures = card.summary()
    held = figures[HELD]
    circuit = card.circuit
    return {
        "neurons": [int(circuit.neurons.sum()), circuit.neurons.size],
        "heads": [int(circuit.heads.sum()), circuit.heads.size],
        "held out": [held[key] for key in ("value", "lower", "upper", "n")],
        **{
            name: [figures[figure][key] for key in ("value", "lower", "upper")]
            for name, figure in CONTROLS.items()
        },
        "zero ablation": figures[f"{HELD}, zero ablation"]["value"],
        "seconds": perf_counter() - start,
    }


SPLIT = ("smollm2", "agreement")
"""Whose size is looked for by several splits."""
SPLITS = ((16, 0), (16, 1), (16, 2), (32, 0))
"""Pairs and seeds."""
SIZES = (100, 300, 900)


def by_split(model: Model, behaviour: str) -> list[dict[str, Any]]:
    """The size that another split of the pairs gives, and the faithfulness of some sizes on its
    search pairs."""
    rows = []
    for most, seed in SPLITS:
        half = half_of_behaviour(model, behaviour, most)
        smallest, sizes = nodes_needed(model, half, NeuronChoices(seed=seed), SIZES)
        circuit, (_, judge) = smallest
        rows.append(
            {
                "pairs": len(half),
                "seed": seed,
                "neurons": int(circuit.neurons.sum()),
                "heads": int(circuit.heads.sum()),
                "held out": judge,
                "sizes": {str(n): found[0] for n, (_, found) in zip(SIZES, sizes, strict=True)},
            }
        )
    return rows


def split_table(rows: list[dict[str, Any]]) -> str:
    """A line per split."""
    head = ["pairs", "seed of the split", "neurons", "heads", "held out"]
    head += [f"first {n}, where looked for" for n in SIZES]
    body = [
        [
            *(str(row["pairs"]), str(row["seed"]), f"{row['neurons']:,}", str(row["heads"])),
            f"{row['held out']:.2f}",
            *(f"{row['sizes'][str(n)]:.2f}" for n in SIZES),
        ]
        for row in rows
    ]
    return table(head, body, named=2)


def edges_needed(model: Model, half: Half) -> dict[str, Any]:
    """How many edges between heads and MLPs, and what they carry."""
    start = perf_counter()
    question = Question.of(model, half, Choices())
    choices, search = question.choices, question.search
    scores = attribute_edges(
        *question.on(search),
        choices.method,
        direction="noising",
        graph=question.graph,
        steps=choices.steps,
    )
    circuit = smallest_circuit(question, scores)
    judged = evaluate_circuit(*question.on(question.judge), [circuit])
    ends = (float(x[0]) for x in judged.interval(question.judge.documents))
    return {
        "edges": [circuit.n_edges, question.graph.n_edges],
        "edges held out": [*ends, len(question.judge)],
        "edges seconds": perf_counter() - start,
    }


def made(kept: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The table."""
    head = ["model", "behaviour", "neurons", "heads", "held-out faithfulness"]
    head += ["random neurons", "random nodes", "edges", "their held-out faithfulness"]
    body = [
        [
            *(model, behaviour),
            *(_of(row[key]) for key in ("neurons", "heads")),
            _judged(row["held out"]),
            *(f"{row[key][0]:.2f} ({row[key][1]:.2f} to {row[key][2]:.2f})" for key in CONTROLS),
            _of(row["edges"]) if "edges" in row else "–",
            _judged(row["edges held out"]) if "edges" in row else "–",
        ]
        for model, rows in kept.items()
        for behaviour, row in rows.items()
    ]
    return table(head, body, named=2)


def _of(counts: list[int]) -> str:
    return f"{counts[0]:,} of {counts[1]:,}"


def _judged(ends: list[float | None]) -> str:
    """A mean, its interval if there is one, and n."""
    value, low, high, n = ends
    between = "" if low is None or high is None else f"{low:.2f} to {high:.2f}, "
    return f"{value:.2f} ({between}n = {n})"


def main() -> None:
    """Measure what is not kept yet, and put the table into the page."""
    kept: dict[str, dict[str, dict[str, Any]]] = {}
    if KEPT.exists():
        kept = json.loads(KEPT.read_text("utf-8"))
    for name in MODELS:
        rows = kept.setdefault(name, {})
        left = [b for b in BEHAVIOURS if "edges" not in rows.get(b, {})]
        model = load(name) if left else None
        for behaviour in left:
            assert model is not None
            half = half_of_behaviour(model, behaviour, PAIRS[name])
            for key, needed in (("neurons", neurons_needed), ("edges", edges_needed)):
                if key not in rows.setdefault(behaviour, {}):
                    rows[behaviour] |= rounded(needed(model, half))
                    KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    put(PAGE, "neurons", made(kept))
    model_name, behaviour = SPLIT
    row = kept[model_name][behaviour]
    if "splits" not in row:
        row["splits"] = rounded(by_split(load(model_name), behaviour))
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    put(PAGE, "splits", split_table(row["splits"]))


if __name__ == "__main__":
    main()
