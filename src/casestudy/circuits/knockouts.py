"""Is a circuit complete, and does it need every node?

A node is knocked out by ablating all of its edges. Completeness: without any set K of its nodes, a
circuit should do what the model does without K. The sets are single nodes with the largest scores,
random halves of all nodes, and the result of a greedy search for the worst K among the single ones.
Minimality: knocking out a node should change the circuit's faithfulness, alone or together with K.

Assumes pairs of equal length that differ. Cost: two circuit evaluations per set, about 18 per node
tried (`MOST_NODES` at most) and 40 more, however large the circuit.
Source: Wang et al. 2022, sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.evaluate import EdgeAblation, Evaluator
from casestudy.circuits.graph import Circuit, Mask
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError
from casestudy.measure.patching import Pairs
from casestudy.model.model import Model

Array = NDArray[np.float64]

_MASKS = 64
"""Circuits are made and pruned in batches whose masks use at most 1 / this of the memory."""

Faithfulness = Callable[[list[Circuit], list[Circuit]], Array]
"""Faithfulness of two lists of equal length, (list, circuit), in one evaluation."""

MOST_NODES = 24
"""The largest number of nodes that are knocked out one by one."""

MINIMALITY_SETS = 5
"""The largest number of random sets together with which each node is knocked out."""

RANDOM_SETS = 20
GREEDY_STEPS = 3


@dataclass(frozen=True)
class Knockouts:
    """The effects of knocking out nodes of a circuit.

    Attributes:
        nodes: the nodes that were knocked out one by one: the circuit's without the embeddings, or
            those with the largest scores if there are too many.
        sets: (set, member) the sets that were knocked out: none, each node alone, random halves,
            and the sets of the greedy search.
        circuit: (set,) faithfulness of the circuit without the set.
        model: (set,) faithfulness of the whole model without the set.
        minimality: (node,) the largest change in faithfulness from knocking out the node, alone or
            together with one of the random sets.
        members: all of the circuit's nodes; () if they are `nodes`.
        evaluations: the number of circuit evaluations.
    """

    nodes: tuple[str, ...]
    sets: Mask
    circuit: Array
    model: Array
    minimality: Array
    members: tuple[str, ...] = ()
    evaluations: int = 0

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
    importance: Array | None = None,
    most_nodes: int = MOST_NODES,
    random_sets: int = RANDOM_SETS,
    greedy_steps: int = GREEDY_STEPS,
    ablation: EdgeAblation = "corrupted",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Knockouts:
    """Completeness and minimality of a circuit (Wang et al. 2022, sections 4.1 and 4.2).

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length.
        metric: a contrast, or a function of the last token's logits.
        circuit: pruned first.
        importance: (sender,) if there are too many nodes, those with the largest importance are
            chosen; by default the number of outgoing edges in the circuit.
        most_nodes: the largest number of nodes to knock out one by one.
        random_sets: the number of random halves of the nodes.
        greedy_steps: the largest number of nodes that the greedy search adds.
        ablation: what ablated edges carry.
        budget: memory, seed of the random sets.
        progress: called with the progress of each evaluation.

    Raises: MeasureError for a circuit without nodes; as `evaluate_circuit`.
    """
    return knock_out_by(
        Evaluator(model, circuit.graph, pairs, metric, ablation, budget.memory),
        circuit,
        importance=importance,
        most_nodes=most_nodes,
        random_sets=random_sets,
        greedy_steps=greedy_steps,
        budget=budget,
        progress=progress,
    )


def knock_out_by(
    evaluator: Evaluator,
    circuit: Circuit,
    *,
    importance: Array | None = None,
    most_nodes: int = MOST_NODES,
    random_sets: int = RANDOM_SETS,
    greedy_steps: int = GREEDY_STEPS,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Knockouts:
    """As `knock_out`, on the evaluator's pairs."""
    circuit = circuit.pruned()
    nodes = [circuit.graph.node(name) for name in circuit.nodes if name != "embed"]
    if not nodes:
        raise MeasureError("a circuit with no node but the embeddings", allowed="at least one node")

    cost = 0
    at_once = max(1, budget.memory // (_MASKS * circuit.mask.nbytes))

    def faithfulness(one: list[Circuit], other: list[Circuit]) -> Array:
        nonlocal cost
        cost += len(one) + len(other)
        found = evaluator.evaluate([*one, *other], budget.checking(2), progress)
        return found.faithfulness.reshape(2, -1)

    n = len(nodes)
    tried = _first(nodes, circuit, importance, most_nodes)
    halves = np.random.default_rng(budget.seed).random((random_sets, n)) < 0.5
    alone = np.eye(n, dtype=bool)[tried]
    sets = np.concatenate([np.zeros((1, n), dtype=bool), alone, halves])
    of_both = partial(_circuit_and_model, circuit, nodes, faithfulness, at_once)
    values = of_both(sets)
    minimality = np.abs(values[0, 1 : len(tried) + 1] - values[0, 0])
    worst = _worst_sets(of_both, alone, greedy_steps)
    sets = np.concatenate([sets, *(chosen[None] for chosen, _ in worst)])
    values = np.concatenate([values, *(pair[:, None] for _, pair in worst)], 1)
    if len(tops := halves[:MINIMALITY_SETS]):
        on_top = _minimality_on_top(circuit, nodes, faithfulness, at_once, alone, tops)
        minimality = np.maximum(minimality, on_top)
    names = tuple(str(circuit.graph.senders[i]) for i in nodes)
    some = tuple(names[i] for i in tried)
    return Knockouts(some, sets, values[0], values[1], minimality, names, cost)


def _first(nodes: list[int], circuit: Circuit, importance: Array | None, most: int) -> list[int]:
    """The indices of the nodes to knock out one by one, ascending."""
    weight = circuit.mask.sum(1) if importance is None else np.abs(importance)
    order = np.argsort(-weight[nodes], kind="stable")[:most]
    return sorted(order.tolist())


def _parts(n: int, at_once: int) -> list[slice]:
    """n rows in slices of at most `at_once`."""
    return [slice(i, i + at_once) for i in range(0, n, at_once)]


def _without(circuit: Circuit, nodes: list[int], sets: Mask) -> list[Circuit]:
    """The circuit without each set of its nodes."""
    return [circuit.without([nodes[i] for i in np.flatnonzero(row)]) for row in sets]


def _circuit_and_model(
    circuit: Circuit, nodes: list[int], faithfulness: Faithfulness, at_once: int, sets: Mask
) -> Array:
    """(circuit or model, set) faithfulness without each set."""
    full = circuit.graph.full
    found = [
        faithfulness(_without(circuit, nodes, sets[some]), _without(full, nodes, sets[some]))
        for some in _parts(len(sets), at_once)
    ]
    return np.concatenate(found, 1)


def _worst_sets(
    of_both: Callable[[Mask], Array], alone: Mask, greedy_steps: int
) -> list[tuple[Mask, Array]]:
    """Sets that grow by the node with the largest gap between circuit and model, while the gap
    grows, each with its two values."""
    found: list[tuple[Mask, Array]] = []
    worst, gap = np.zeros(alone.shape[1], dtype=bool), -1.0
    for _ in range(min(greedy_steps, len(alone))):
        tries = worst | alone[~(alone & worst).any(1)]
        values = of_both(tries)
        gaps = np.abs(values[0] - values[1])
        best = int(gaps.argmax())
        if gaps[best] <= gap:
            break
        worst, gap = tries[best], float(gaps[best])
        found.append((worst, values[:, best]))
    return found


def _minimality_on_top(
    circuit: Circuit,
    nodes: list[int],
    faithfulness: Faithfulness,
    at_once: int,
    alone: Mask,
    tops: Mask,
) -> Array:
    """(node,) the largest change from knocking out a node together with one of these sets."""
    sets = tops[:, None]  # set 1 member
    kept, gone = (rows.reshape(-1, len(nodes)) for rows in (sets & ~alone, sets | alone))
    found = [
        faithfulness(_without(circuit, nodes, kept[some]), _without(circuit, nodes, gone[some]))
        for some in _parts(len(kept), at_once)
    ]
    values = np.concatenate(found, 1)
    return np.asarray(np.abs(values[0] - values[1]).reshape(-1, len(alone)).max(0))
