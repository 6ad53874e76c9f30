"""Is a circuit complete, and does it need every node?

A node is knocked out by ablating all of its edges. Completeness: without any set K of its nodes, a
circuit should do what the model does without K; tried are every single node, random halves of the
nodes, and a greedy search for the worst K. Minimality: knocking out a node should change the
circuit's faithfulness, alone or on top of some K.

Assumes pairs of equal length that differ. Cost: two circuit evaluations per set.
Source: Wang et al. 2022, sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.evaluate import Ablation, evaluate_circuit
from casestudy.circuits.graph import Circuit, Mask
from casestudy.engine.packing import DEFAULT_BUDGET, Budget
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError
from casestudy.measure.patching import Pairs
from casestudy.model.model import Model

Array = NDArray[np.float64]

Faithfulness = Callable[[list[Circuit], list[Circuit]], Array]
"""Of two lists of as many circuits, (list, circuit), in one evaluation of what they share."""

_MINIMALITY_SETS = 5
"""Random sets on top of which each node is knocked out."""


@dataclass(frozen=True)
class Knockouts:
    """What happens when nodes of a circuit are knocked out.

    Attributes:
        nodes: the circuit's, the embeddings not counted.
        sets: (set, node) which were knocked out: none, then each alone, then random halves, then
            the sets of the greedy search.
        circuit: (set,) faithfulness of the circuit without the set.
        model: (set,) faithfulness of the whole model without the set.
        minimality: (node,) the largest change in faithfulness that knocking out the node made,
            alone or on top of one of the random sets.
    """

    nodes: tuple[str, ...]
    sets: Mask
    circuit: Array
    model: Array
    minimality: Array

    @property
    def incompleteness(self) -> Array:
        """(set,) the difference between circuit and model without the set, in units of the whole
        difference: 0 for a complete circuit."""
        return np.abs(self.circuit - self.model)


def knock_out(
    model: Model,
    pairs: Pairs,
    metric: Contrast | Metric,
    circuit: Circuit,
    *,
    random_sets: int = 20,
    greedy_steps: int = 3,
    ablation: Ablation = "corrupted",
    budget: Budget = DEFAULT_BUDGET,
) -> Knockouts:
    """Completeness and minimality of a circuit (Wang et al. 2022, sections 4.1 and 4.2).

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length.
        metric: a contrast, or a function of the last token's logits.
        circuit: pruned first.
        random_sets: how many random halves of the nodes.
        greedy_steps: how many nodes the greedy search adds at most.
        ablation: what ablated edges carry.
        budget: memory, seed of the random sets.

    Raises: MeasureError for a circuit of no nodes; as `evaluate_circuit`.
    """
    circuit = circuit.pruned()
    nodes = [circuit.graph.node(name) for name in circuit.nodes if name != "embed"]
    if not nodes:
        raise MeasureError("a circuit with no node but the embeddings", allowed="at least one node")

    def faithfulness(one: list[Circuit], other: list[Circuit]) -> Array:
        circuits = [*one, *other]
        return evaluate_circuit(
            model, pairs, metric, circuits, ablation=ablation, budget=budget.checking(2)
        ).faithfulness.reshape(2, -1)

    n = len(nodes)
    halves = np.random.default_rng(budget.seed).random((random_sets, n)) < 0.5
    alone = np.eye(n, dtype=bool)
    sets = np.concatenate([np.zeros((1, n), dtype=bool), alone, halves])
    of_both = partial(_circuit_and_model, circuit, nodes, faithfulness)
    values = of_both(sets)
    minimality = np.abs(values[0, 1 : n + 1] - values[0, 0])
    worst = _worst_sets(of_both, n, greedy_steps)
    sets = np.concatenate([sets, *(chosen[None] for chosen, _ in worst)])
    values = np.concatenate([values, *(pair[:, None] for _, pair in worst)], 1)
    if len(tops := halves[:_MINIMALITY_SETS]):
        on_top = _minimality_on_top(circuit, nodes, faithfulness, tops)
        minimality = np.maximum(minimality, on_top)
    names = tuple(circuit.graph.senders[i].node for i in nodes)
    return Knockouts(names, sets, values[0], values[1], minimality)


def _without(circuit: Circuit, nodes: list[int], sets: Mask) -> list[Circuit]:
    """The circuit without each set of its nodes."""
    return [circuit.without([nodes[i] for i in np.flatnonzero(row)]) for row in sets]


def _circuit_and_model(
    circuit: Circuit, nodes: list[int], faithfulness: Faithfulness, sets: Mask
) -> Array:
    """(circuit or model, set) faithfulness without each set."""
    full = circuit.graph.full
    return faithfulness(_without(circuit, nodes, sets), _without(full, nodes, sets))


def _worst_sets(
    of_both: Callable[[Mask], Array], n: int, greedy_steps: int
) -> list[tuple[Mask, Array]]:
    """Sets that grow by the node which parts circuit and model the most, while the gap grows, each
    with its two values."""
    found: list[tuple[Mask, Array]] = []
    worst, gap = np.zeros(n, dtype=bool), -1.0
    for _ in range(min(greedy_steps, n)):
        tries = worst | np.eye(n, dtype=bool)[~worst]
        values = of_both(tries)
        gaps = np.abs(values[0] - values[1])
        best = int(gaps.argmax())
        if gaps[best] <= gap:
            break
        worst, gap = tries[best], float(gaps[best])
        found.append((worst, values[:, best]))
    return found


def _minimality_on_top(
    circuit: Circuit, nodes: list[int], faithfulness: Faithfulness, tops: Mask
) -> Array:
    """(node,) the largest change that knocking out a node makes where one of these sets is gone."""
    alone, sets = np.eye(len(nodes), dtype=bool), tops[:, None]  # set 1 node
    kept, gone = ((sets & ~alone).reshape(-1, len(nodes)), (sets | alone).reshape(-1, len(nodes)))
    values = faithfulness(_without(circuit, nodes, kept), _without(circuit, nodes, gone))
    return np.asarray(np.abs(values[0] - values[1]).reshape(-1, len(nodes)).max(0))
