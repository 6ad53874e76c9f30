"""Which heads and single neurons carry a behaviour, and how far can that be trusted?

A circuit in the neuron basis: every head and every neuron of every MLP is scored, the first so many
by score form the circuit, and everything else is ablated, the rest of each MLP as one remainder.
The circuit is found on half of the pairs; the evidence is from the other half:

- `curve`: faithfulness by the number of nodes;
- `circuit`: the smallest set tried with the required faithfulness on the search pairs, or the
  nodes above a threshold, or the first `top`;
- `faithfulness`: on the search pairs, on the held-out pairs, and with the other ablations;
- `controls`: as many random heads and neurons, anywhere and in the same layers; and the circuit's
  heads with as many random neurons in the same layers;
- `completeness`: the model without the circuit, and without random halves of it, against the
  circuit without the same nodes;
- `minimality`: the circuit without each of its first nodes;
- `exact`: the first nodes and as many random ones ablated one by one in the whole model, beside
  their scores; and each remainder ablated;
- `edges`: the strongest edges between the first nodes by RelP, where the architecture allows.

Every faithfulness is exact (`node_sets`); only scores and edges are estimates. Assumes pairs of
equal length that differ. Cost: one attribution, and about 200 forward passes of the pairs.
Source: Arora et al. 2026, arXiv 2601.22594; Wang et al. 2022, section 4, for the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.ablated import EdgeAblation
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.curves import smallest_size
from casestudy.circuits.edge_scores import attribute_edges
from casestudy.circuits.evidence import Faithfulness
from casestudy.circuits.graph import Graph, Rank
from casestudy.circuits.node_sets import NodeEvaluation, NodeSet, evaluate_nodes
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError, one_of
from casestudy.measure.attribution_patching import NODE_METHODS, STEPS, NodeMethod, attribute_nodes
from casestudy.measure.halves import Half, split
from casestudy.measure.pairs import Pairs, one_reading
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results.components import Component
from casestudy.results.stats import FAITHFULNESS, mean_interval, ratio_of_means

Array = NDArray[np.float64]
Heads = Literal["ranked", "all"]
Ends = tuple[float, float, float]
"""A mean, and the ends of its interval."""
Faithful = tuple[float, float]
"""Faithfulness where a circuit was looked for, and on the pairs held out."""

STAGES = ("scores", "curve", "circuit", "faithfulness", "controls", "knockouts", "exact", "edges")
MOST_NODES = 24
"""The largest number of nodes that are knocked out, or patched exactly, one by one."""
EDGE_NEURONS = 60
"""The largest number of neurons between which edges are scored."""
HALVES = 10
"""Random halves of the circuit that are knocked out."""


@dataclass(frozen=True)
class NeuronChoices:
    """The settings of the search.

    Attributes:
        method, steps: of the scores.
        rank: by absolute or by signed score.
        ablation: the activations of what is outside the circuit.
        faithful: the faithfulness that the smallest circuit must reach.
        heads: "ranked" among the neurons, or "all" of them in every circuit, so that only neurons
            are chosen.
        threshold: keep the nodes whose score is at least this share of the mean difference between
            the runs, instead of searching.
        top: keep so many nodes, instead of searching.
        random_sets: random circuits of each kind of control.
        seed: of the split and the controls.
    """

    method: NodeMethod = "relp"
    steps: int = STEPS
    rank: Rank = "absolute"
    ablation: EdgeAblation = "corrupted"
    faithful: float = 0.85
    heads: Heads = "ranked"
    threshold: float | None = None
    top: int | None = None
    random_sets: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names(self.__dict__)
        if self.threshold is not None and self.top is not None:
            raise MeasureError("a threshold and a number of nodes", allowed="one of the two")
        if self.random_sets < 1:
            raise MeasureError(f"{self.random_sets} random circuits", allowed="1 or more")

    @property
    def other_ablations(self) -> list[EdgeAblation]:
        """The other ablations, which the evidence compares with."""
        kinds: tuple[EdgeAblation, ...] = get_args(EdgeAblation)
        return [kind for kind in kinds if kind != self.ablation]


def _check_names(typed: Mapping[str, Any]) -> None:
    """Raises: MeasureError for a name that is not one of those allowed."""
    for name, allowed in (
        ("method", NODE_METHODS),
        ("rank", get_args(Rank)),
        ("ablation", get_args(EdgeAblation)),
        ("heads", get_args(Heads)),
    ):
        if name in typed:
            one_of(name, typed[name], allowed, MeasureError)


def neuron_choices(**typed: Any) -> NeuronChoices:
    """Choices from the values that a user typed.

    Raises: MeasureError for a name that is not one of those allowed, and as `NeuronChoices`.
    """
    _check_names(typed)
    return NeuronChoices(**typed)


@dataclass(frozen=True)
class NodeScores:
    """Every head's and neuron's score, a mean over the search pairs.

    Attributes:
        heads: (layer, head).
        neurons: (layer, neuron).
        ranked_heads: whether heads are ranked; otherwise all are in every circuit.
        rank: how scores are ranked.
        towards: 1 if the metric is larger in the clean runs, else -1.
    """

    heads: Array
    neurons: Array
    ranked_heads: bool
    rank: Rank
    towards: float

    @property
    def flat(self) -> Array:
        """Of the ranked nodes: heads, then neurons."""
        parts = [self.heads.ravel()] if self.ranked_heads else []
        return np.concatenate([*parts, self.neurons.ravel()])

    @property
    def order(self) -> NDArray[np.int64]:
        """Places in `flat`, largest score first."""
        keys = np.abs(self.flat) if self.rank == "absolute" else self.towards * self.flat
        return np.argsort(-keys, kind="stable")

    def first(self, n: int) -> NodeSet:
        """The n nodes with the largest scores."""
        return self.at(self.order[:n])

    def at(self, places: NDArray[np.int64]) -> NodeSet:
        """The set of some places in `flat`."""
        chosen = np.zeros(len(self.flat), dtype=bool)
        chosen[places] = True
        n = self.heads.size if self.ranked_heads else 0
        heads = chosen[:n] if self.ranked_heads else np.ones(self.heads.size, dtype=bool)
        return NodeSet(heads.reshape(self.heads.shape), chosen[n:].reshape(self.neurons.shape))

    def place(self, index: int) -> Component:
        """The node at a place in `flat`."""
        n = self.heads.size if self.ranked_heads else 0
        kind: Literal["head", "neuron"] = "head" if index < n else "neuron"
        width = self.heads.shape[1] if index < n else self.neurons.shape[1]
        return Component(kind, *divmod(int(index) - (0 if index < n else n), width))


@dataclass(frozen=True)
class NodeEffect:
    """One node by itself.

    Attributes:
        node: its name; "rest of mlp 3" for a remainder.
        score: the estimate; None for a remainder.
        exact: m(clean) - m(clean with the node ablated), a mean over the search pairs with the ends
            of its 95 % interval.
        drop: how much faithfulness the circuit loses without it on the judging pairs, with the ends
            of its interval; None if it is not in the circuit, or was not knocked out.
        drawn: whether it was drawn at random.
    """

    node: str
    score: float | None
    exact: Ends
    drop: Ends | None = None
    drawn: bool = False


@dataclass(frozen=True)
class NeuronEvidence:
    """What was found and measured; see the module.

    Attributes:
        scores: of every node.
        sizes: of the curve's circuits, in ranked nodes.
        curve: of these circuits, on the judging pairs.
        circuit: the nodes.
        n_ranked: of the circuit's nodes, how many were chosen by score.
        faithfulness: by pairs and ablation.
        controls: (circuit,) faithfulness of each kind of random circuit.
        without: faithfulness of the model without the circuit's nodes.
        completeness: (half, 2) faithfulness of the circuit and of the model, each without the same
            random half of the circuit.
        effects: of single nodes and of the remainders.
        edges: between the first nodes; None where they cannot be scored.
        held_out: whether the judging pairs are others than the search pairs.
        n: search pairs and judging pairs.
        difference: the metric's mean in the clean and in the corrupted runs of the judging pairs.
        documents: of the judging pairs, resampled together.
    """

    scores: NodeScores
    sizes: tuple[int, ...]
    curve: NodeEvaluation
    circuit: NodeSet
    n_ranked: int
    faithfulness: dict[str, Faithfulness]
    controls: dict[str, Array]
    without: Faithfulness
    completeness: Array
    effects: tuple[NodeEffect, ...]
    edges: EdgeScores | None
    held_out: bool
    n: tuple[int, int]
    difference: tuple[float, float]
    documents: tuple[str, ...] | None = None


class _Search:
    """The two halves, and how sets of nodes are evaluated on them."""

    def __init__(
        self, model: Model, everything: Half, choices: NeuronChoices, budget: Budget
    ) -> None:
        self.model, self.choices, self.budget = model, choices, budget
        ours, theirs = split(len(everything), everything.documents, choices.seed)
        self.search, self.judge = everything[ours], everything[theirs]
        self.judged_on = theirs
        self.held_out = ours != theirs
        self.rng = np.random.default_rng(choices.seed)

    def on(
        self, half: Half, sets: Sequence[NodeSet], ablation: EdgeAblation | None = None
    ) -> NodeEvaluation:
        """Sets of nodes on some pairs."""
        kind = self.choices.ablation if ablation is None else ablation
        return evaluate_nodes(
            self.model, half.pairs, half.metric, sets, ablation=kind, budget=self.budget
        )

    def scores(self) -> NodeScores:
        """Every node's score at the clean run: what the metric loses without it, by estimate."""
        choices, half = self.choices, self.search
        tables = []
        for site in (Site.Z, Site.MLP_POST):
            found = attribute_nodes(
                self.model,
                half.pairs,
                half.metric,
                site,
                method=choices.method,
                by="all",
                direction="noising",
                steps=choices.steps,
                budget=self.budget,
            )
            tables.append(found.values.mean(-1))
        ends = self.on(half, [NodeSet.of(self.model.config)])
        change = ends.full.mean() - ends.empty.mean()
        if np.isnan(ratio_of_means(ends.values, ends.empty, ends.full)[0]):
            raise MeasureError(
                "the metric is the same for clean and corrupted prompts on average: there is no "
                "difference that a circuit could carry",
                hint="Choose another metric, or edits that undo the behaviour",
            )
        self.whole = float(change)
        sign = 1.0 if change > 0 else -1.0
        heads, neurons = tables
        return NodeScores(heads, neurons, choices.heads == "ranked", choices.rank, sign)

    def size(self, scores: NodeScores) -> int:
        """How many of the ranked nodes the circuit has.

        Raises: MeasureError for a threshold, or a number, that keeps none or all of them.
        """
        choices, flat = self.choices, scores.flat
        if choices.threshold is None and choices.top is None:
            return smallest_size(
                len(flat),
                lambda sizes: self.on(self.search, [scores.first(n) for n in sizes]).faithfulness,
                choices.faithful,
                "nodes",
            )
        if choices.top is not None:
            n, what = choices.top, f"the first {choices.top}"
        else:
            assert choices.threshold is not None
            keys = np.abs(flat) if choices.rank == "absolute" else scores.towards * flat
            n = int((keys >= choices.threshold * abs(self.whole)).sum())
            what = f"a threshold of {choices.threshold:g}"
        if not 0 < n < len(flat):
            largest = np.abs(flat).max() / abs(self.whole)
            raise MeasureError(
                f"{what} keeps {'none' if n <= 0 else 'all'} of {len(flat):,} nodes",
                allowed=f"1 to {len(flat) - 1:,} nodes; scores reach {largest:.3g} of the "
                "difference between the runs",
            )
        return n

    def judged(self, circuit: NodeSet) -> dict[str, Faithfulness]:
        """The circuit's faithfulness by pairs and ablation, and what smaller sets have."""
        choices = self.choices
        others = "on pairs held out" if self.held_out else "on the same pairs: too few to hold out"
        runs: dict[str, tuple[Half, EdgeAblation, NodeSet]] = {
            "where it was looked for": (self.search, choices.ablation, circuit),
            others: (self.judge, choices.ablation, circuit),
        }
        for kind in choices.other_ablations:
            runs[f"{others}, {kind} ablation"] = (self.judge, kind, circuit)
        bare = NodeSet.of(self.model.config)
        runs[f"{others}, embeddings alone"] = (self.judge, choices.ablation, bare)
        if circuit.heads.any():
            heads = replace(bare, heads=circuit.heads)
            runs[f"{others}, its heads alone"] = (self.judge, choices.ablation, heads)
        found = {}
        for name, (half, kind, one) in runs.items():
            mean, low, high = (
                float(x[0]) for x in self.on(half, [one], kind).interval(half.documents)
            )
            found[name] = Faithfulness(mean, low, high, len(half))
        return found

    def controls(self, circuit: NodeSet) -> dict[str, Array]:
        """Faithfulness of random circuits of as many heads and neurons."""
        count = range(self.choices.random_sets)
        kinds = {
            "random nodes anywhere": self.anywhere,
            "random nodes in the same layers": self.same_layers,
            "random neurons in the same layers": self.same_heads,
        }
        return {
            name: self.on(self.judge, [draw(circuit) for _ in count]).faithfulness
            for name, draw in kinds.items()
        }

    def anywhere(self, circuit: NodeSet) -> NodeSet:
        """As many heads and as many neurons."""

        def drawn(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
            return self.rng.permutation(mask.ravel()).reshape(mask.shape)

        return replace(circuit, heads=drawn(circuit.heads), neurons=drawn(circuit.neurons))

    def same_layers(self, circuit: NodeSet) -> NodeSet:
        """As many heads and as many neurons in every layer."""
        drawn = partial(self.rng.permuted, axis=1)
        return replace(circuit, heads=drawn(circuit.heads), neurons=drawn(circuit.neurons))

    def same_heads(self, circuit: NodeSet) -> NodeSet:
        """The same heads, and as many neurons in every layer."""
        return replace(self.same_layers(circuit), heads=circuit.heads)

    def completeness(self, circuit: NodeSet) -> tuple[Faithfulness, Array]:
        """The model without the circuit; (half, 2) circuit and model without halves of it."""
        whole = NodeSet.of(self.model.config, True)
        heads = circuit.heads & (self.choices.heads == "ranked")  # of those chosen by score
        halves = []
        for _ in range(HALVES):
            keep = [self.rng.random(mask.shape) < 0.5 for mask in (heads, circuit.neurons)]
            halves.append(NodeSet(heads & keep[0], circuit.neurons & keep[1]))
        sets = [whole.without(replace(circuit, heads=heads))]
        sets += [start.without(some) for start in (circuit, whole) for some in halves]
        found = self.on(self.judge, sets)
        mean, low, high = (float(x[0]) for x in found.interval(self.judge.documents))
        without = Faithfulness(mean, low, high, len(self.judge))
        return without, found.faithfulness[1:].reshape(2, -1).T

    def effects(self, scores: NodeScores, circuit: NodeSet, n: int) -> tuple[NodeEffect, ...]:
        """The first nodes and random ones, by themselves; and the remainders of the MLPs."""
        config = self.model.config
        whole = NodeSet.of(config, True)
        first = [int(i) for i in scores.order[: min(n, MOST_NODES)]]
        drawn = self.rng.choice(len(scores.flat), min(MOST_NODES, len(scores.flat)), replace=False)
        places = first + [int(i) for i in drawn if int(i) not in set(first)]
        single = [NodeSet.named(config, [str(scores.place(i))]) for i in places]
        layers = np.flatnonzero(circuit.neurons.any(1) & ~circuit.neurons.all(1)).tolist()
        rests = []
        for layer in layers:
            mask = np.zeros_like(circuit.neurons)
            mask[layer] = ~circuit.neurons[layer]
            rests.append(NodeSet(np.zeros_like(circuit.heads), mask))
        found = self.on(self.search, [whole.without(one) for one in (*single, *rests)])
        lost = mean_ends((found.full - found.values).T, self.search.documents)
        within = self.on(
            self.judge, [circuit, *(circuit.without(one) for one in single[: len(first)])]
        ).in_parts
        drops = mean_ends((within[0] - within[1:]).T, self.judge.documents, FAITHFULNESS)
        effects = [
            NodeEffect(
                str(scores.place(i)),
                float(scores.flat[i]),
                lost[k],
                drops[k] if k < len(first) else None,
                k >= len(first),
            )
            for k, i in enumerate(places)
        ]
        names = [f"rest of mlp {layer}" for layer in layers]
        rest = zip(names, lost[len(places) :], strict=True)
        return tuple(effects + [NodeEffect(name, None, ends) for name, ends in rest])

    def edges(self, scores: NodeScores, circuit: NodeSet, n: int) -> EdgeScores | None:
        """Edges between the circuit's first nodes by RelP; None where they cannot be scored: a norm
        after the MLPs mixes neurons, so they are no senders."""
        if any(block.mlp_post_norm is not None for block in self.model.weights.blocks):
            return None
        parts = [scores.place(int(i)) for i in scores.order[:n]]
        neurons: dict[int, list[int]] = {}
        for part in [p for p in parts if p.kind == "neuron"][:EDGE_NEURONS]:
            assert part.layer is not None
            assert part.index is not None
            neurons.setdefault(part.layer, []).append(part.index)
        chosen = {layer: tuple(sorted(some)) for layer, some in neurons.items()}
        graph = Graph(self.model.config, chosen)
        half = self.search
        found = attribute_edges(
            self.model,
            half.pairs,
            half.metric,
            "relp",
            graph=graph,
            direction="noising",
            budget=self.budget,
        )
        names = {"embed", "logits", *circuit.names}
        inside = np.array([str(sender) in names for sender in graph.senders])[:, None] & np.array(
            [receiver.node in names for receiver in graph.receivers]
        )
        return replace(found, values=np.where(inside, found.values, np.nan))


def mean_ends(values: Array, documents: Sequence[str] | None, unit: str = "") -> list[Ends]:
    """Of each column of (prompt, cell) values."""
    mean, lower, upper, _ = mean_interval(values, unit=unit, documents=documents)
    return list(zip(mean.tolist(), lower.tolist(), upper.tolist(), strict=True))


def curve_sizes(n: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, … up to all n nodes."""
    sizes = [a * 10**b for b in range(len(str(n))) for a in (1, 2, 5)]
    return (*(size for size in sizes if size < n), n)


def judged_first(
    model: Model, half: Half, choices: NeuronChoices, *, budget: Budget = DEFAULT_BUDGET
) -> tuple[list[int], NodeEvaluation]:
    """The first `choices.top` nodes, ranked on half of the pairs, evaluated on the others.

    Returns: the pairs that judge, by index, and the evaluation on them.
    Raises: as `gather_neurons`.
    """
    work = _Search(model, half, choices, budget)
    scores = work.scores()
    nodes = scores.first(work.size(scores))
    return work.judged_on, work.on(work.judge, [nodes])


def nodes_needed(
    model: Model,
    half: Half,
    choices: NeuronChoices,
    sizes: Sequence[int],
    *,
    budget: Budget = DEFAULT_BUDGET,
) -> tuple[tuple[NodeSet, Faithful], list[tuple[NodeSet, Faithful]]]:
    """The smallest circuit, and those of some sizes, with their faithfulness on the search pairs
    and on the pairs held out; nothing else of the evidence.

    Raises: as `gather_neurons`.
    """
    work = _Search(model, half, choices, budget)
    scores = work.scores()
    sets = [scores.first(n) for n in (work.size(scores), *sizes)]
    both = [work.on(one, sets).faithfulness.tolist() for one in (work.search, work.judge)]
    first, *others = zip(sets, zip(*both, strict=True), strict=True)
    return first, others


def gather_neurons(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    choices: NeuronChoices,
    *,
    documents: Sequence[str] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> NeuronEvidence:
    """Find the circuit and gather its evidence; see the module.

    Raises: MeasureError for a metric that does not differ between the runs, a threshold or number
        that keeps none or all nodes, or as `attribute_nodes`.
    """

    def tell(stage: str) -> None:
        if progress is not None:
            progress(Progress("circuit", STAGES.index(stage), len(STAGES), note=stage))

    one_reading(pairs, "circuits of heads and neurons")
    half = Half(pairs, contrast, None if documents is None else tuple(documents))
    work = _Search(model, half, choices, budget)
    tell("scores")
    scores = work.scores()
    tell("circuit")
    n = work.size(scores)
    circuit = scores.first(n)
    tell("curve")
    sizes = curve_sizes(len(scores.flat))
    curve = work.on(work.judge, [scores.first(size) for size in sizes])
    tell("faithfulness")
    judged = work.judged(circuit)
    tell("controls")
    controls = work.controls(circuit)
    tell("knockouts")
    without, completeness = work.completeness(circuit)
    tell("exact")
    effects = work.effects(scores, circuit, n)
    tell("edges")
    edges = work.edges(scores, circuit, n)
    ends = float(curve.full.mean()), float(curve.empty.mean())
    counts = len(work.search), len(work.judge)
    return NeuronEvidence(
        *(scores, sizes, curve, circuit, n, judged, controls, without, completeness, effects),
        *(edges, work.held_out, counts, ends, work.judge.documents),
    )
