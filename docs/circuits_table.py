"""Write the tables of docs/circuits.md: how well each method finds the circuits that are known.

    python -m docs.circuits_table

Every method scores every edge of the hand-made models of `benchmarks.known_circuits`. Takes
seconds;
the same numbers on every machine, but for a last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from benchmarks.known_circuits import KNOWN, KnownCircuit
from docs.markers import put, table

from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.contributions import contribution_sites, contributions
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import Method, attribute_edges
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.graph import Circuit, Graph
from casestudy.measure.patching import Direction
from casestudy.model.decoder import run

PAGE = Path(__file__).with_name("circuits.md")
DRAWS = 1000
SEEDS = range(3)
"""Of prompts and bystanders; the tables hold means over them."""

Scores = EdgeScores | Mapping[str, float]
"""Of every edge of a model."""


def activity(known: KnownCircuit) -> dict[str, float]:
    """No method: by how much each sender's output differs between the runs, wherever it leads."""
    model, graph = known.model, Graph(known.model.config)
    keep = contribution_sites(model, graph)
    clean, corrupted = (
        contributions(model, graph, run(model, tokens, keep=keep))
        for tokens in (known.pairs.clean, known.pairs.corrupted)
    )
    change = (clean - corrupted) * known.pairs.clean.mask[:, None, :, None]
    size = change.square().sum((2, 3)).sqrt().mean(0).tolist()
    by_sender = dict(zip(map(str, graph.senders), size, strict=True))
    return {name: by_sender[name.split("->")[0]] for name in graph.names()}


def exact(direction: Direction) -> Callable[[KnownCircuit], EdgeScores]:
    """Every edge exchanged on its own."""
    return lambda known: patch_edges(known.model, known.pairs, known.contrast, direction=direction)


def by_gradients(method: Method, direction: Direction) -> Callable[[KnownCircuit], Scores]:
    """Every edge estimated."""
    return lambda known: attribute_edges(
        known.model, known.pairs, known.contrast, method, direction=direction
    )


METHODS: dict[str, Callable[[KnownCircuit], Scores]] = {
    "activity": activity,
    "exact noising": exact("noising"),
    "exact denoising": exact("denoising"),
    "EAP, clean": by_gradients("eap", "noising"),
    "EAP, corrupted": by_gradients("eap", "denoising"),
    "EAP-IG inputs": by_gradients("eap-ig-inputs", "noising"),
    "EAP-IG activations": by_gradients("eap-ig-activations", "noising"),
    "RelP, clean": by_gradients("relp", "noising"),
    "RelP, corrupted": by_gradients("relp", "denoising"),
    "RelP-AH, clean": by_gradients("relp-ah", "noising"),
}


def chance(known: KnownCircuit) -> float:
    """What one random ranking in forty reaches."""
    n, k = len(Graph(known.model.config).names()), len(known.edges)
    ranks = np.random.default_rng(0).random((DRAWS, n)).argsort(1).argsort(1)[:, :k]
    return float(np.quantile((ranks.sum(1) - k * (k - 1) / 2) / (k * (n - k)), 0.975))


def grades(known: KnownCircuit, scores: Scores) -> tuple[float, float, float, float]:
    """AUROC by size, how many edges are found, AUROC by sign, faithfulness of as many first."""
    kept = float("nan")
    if isinstance(scores, EdgeScores):
        kept = faithfulness(known, scores.graph.top(scores.values, len(known.edges)))
    return known.auroc(scores), known.found(scores), known.auroc(scores, signed=True), kept


def faithfulness(known: KnownCircuit, circuit: Circuit) -> float:
    """How much of the behaviour is left with all other edges corrupted."""
    found = evaluate_circuit(known.model, known.pairs, known.contrast, [circuit])
    return float(found.faithfulness[0])


def row(make: Callable[..., KnownCircuit], methods: Iterable[str] = METHODS) -> list[list[float]]:
    """What some methods reach on a circuit, by method: the mean over seeds of its grades."""
    drawn = [make(seed=seed) for seed in SEEDS]
    each = [[grades(known, METHODS[method](known)) for known in drawn] for method in methods]
    means: list[list[float]] = np.array(each).mean(1).tolist()
    return means


def tables() -> str:
    """The page's three tables: by size, by sign, and what the first edges carry."""
    by_size, by_sign, kept = [], [], []
    for make in KNOWN.values():
        drawn = [make(seed=seed) for seed in SEEDS]
        start = [drawn[0].name, str(len(drawn[0].edges)), f"{chance(drawn[0]):.2f}"]
        true = np.mean([faithfulness(k, Graph(k.model.config).circuit(k.edges)) for k in drawn])
        activity, *means = row(make)
        size = [f"{size:.2f} ({found:.1f})" for size, found, *_ in (activity, *means)]
        by_size.append([*start, *size])
        by_sign.append([*start, *(f"{sign:.2f}" for _, _, sign, _ in means)])
        # adding zero takes the sign off a zero
        left = [f"{round(share, 2) + 0.0:.2f}" for share in (float(true), *(m[-1] for m in means))]
        kept.append([*start[:2], *left])
    _, *names = METHODS
    return (
        "By size:\n\n"
        + table(["circuit", "edges", "chance", *METHODS], by_size)
        + "\nBy sign:\n\n"
        + table(["circuit", "edges", "chance", *names], by_sign)
        + "\nFaithfulness of as many first edges, by size:\n\n"
        + table(["circuit", "edges", "the circuit", *names], kept)
    )


def main() -> None:
    """Put the tables into the page."""
    put(PAGE, "tables", tables())


if __name__ == "__main__":
    main()
