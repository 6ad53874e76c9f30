"""Circuits of answers of several tokens: every reading is that of the text which ends there.

A causal decoder never looks right. So a circuit's value for two answers is the weighted sum of its
values on the texts cut at each place that is read, which are pairs of single tokens; the scores and
the exact effects of edges add up in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from casestudy.behaviour.prompts import Prompt
from casestudy.behaviour.steps import Scoring
from casestudy.circuits.card import circuit_card
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import METHODS, Method, attribute_edges
from casestudy.circuits.evaluate import EdgeAblation, evaluate_circuit
from casestudy.circuits.evidence import Choices
from casestudy.circuits.graph import Circuit, Graph
from casestudy.circuits.paths import path_patch
from casestudy.engine.packing import Budget
from casestudy.engine.reading import Readings
from casestudy.engine.readout import Tails
from casestudy.errors import MeasureError
from casestudy.measure.answer_texts import metric_of, with_answers
from casestudy.measure.attribution_patching import attribute_nodes
from casestudy.measure.pairs import Pairs, Texts
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from tests.circuits.test_edge_scores import world
from tests.measure.test_whole_answers import by_ids
from tests.measure.worlds import decoder

CLEAN = ((3, 1, 4, 1, 5), (2, 7, 1), (9, 9, 2, 6))
CORRUPTED = ((3, 2, 4, 8, 5), (2, 4, 1), (9, 3, 2, 5))
ANSWERS = (((2, 7, 1), (8, 2)), ((6, 2), (6, 2, 5)), ((4,), (1,)))
SINGLE = (((2,), (8,)), ((6,), (5,)), ((4,), (1,)))


def both(model: Model, answers: Any = ANSWERS, scoring: Scoring = "sum") -> tuple[Pairs, Readings]:
    prompts = [
        Prompt("", by_ids(*a), by_ids(*b), ids=row)
        for row, (a, b) in zip(CLEAN, answers, strict=True)
    ]
    readings = Readings.of(model, tuple(prompts), scoring)
    pairs = Pairs(Tokens.of(list(map(list, CLEAN))), Tokens.of(list(map(list, CORRUPTED))))
    return pairs, readings


def log_p(sign: float, id: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, _: sign * logits.double().log_softmax(-1)[:, id]


def cut(readings: Readings) -> Iterator[tuple[int, float, Pairs, Any]]:
    """Each reading's pair, weight, its texts cut there, and a metric of the next token alone."""
    for i, step in zip(readings.prompts, readings.steps, strict=True):
        pairs = Pairs(
            Tokens.of([[*CLEAN[i], *step.before]]), Tokens.of([[*CORRUPTED[i], *step.before]])
        )
        parts = [(1.0, step.answer), (-1.0, step.counterpart)]
        metrics = [log_p(sign, id) for sign, id in parts if id is not None]

        def metric(logits: Tensor, rows: Tensor, metrics: Any = metrics) -> Tensor:
            return torch.stack([one(logits, rows) for one in metrics]).sum(0)

        yield i, step.weight, pairs, metric


def some_circuits(graph: Graph) -> list[Circuit]:
    rng = np.random.default_rng(0)
    kept = [Circuit(graph, graph.real & (rng.random(graph.real.shape) < p)) for p in (0.3, 0.8)]
    return [*kept, graph.full.without([3]), graph.full, graph.empty]  # the third by its nodes


@pytest.mark.parametrize(
    ("variant", "ablation", "scoring"),
    [
        ("gpt2", "corrupted", "mean"),
        ("gpt2", "zero", "sum"),
        ("llama", "corrupted", "sum"),
        ("gemma2", "corrupted", "sum"),
    ],
)
def test_a_circuits_value_is_the_sum_of_its_readings(
    variant: str, ablation: EdgeAblation, scoring: Scoring
) -> None:
    model = world(variant)
    pairs, readings = both(model, scoring=scoring)
    circuits = some_circuits(Graph(model.config))
    found = evaluate_circuit(
        model,
        with_answers(pairs, readings),
        metric_of(readings),
        circuits,
        ablation=ablation,
        budget=Budget(check=12),
    )
    expected = np.zeros((len(circuits), len(CLEAN)))
    for i, weight, one, metric in cut(readings):
        alone = evaluate_circuit(model, one, metric, circuits, ablation=ablation)
        expected[:, i] += weight * alone.values[:, 0]
    np.testing.assert_allclose(found.values, expected, atol=1e-9)
    assert found.error["gap"] < 1e-8, "as full forward passes with every input edited"
    np.testing.assert_allclose(found.full, readings.values(), atol=1e-9)
    np.testing.assert_allclose(found.faithfulness[-2:], [1, 0], atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_edges_add_up_over_readings(method: Method) -> None:
    model = decoder("llama")
    pairs, readings = both(model)
    signs = [[1, -1, 1]]
    texts = with_answers(pairs, readings)
    found = attribute_edges(model, texts, metric_of(readings), method, steps=2, signs=signs)
    expected, flipped = (np.zeros_like(found.values) for _ in range(2))
    for i, weight, one, metric in cut(readings):
        alone = attribute_edges(model, one, metric, method, steps=2).values
        expected += weight * alone / len(CLEAN)
        flipped += weight * signs[0][i] * alone / len(CLEAN)
    assert found.n == len(CLEAN)
    np.testing.assert_allclose(found.values, expected, atol=1e-9)
    assert found.flipped is not None
    np.testing.assert_allclose(found.flipped[0], np.nan_to_num(flipped), atol=1e-5)
    np.testing.assert_allclose(found.clean, readings.values(), atol=1e-9)


@pytest.mark.parametrize("variant", ["gpt2", "olmo2"])
def test_exact_edges_add_up_over_readings(variant: str) -> None:
    model = world(variant)
    pairs, readings = both(model)
    edges = [name for name in Graph(model.config).names() if "logits" in name or "head 1.0" in name]
    texts = with_answers(pairs, readings)
    budget = Budget(check=50)
    found = patch_edges(model, texts, metric_of(readings), edges, budget=budget)
    expected = np.zeros_like(found.values)
    for _, weight, one, metric in cut(readings):
        alone = patch_edges(model, one, metric, edges)
        expected += weight * alone.values / len(CLEAN)
    np.testing.assert_allclose(found.values, expected, atol=1e-9)
    np.testing.assert_allclose(found.clean, readings.values(), atol=1e-9)


def test_scores_of_nodes_add_up_over_readings() -> None:
    model = decoder("gpt2")
    pairs, readings = both(model)
    texts = with_answers(pairs, readings)
    found = attribute_nodes(model, texts, metric_of(readings), "z", method="atp")
    expected = np.zeros_like(found.values)
    for i, weight, one, metric in cut(readings):
        alone = attribute_nodes(model, one, metric, "z", method="atp")
        expected[..., i] += weight * alone.values[..., 0]
    np.testing.assert_allclose(found.values, expected, atol=1e-9)
    with pytest.raises(MeasureError, match="last token"):
        attribute_nodes(model, texts, metric_of(readings), "z", by="last")


def test_answers_of_one_token_are_bit_for_bit_as_before() -> None:
    model = decoder("gpt2", dtype=torch.float32)
    pairs, readings = both(model, SINGLE)
    texts, metric = with_answers(pairs, readings), metric_of(readings)
    circuits, edges = some_circuits(Graph(model.config)), ["head 0.1->logits", "mlp 0->mlp 1"]
    for measure in (
        lambda pairs: evaluate_circuit(model, pairs, metric, circuits).values,
        lambda pairs: attribute_edges(model, pairs, metric, steps=2).values,
        lambda pairs: patch_edges(model, pairs, metric, edges).values,
    ):
        np.testing.assert_array_equal(measure(texts), measure(pairs))


def test_a_card_counts_pairs_and_not_their_texts() -> None:
    model = decoder("gpt2", n_layers=1)
    pairs, readings = both(model)
    choices = Choices(method="eap", exact_edges=0, random_circuits=1, faithful=0.5)
    card = circuit_card(model, with_answers(pairs, readings), metric_of(readings), choices)
    assert card.about["n_found_on"] == card.about["n_judged_on"] == len(CLEAN)
    assert card.about["unit"] == "nats"
    assert card.scores.clean == pytest.approx(readings.values())


# Bad input.


def test_texts_belong_to_pairs() -> None:
    model = decoder("gpt2")
    pairs, readings = both(model)
    texts = with_answers(pairs, readings)
    assert len(texts) == len(CLEAN)
    one, other = texts[[2, 0]], with_answers(*both(model))
    assert one.clean.rows() == [other.clean.rows()[-1], *other.clean.rows()[:2]]
    assert one.readings([0, 1]) == list(range(len(readings.steps) - len(readings.answers[1])))
    with pytest.raises(MeasureError, match="at least one text of each pair"):
        Texts((0, 2), Tails.ends(2))
    with pytest.raises(MeasureError, match="one each"):
        Pairs(pairs.clean, pairs.corrupted, texts=Texts((0, 1), Tails.ends(2)))
    with pytest.raises(MeasureError, match="a path of answers of several tokens"):
        path_patch(model, texts, metric_of(readings))
