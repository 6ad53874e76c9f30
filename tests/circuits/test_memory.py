"""Does evaluating circuits stay within its memory budget?"""

from __future__ import annotations

import numpy as np
import pytest

from casestudy.circuits.evaluate import EdgeAblation, evaluate_circuit
from casestudy.circuits.graph import Graph
from casestudy.circuits.knockouts import knock_out
from casestudy.engine.packing import Budget
from tests.circuits.test_edge_scores import pair_of, world
from tests.circuits.test_evaluate import random_circuits
from tests.live_bytes import LiveBytes
from tests.measure.worlds import contrast

pytestmark = pytest.mark.slow

MEMORY = 400_000
"""A few times what one prompt and one circuit take; all at once take several times more."""

LENGTHS = [6, 4, 7, 5] * 6


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_circuits_stay_within_the_budget(ablation: EdgeAblation) -> None:
    model, both = world("gpt2"), pair_of(LENGTHS)
    circuits = random_circuits(Graph(model.config), tuple(np.linspace(0.1, 0.9, 12)))
    values = contrast(len(LENGTHS))
    held = {}
    for memory in (MEMORY, 1 << 30):
        with LiveBytes() as tensors:
            budget = Budget(memory=memory, check=2)
            evaluate_circuit(model, both, values, circuits, ablation=ablation, budget=budget)
        held[memory] = tensors.peak
    assert held[MEMORY] <= MEMORY
    assert held[1 << 30] > 1.5 * MEMORY  # the budget was what bound it


def test_knock_outs_stay_within_the_budget() -> None:
    model, both = world("gpt2"), pair_of(LENGTHS)
    (circuit,) = random_circuits(Graph(model.config), (0.7,))
    values = contrast(len(LENGTHS))
    with LiveBytes() as tensors:
        budget = Budget(memory=MEMORY, check=2)
        few = {"most_nodes": 2, "random_sets": 2, "greedy_steps": 1}
        knock_out(model, both, values, circuit, budget=budget, **few)
    assert tensors.peak <= MEMORY
