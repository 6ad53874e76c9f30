"""Which methods find the circuits that are known, and do they fail where docs/circuits.md says?"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from benchmarks.known_circuits import KNOWN, KnownCircuit
from docs import circuits_table
from docs.markers import parts

from casestudy.behaviour.prompts import Prompt
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.evaluate import evaluate_circuit
from casestudy.circuits.graph import Graph
from tests.benchmarks.test_known_circuits import CANCELLING
from tests.measure import by_hand

pytestmark = pytest.mark.slow

NOISING, DENOISING = "exact noising", "exact denoising"
AT_CLEAN, AT_CORRUPTED = "EAP, clean", "EAP, corrupted"
INPUTS, ACTIVATIONS = "EAP-IG inputs", "EAP-IG activations"
RELP, RELP_CORRUPTED, RELP_AH = "RelP, clean", "RelP, corrupted", "RelP-AH, clean"
METHODS = (NOISING, DENOISING, AT_CLEAN, AT_CORRUPTED, INPUTS, ACTIVATIONS)
METHODS = (*METHODS, RELP, RELP_CORRUPTED, RELP_AH)
# Each edge matters on its own, and no other does.
PLAIN = ("induction_pair", "capital_after_full_stop", "linear_model", "decoy_head")
PLAIN = (*PLAIN, "threshold_decoy", "and_gate")


@cache
def circuit(name: str) -> KnownCircuit:
    return KNOWN[name](6)


@cache
def scores(name: str, method: str) -> EdgeScores:
    found = circuits_table.METHODS[method](circuit(name))
    assert isinstance(found, EdgeScores)
    return found


def whole(name: str) -> float:
    found = scores(name, AT_CLEAN)
    return float((found.clean - found.corrupted).mean())


@pytest.mark.parametrize("name", ["induction_pair", "backup_head", "and_gate"])
def test_known_circuit_exact_edges_are_those_of_the_plain_graph(name: str) -> None:
    by_edge = by_hand.effects(circuit(name))
    exact = scores(name, NOISING)
    for edge, effect in by_edge.items():
        assert exact[edge] == pytest.approx(-effect, abs=1e-9), edge


def test_known_circuit_exact_edges_are_those_of_the_plain_graph_denoising_too() -> None:
    by_edge = by_hand.effects(circuit("or_gate"), noising=False)
    exact = scores("or_gate", DENOISING)
    for edge, effect in by_edge.items():
        assert exact[edge] == pytest.approx(effect, abs=1e-9), edge


@pytest.mark.parametrize("name", PLAIN)
def test_known_circuit_is_found_by_exact_noising(name: str) -> None:
    known = circuit(name)
    assert known.edges == known.necessary
    assert known.auroc(scores(name, NOISING)) == 1.0
    assert known.auroc(scores(name, NOISING), signed=True) == 1.0
    assert known.found(scores(name, NOISING)) == len(known.edges)


@pytest.mark.parametrize("method", METHODS[1:])
def test_known_circuit_linear_model_needs_no_exact_patching(method: str) -> None:
    exact, estimate = scores("linear_model", NOISING), scores("linear_model", method)
    for edge in exact.graph.names():
        assert estimate[edge] == pytest.approx(exact[edge], abs=1e-9), edge


def test_known_circuit_linear_model_embeddings_account_for_all() -> None:
    found = scores("linear_model", INPUTS)
    assert found.nodes[0] == pytest.approx(whole("linear_model"), abs=1e-9)


def test_known_circuit_decoy_misleads_whoever_looks_at_activity() -> None:
    known = circuit("decoy_head")
    by_activity = circuits_table.activity(known)
    assert by_activity["head 0.1->logits"] > 2.9 * by_activity["head 0.0->mlp 1"]
    assert known.found(by_activity) < 2
    for method in (NOISING, AT_CLEAN, AT_CORRUPTED, INPUTS):
        assert known.found(scores("decoy_head", method)) == 3, method


def test_known_circuit_threshold_decoy_misleads_the_slope_at_the_clean_prompt() -> None:
    known = circuit("threshold_decoy")
    slope = scores("threshold_decoy", AT_CLEAN)
    first = slope.graph.top(slope.values, 2).edges
    assert set(first) == {"embed->head 0.1<v>", "head 0.1->mlp 1"}
    assert known.found(slope) == 1
    for method in (AT_CORRUPTED, INPUTS):
        assert known.found(scores("threshold_decoy", method)) == 3, method


@pytest.mark.parametrize("name", ["capital_after_full_stop", "induction_pair"])
def test_known_circuit_relevance_is_the_gradient_without_norms_and_with_relu(name: str) -> None:
    for relevance, slope in ((RELP, AT_CLEAN), (RELP_CORRUPTED, AT_CORRUPTED)):
        np.testing.assert_allclose(
            scores(name, relevance).values, scores(name, slope).values, atol=1e-9
        )
    frozen = scores(name, RELP_AH)
    into = [edge for edge in frozen.graph.names() if edge.endswith(("<q>", "<k>"))]
    assert into
    assert {frozen[edge] for edge in into} == {0.0}


LOOKING = ("embed->head 0.0<v>", "embed->head 1.0<q>", "head 0.0->head 1.0<k>")


def test_known_circuit_induction_pair_is_flat_at_either_prompt() -> None:
    exact = scores("induction_pair", NOISING)
    for edge in LOOKING:
        assert exact[edge] > 3
        for method in (AT_CLEAN, AT_CORRUPTED):
            assert abs(scores("induction_pair", method)[edge]) < exact[edge] / 50, edge
        assert scores("induction_pair", INPUTS)[edge] > exact[edge] / 2, edge
    assert circuit("induction_pair").found(scores("induction_pair", AT_CLEAN)) < 4


def test_known_circuit_induction_pair_is_flat_between_prompts_that_look_alike() -> None:
    """Where both look at the same place, integration does not cross the slope either."""
    known = circuit("induction_pair")
    prompts = [
        Prompt("a b c d a", " b", " f", corrupted="e f g h e"),
        Prompt("i a b c a", " b", " e", corrupted="h d e f d"),
    ]
    alike = replace(known, behaviour=replace(known.behaviour, prompts=tuple(prompts)))
    exact, between = (circuits_table.METHODS[name](alike) for name in (NOISING, INPUTS))
    assert isinstance(exact, EdgeScores)
    assert isinstance(between, EdgeScores)
    for edge in LOOKING:
        assert exact[edge] > 3
        assert abs(between[edge]) < exact[edge] / 50


@pytest.mark.parametrize("name", ["capital_after_full_stop", "and_gate"])
def test_known_circuit_neuron_that_is_off_has_no_gradient(name: str) -> None:
    slope = scores(name, AT_CORRUPTED)
    assert slope["mlp 1->logits"] > whole(name) / 2
    for edge in circuit(name).edges - {"mlp 1->logits"}:
        assert abs(slope[edge]) < whole(name) / 50, edge


@pytest.mark.parametrize("method", METHODS)
def test_known_circuit_cancelling_heads_come_first_by_every_method(method: str) -> None:
    found = scores("cancelling_heads", method)
    assert set(found.graph.top(found.values, 4).edges) == CANCELLING
    assert circuit("cancelling_heads").found(found) == 0


def test_known_circuit_backup_is_out_of_reach_of_one_edge_at_a_time() -> None:
    known, size = circuit("backup_head"), whole("backup_head")
    for method in METHODS:
        assert abs(scores("backup_head", method)["head 1.0->logits"]) < size / 100, method
        assert known.auroc(scores("backup_head", method)) < 1, method
    exact = scores("backup_head", NOISING)
    for edge in (
        "embed->head 0.0<k>",
        "embed->head 0.0<v>",
        "embed->head 1.0<k>",
        "embed->head 1.0<v>",
    ):
        assert abs(exact[edge]) < size / 50, edge
    # corrupting the note lets both heads speak
    assert exact["head 0.0->head 1.0<q>"] < -0.9 * size
    assert exact.graph.order(exact.values, "signed")[-1] == exact.graph.order(exact.values)[0]
    assert scores("backup_head", AT_CLEAN)["embed->head 0.0<v>"] > 0.9 * size
    assert known.found(scores("backup_head", INPUTS)) == len(known.edges) - 1


def test_known_circuit_gates_are_half_seen_from_either_side() -> None:
    both, either = circuit("and_gate"), circuit("or_gate")
    assert both.auroc(scores("and_gate", NOISING)) == 1
    assert both.found(scores("and_gate", DENOISING)) == 1
    last = ("head 0.0->mlp 1", "head 0.1->mlp 1")
    for edge in last:
        assert abs(scores("or_gate", NOISING)[edge]) < whole("or_gate") / 50
        assert abs(scores("or_gate", AT_CLEAN)[edge]) < whole("or_gate") / 50
        assert scores("or_gate", DENOISING)[edge] > 0.9 * whole("or_gate")
        assert scores("or_gate", AT_CORRUPTED)[edge] > 0.9 * whole("or_gate")
    for direction in (NOISING, DENOISING):
        assert either.auroc(scores("or_gate", direction)) < 1
    for name, known in (("and_gate", both), ("or_gate", either)):
        assert known.auroc(scores(name, INPUTS)) == 1


@pytest.mark.parametrize("name", ["induction_pair", "threshold_decoy", "backup_head"])
def test_known_circuit_edge_ablation_is_the_plain_graphs(name: str) -> None:
    """Circuits whole, lacking an edge, and as a method cuts them, on every prompt."""
    known = circuit(name)
    graph = Graph(known.model.config)
    found = scores(name, AT_CLEAN)
    circuits = [graph.circuit(known.edges), graph.top(found.values, 40)]
    circuits += [graph.circuit(known.edges - {edge}) for edge in sorted(known.edges)]
    evaluated = evaluate_circuit(known.model, known.pairs, known.contrast, circuits)
    theirs, _, _ = by_hand.forward(known.model, known.pairs.corrupted.ids)
    for part, values in zip(circuits, evaluated.values, strict=True):
        out = set(graph.names()) - set(part.edges)
        carried = {edge: theirs[edge.split("->")[0]] for edge in out}
        _, _, logits = by_hand.forward(known.model, known.pairs.clean.ids, carried)
        by_edge = by_hand.difference(known, logits).tolist()
        assert values.tolist() == pytest.approx(by_edge, abs=1e-9), part
    assert evaluated.faithfulness[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("name", "method", "left"),
    [
        ("induction_pair", AT_CLEAN, (0.4, 0.6)),
        ("threshold_decoy", AT_CLEAN, (-0.1, 0.1)),
        ("cancelling_heads", NOISING, (1.4, 1.6)),
        ("and_gate", DENOISING, (-0.1, 0.1)),
        ("or_gate", NOISING, (-0.1, 0.1)),
    ],
)
def test_known_circuit_first_edges_fail_as_a_whole_where_the_method_fails(
    name: str, method: str, left: tuple[float, float]
) -> None:
    known, found = circuit(name), scores(name, method)
    first = found.graph.top(found.values, len(known.edges))
    assert left[0] < circuits_table.faithfulness(known, first) < left[1]


# The page


@cache
def tables() -> list[list[list[str]]]:
    _, made, _ = parts(circuits_table.PAGE.read_text("utf-8"), "tables")
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in re.findall(r"(?:^\|.*\n)+", made, re.M)
    ]


def test_known_circuit_page_has_every_circuit_and_method() -> None:
    by_size, by_sign, kept = tables()
    assert by_size[0][3:] == list(circuits_table.METHODS)
    assert by_sign[0][3:] == kept[0][3:] == list(METHODS)
    for table in (by_size, by_sign, kept):
        assert [row[0] for row in table[2:]] == [circuit(name).name for name in KNOWN]


QUICK = ("activity", AT_CLEAN, AT_CORRUPTED, INPUTS)


@pytest.mark.parametrize(
    ("names", "methods"),
    [
        (("backup_head",), QUICK),
        pytest.param(tuple(KNOWN), tuple(circuits_table.METHODS), marks=pytest.mark.large),
    ],
    ids=["some", "all"],
)
def test_known_circuit_page_is_fresh(names: tuple[str, ...], methods: tuple[str, ...]) -> None:
    """A last digit may differ between machines; beyond that `make circuits-table` is due."""
    by_size, by_sign, kept = tables()
    for name in names:
        place = 2 + list(KNOWN).index(name)
        for method, now in zip(methods, circuits_table.row(KNOWN[name], methods), strict=True):
            size, found = re.findall(r"[\d.]+", by_size[place][by_size[0].index(method)])
            assert float(size) == pytest.approx(now[0], abs=0.011), (name, method)
            assert float(found) == pytest.approx(now[1], abs=0.06), (name, method)
            if method == "activity":
                continue
            for table, value in ((by_sign, now[2]), (kept, now[3])):
                stored = float(table[place][table[0].index(method)])
                assert stored == pytest.approx(value, abs=0.011), (name, method)
