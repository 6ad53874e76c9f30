"""How far can a circuit be trusted?

A circuit is found on half of the pairs and judged on the others (on all where there are too few to
part, which is said). The evidence, as the circuits papers ask for it:

- faithfulness at ten shares of the edges, by absolute and by signed score, dangling edges pruned
  after the cut, with CPR (the area under the curve) and CMD (the area between it and 1), linear
  trapezoids over the shares as in Mueller et al. 2025, "MIB";
- the same circuits with the other edges at their mean or at zero instead of corrupted;
- controls: random circuits of the same sizes, and the method run on pairs each of whose metric
  counts with a random sign, which leaves it nothing to find;
- the smallest circuit for a stated faithfulness;
- its completeness and minimality (Wang et al. 2022, section 4);
- stability: how much of it is left when prompts are resampled;
- the approximation's agreement with exact patching on a sample of edges.

Assumes pairs of equal length that differ. Cost: two or three attributions, and a few hundred
circuit evaluations, most of them small (see `circuits`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.agreement import EdgeScores, agreement
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import STEPS, Method, attribute_edges
from casestudy.circuits.evaluate import Ablation, Evaluation, evaluate
from casestudy.circuits.graph import Circuit, Graph, Mask, Rank, Scores
from casestudy.engine.sweep import DEFAULT_MEMORY, Metric
from casestudy.errors import MeasureError
from casestudy.measure.metrics import rows_of
from casestudy.measure.patching import Effort, Pairs
from casestudy.model.model import Model
from casestudy.results.result import Array, Axis, Grid, Result, Shown, Table
from casestudy.results.stats import (
    BOOTSTRAP_FROM,
    mean_interval,
    ratio_in_parts,
    units_of,
)

PROPORTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's shares of a graph's edges."""

FEWEST = 6
"""Pairs from which some are held out."""

FLIPS = 5
"""How often signs are turned at random."""

CARD = 1
"""Version of a card's form."""


@dataclass(frozen=True)
class Curve(Shown):
    """Faithfulness by size.

    Attributes:
        proportions: shares of the graph's edges that were taken, before pruning.
        evaluation: of the pruned circuits, one per share.
    """

    proportions: tuple[float, ...]
    evaluation: Evaluation

    @property
    def shown(self) -> Grid:
        """Faithfulness by share of edges, with its interval over prompts."""
        mean, lower, upper = self.evaluation.interval()
        return Grid(
            "circuit.curve",
            mean,
            (Axis("proportion", tuple(f"{p:g}" for p in self.proportions)),),
            "share of the difference",
            lower,
            upper,
            np.full(len(mean), self.evaluation.values.shape[1]),
            error=self.evaluation.error,
            about=f"Faithfulness by share of edges, the others {self.evaluation.ablation}.",
        )

    @property
    def cpr(self) -> float:
        """The area under the curve, from the smallest share to the largest: MIB's CPR."""
        return _area(self.proportions, self.evaluation.faithfulness)

    @property
    def cmd(self) -> float:
        """The area between the curve and 1: MIB's CMD, which does not reward overshooting."""
        return _area(self.proportions, np.abs(1 - self.evaluation.faithfulness))

    def intervals(self, documents: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
        """95 % intervals of both over prompts, linearised at the means."""
        found = self.evaluation
        parts = ratio_in_parts(found.values, found.empty, found.full)  # circuit prompt
        away = np.sign(1 - found.faithfulness)[:, None] * (1 - parts)
        ends = {}
        for name, values in (("cpr", parts), ("cmd", away)):
            area = np.asarray(np.trapezoid(values, self.proportions, axis=0))
            _, lower, upper, _ = mean_interval(area[:, None], documents=documents)
            ends[name] = (float(lower[0]), float(upper[0]))
        return ends


def _area(proportions: Sequence[float], values: NDArray[np.float64]) -> float:
    return float(np.trapezoid(values, proportions))


def curve_circuits(
    graph: Graph,
    scores: Scores,
    *,
    rank: Rank = "absolute",
    proportions: Sequence[float] = PROPORTIONS,
) -> list[Circuit]:
    """The first so many edges for each share, dangling ones pruned."""
    sizes = [round(p * graph.n_edges) for p in proportions]
    return [graph.top(scores, n, rank).pruned() for n in sizes]


def curve(
    model: Model,
    pairs: Pairs,
    metric: Contrast | Metric,
    scores: EdgeScores,
    *,
    rank: Rank = "absolute",
    proportions: Sequence[float] = PROPORTIONS,
    ablation: Ablation = "corrupted",
    memory: int = DEFAULT_MEMORY,
) -> Curve:
    """Faithfulness of the first edges by these scores, at each share of all edges.

    Raises: as `evaluate`.
    """
    circuits = curve_circuits(scores.graph, scores.values, rank=rank, proportions=proportions)
    found = evaluate(model, pairs, metric, circuits, ablation=ablation, memory=memory)
    return Curve(tuple(proportions), found)


def smallest(
    model: Model,
    pairs: Pairs,
    metric: Contrast | Metric,
    scores: EdgeScores,
    *,
    faithful: float = 0.85,
    rank: Rank = "absolute",
    ablation: Ablation = "corrupted",
    memory: int = DEFAULT_MEMORY,
) -> Circuit:
    """The smallest circuit of first edges that is found to be so faithful.

    Sizes are tried on a ladder and then between its rungs, all of a round in one batch; where
    faithfulness does not rise with size there may be a smaller one between.

    Raises: MeasureError where not even the whole graph is (a metric that ablation does not change).
    """
    graph = scores.graph
    n_edges = len(graph.order(scores.values, rank))

    def tried(sizes: Sequence[int]) -> dict[int, tuple[Circuit, float]]:
        circuits = [graph.top(scores.values, n, rank).pruned() for n in sizes]
        found = evaluate(
            model, pairs, metric, circuits, ablation=ablation, memory=memory, check=0
        ).faithfulness
        return {n: (c, float(f)) for n, c, f in zip(sizes, circuits, found, strict=True)}

    ladder = sorted({round(n) for n in np.geomspace(1, n_edges, 20)})
    known = tried(ladder)
    for _ in range(2):
        fits = [n for n, (_, f) in sorted(known.items()) if f >= faithful]
        if not fits:
            raise MeasureError(
                f"no circuit of these edges reaches a faithfulness of {faithful}",
                hint=f"The largest found is {max(f for _, f in known.values()):.2f}",
            )
        below = max((n for n in known if n < fits[0]), default=0)
        between = sorted({round(n) for n in np.linspace(below, fits[0], 12)} - known.keys() - {0})
        if not between:
            break
        known |= tried(between)
    best = min(n for n, (_, f) in known.items() if f >= faithful)
    return known[best][0]


@dataclass(frozen=True)
class Knockouts:
    """What happens when parts of a circuit are knocked out.

    Attributes:
        nodes: the circuit's, the embeddings not counted.
        sets: (set, node) which were knocked out: none, then each alone, then random halves, then
            what a greedy search found.
        circuit: (set,) faithfulness of the circuit without the set.
        model: (set,) faithfulness of the whole model without the set.
        minimality: (node,) the largest change in faithfulness that knocking out the node made, on
            its own or on top of one of the random sets.
    """

    nodes: tuple[str, ...]
    sets: Mask
    circuit: NDArray[np.float64]
    model: NDArray[np.float64]
    minimality: NDArray[np.float64]

    @property
    def incompleteness(self) -> NDArray[np.float64]:
        """(set,) how differently circuit and model fare without the set, in units of the whole
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
    memory: int = DEFAULT_MEMORY,
    seed: int = 0,
) -> Knockouts:
    """Completeness and minimality of a circuit (Wang et al. 2022, sections 4.1 and 4.2).

    A knocked out node has all its edges ablated. Completeness: without any set K of its nodes the
    circuit should do what the model does without K; tried are every single node, random halves, and
    a greedy search for the worst K. Minimality: every node should matter, for some K.

    Raises: MeasureError for a circuit of no nodes; as `evaluate`.
    """
    graph, circuit = circuit.graph, circuit.pruned()
    places = [graph.node(name) for name in circuit.nodes if name != "embed"]
    if not places:
        raise MeasureError("a circuit with no node but the embeddings", allowed="at least one node")
    n = len(places)
    rng = np.random.default_rng(seed)
    halves = rng.random((random_sets, n)) < 0.5
    alone = np.eye(n, dtype=bool)
    sets = np.concatenate([np.zeros((1, n), dtype=bool), alone, halves])

    def without(chosen: Mask, of: Circuit) -> list[Circuit]:
        return [of.without([places[i] for i in np.flatnonzero(row)]) for row in chosen]

    def faithful(one: list[Circuit], other: list[Circuit]) -> NDArray[np.float64]:
        """Both lists' faithfulness, a row each, in one evaluation of what they share."""
        circuits = [*one, *other]
        return evaluate(
            model, pairs, metric, circuits, ablation=ablation, memory=memory, check=2, seed=seed
        ).faithfulness.reshape(2, -1)

    ours, theirs = faithful(without(sets, circuit), without(sets, graph.full))
    worst, gap = np.zeros(n, dtype=bool), -1.0
    for _ in range(min(greedy_steps, n)):
        tries = worst | alone[~worst]
        a, b = faithful(without(tries, circuit), without(tries, graph.full))
        best = int(np.abs(a - b).argmax())
        if abs(a[best] - b[best]) <= gap:
            break
        worst, gap = tries[best], float(abs(a[best] - b[best]))
        sets, ours, theirs = (
            np.concatenate([sets, worst[None]]),
            np.append(ours, a[best]),
            np.append(theirs, b[best]),
        )
    # on its own, and with half of the others gone
    largest = np.abs(ours[1 : n + 1] - ours[0])
    tops = halves[: min(5, random_sets)][:, None]  # set 1 node
    if len(tops):
        kept, gone = ((tops & ~alone).reshape(-1, n), (tops | alone).reshape(-1, n))
        a, b = faithful(without(kept, circuit), without(gone, circuit))
        largest = np.maximum(largest, np.abs(a - b).reshape(-1, n).max(0))
    names = tuple(graph.senders[i].node for i in places)
    return Knockouts(names, sets, ours, theirs, largest)


# The card.


@dataclass(frozen=True)
class Choices:
    """How a circuit is looked for.

    Attributes:
        method, steps: of the scores.
        rank: by size or as they are.
        ablation: what the other edges carry.
        faithful: what the smallest circuit must reach.
        random_circuits: how many per size.
        exact_edges: how many edges, drawn at random, are patched exactly to compare.
        replicates: of the bootstrap over prompts.
        seed: of everything random.
    """

    method: Method = "eap-ig-inputs"
    steps: int = STEPS
    rank: Rank = "absolute"
    ablation: Ablation = "corrupted"
    faithful: float = 0.85
    random_circuits: int = 10
    exact_edges: int = 200
    replicates: int = 100
    seed: int = 0


def choices_of(**typed: Any) -> Choices:
    """Choices as typed by a person.

    Raises: MeasureError for a name that is none of those allowed.
    """
    for name, allowed in (
        ("method", get_args(Method)),
        ("rank", get_args(Rank)),
        ("ablation", get_args(Ablation)),
    ):
        if name in typed and typed[name] not in allowed:
            raise MeasureError(f"{name} {typed[name]!r}", allowed=", ".join(allowed))
    return Choices(**typed)


@dataclass(frozen=True)
class Card(Shown):
    """A circuit with its evidence.

    Attributes:
        circuit: the smallest that is as faithful as asked, on the pairs it was looked for on.
        scores: every edge's.
        results: the evidence as grids and tables, `circuit.*`.
        model_name, model_hash: whose it is.
        about: on what and how it was found, for people.
    """

    circuit: Circuit
    scores: EdgeScores
    results: tuple[Result, ...]
    model_name: str
    model_hash: str
    about: dict[str, Any]

    def __getitem__(self, name: str) -> Result:
        """A grid or table of the evidence by name.

        Raises: MeasureError listing what there is.
        """
        for result in self.results:
            if result.name == name:
                return result
        known = ", ".join(result.name for result in self.results)
        raise MeasureError(f"the card has no {name!r}", allowed=known)

    @property
    def shown(self) -> Result:
        """The curves with their controls."""
        return self["circuit.faithfulness"]

    def summary(self) -> dict[str, dict[str, Any]]:
        """The figures of `circuit.summary` by name."""
        table = self["circuit.summary"]
        assert isinstance(table, Table)
        return {row["figure"]: row for row in table.rows()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the circuit, its scores and its figures as JSON."""
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
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def read_card(path: str | os.PathLike[str], model: Model) -> tuple[Circuit, Scores]:
    """A saved card's circuit and scores.

    Raises: MeasureError for a file that is no card, or one of another model; SiteError for edges
    the model does not have.
    """
    try:
        data = json.loads(Path(path).read_text())
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


Tell = Callable[[str, int, int], None]
"""Told which step of how many begins."""


def card(
    model: Model,
    pairs: Pairs,
    metric: Contrast | Metric,
    choices: Choices | None = None,
    *,
    graph: Graph | None = None,
    documents: Sequence[str] | None = None,
    unit: str = "logits",
    memory: int = DEFAULT_MEMORY,
    progress: Tell | None = None,
) -> Card:
    """Find a circuit and gather the evidence for and against it.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length.
        metric: a contrast, or a function of the last token's logits with a gradient.
        choices: how to look; see `Choices`.
        graph: the model's own by default.
        documents: per prompt, where it came from: kept on one side of the split, and resampled
            together.
        unit: of the metric.
        memory: in bytes, beyond the model itself.
        progress: told which step begins.

    Raises: as `attribute_edges` and `evaluate`; MeasureError where no circuit is faithful enough.
    """
    choices = Choices() if choices is None else choices
    work = _Work(model, pairs, metric, choices, graph, documents, unit, memory, progress)
    return work.card()


class _Work:
    """The steps to a card."""

    def __init__(
        self,
        model: Model,
        pairs: Pairs,
        metric: Contrast | Metric,
        choices: Choices,
        graph: Graph | None,
        documents: Sequence[str] | None,
        unit: str,
        memory: int,
        progress: Tell | None,
    ) -> None:
        self.model, self.choices, self.unit, self.memory = model, choices, unit, memory
        self.graph = Graph(model.config) if graph is None else graph
        self.progress = progress
        n = len(pairs.clean)
        self.found, self.held = split(n, documents, choices.seed)
        self.parted = self.found != self.held
        self.pairs, self.metric = pairs, metric
        self.documents = documents
        self.done = 0

    def tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what, self.done, 8)
        self.done += 1

    def on(self, some: list[int]) -> tuple[Model, Pairs, Contrast | Metric]:
        return self.model, some_pairs(self.pairs, some), rows_of(self.metric, some)

    def documents_of(self, some: list[int]) -> list[str] | None:
        return None if self.documents is None else [self.documents[i] for i in some]

    def attributed(self) -> EdgeScores:
        """Every edge's score, with bootstrap replicates where there are prompts enough, and the
        means with signs turned at random."""
        rng = np.random.default_rng(self.choices.seed)
        n, many = len(self.found), self.choices.replicates
        return attribute_edges(
            *self.on(self.found),
            self.choices.method,
            graph=self.graph,
            steps=self.choices.steps,
            replicates=many if n >= BOOTSTRAP_FROM else 0,
            documents=self.documents_of(self.found),
            signs=rng.choice((-1, 1), (FLIPS, n)).tolist(),
            memory=self.memory,
            seed=self.choices.seed,
        )

    def card(self) -> Card:
        choices = self.choices
        self.tell("scoring every edge")
        scores = self.attributed()
        self.tell("patching a sample of edges exactly")
        exact = self.exact(scores)
        self.tell("curves")
        curves = self.curves(scores)
        self.tell("controls")
        controls = self.controls(scores, curves)
        self.tell("the smallest circuit")
        circuit = smallest(
            *self.on(self.found),
            scores,
            faithful=choices.faithful,
            rank=choices.rank,
            ablation=choices.ablation,
            memory=self.memory,
        )
        self.tell("its faithfulness elsewhere")
        judged = self.judged(circuit)
        self.tell("completeness and minimality")
        knocked = knock_out(
            *self.on(self.held),
            circuit,
            ablation=choices.ablation,
            memory=self.memory,
            seed=choices.seed,
        )
        self.tell("writing it up")
        results = (
            self.faithfulness_grid(curves, controls),
            self.sizes_grid(curves),
            self.edge_table(circuit, scores, exact),
            self.node_table(circuit, scores, knocked),
            self.summary(circuit, scores, exact, curves, judged, knocked),
        )
        about = {
            **choices.__dict__,
            "n_found_on": len(self.found),
            "n_judged_on": len(self.held),
            "held_out": self.parted,
            "unit": self.unit,
            "n_edges": self.graph.n_edges,
        }
        return Card(circuit, scores, results, self.model.name, self.model.weight_hash, about)

    def exact(self, scores: EdgeScores) -> EdgeScores | None:
        """Exact noising of the first edges and of a random sample; neurons have none."""
        graph, rng = self.graph, np.random.default_rng(self.choices.seed)
        if any(graph.neurons.values()) or not self.choices.exact_edges:
            return None
        places = np.flatnonzero(graph.real)
        drawn = rng.choice(places, min(self.choices.exact_edges, len(places)), replace=False)
        self.drawn = np.zeros_like(graph.real)
        self.drawn.ravel()[drawn] = True
        first = graph.top(scores.values, 30, self.choices.rank).mask
        return patch_edges(
            *self.on(self.found), self.drawn | first, effort=Effort(memory=self.memory)
        )

    def curves(self, scores: EdgeScores) -> dict[str, Curve]:
        """By what is ranked how, and what the other edges carry."""
        own = self.choices.ablation
        kinds: list[tuple[Rank, Ablation]] = [("absolute", own), ("signed", own)]
        others: tuple[Ablation, ...] = ("corrupted", "mean", "zero")
        kinds += [(self.choices.rank, other) for other in others if other != own]
        found = {}
        for rank, ablation in kinds:
            name = f"{self.choices.method}, {rank}"
            name += "" if ablation == own else f", {ablation} ablation"
            found[name] = curve(
                *self.on(self.held), scores, rank=rank, ablation=ablation, memory=self.memory
            )
        return found

    @property
    def main(self) -> str:
        return f"{self.choices.method}, {self.choices.rank}"

    def controls(self, scores: EdgeScores, curves: dict[str, Curve]) -> dict[str, Array]:
        """(size, circuit) faithfulness of random circuits as large, and of those that the method
        finds where each pair's metric counts with a random sign."""
        choices, graph = self.choices, self.graph
        sizes = [c.n_edges for c in curves[self.main].evaluation.circuits]
        rng = np.random.default_rng(choices.seed)
        count = choices.random_circuits
        drawn = [
            graph.random(n, int(rng.integers(2**31))) if 0 < n < graph.n_edges else None
            for n in sizes
            for _ in range(count)
        ]
        kept = [circuit for circuit in drawn if circuit is not None]
        chance = np.full(len(drawn), np.nan)
        if kept:
            found = evaluate(
                *self.on(self.held), kept, ablation=choices.ablation, memory=self.memory
            )
            chance[[i for i, c in enumerate(drawn) if c is not None]] = found.faithfulness
        assert scores.flipped is not None
        null = [
            circuit
            for values in scores.flipped
            for circuit in curve_circuits(graph, values.astype(np.float64), rank=choices.rank)
        ]
        flipped = evaluate(*self.on(self.held), null, ablation=choices.ablation, memory=self.memory)
        return {
            "random circuits of the same size": chance.reshape(len(sizes), count),
            "signs flipped at random": flipped.faithfulness.reshape(FLIPS, -1).T,
        }

    def judged(self, circuit: Circuit) -> dict[str, tuple[float, float, float, int]]:
        """Faithfulness of the circuit where it was found and elsewhere, by ablation."""
        found: dict[str, tuple[float, float, float, int]] = {}
        own = self.choices.ablation
        places = [("where it was looked for", self.found, own)]
        held = "on pairs held out" if self.parted else "on the same pairs: too few to hold any out"
        places.append((held, self.held, own))
        others: tuple[Ablation, ...] = ("corrupted", "mean", "zero")
        places += [(f"{held}, {o} ablation", self.held, o) for o in others if o != own]
        for name, some, ablation in places:
            result = evaluate(*self.on(some), [circuit], ablation=ablation, memory=self.memory)
            mean, low, high = (float(x[0]) for x in result.interval(self.documents_of(some)))
            found[name] = (mean, low, high, len(some))
        return found

    # Write up.

    def faithfulness_grid(self, curves: dict[str, Curve], controls: dict[str, Array]) -> Grid:
        names = (*curves, *controls)
        values: list[Array] = []
        lower: list[Array] = []
        upper: list[Array] = []
        n: list[Array] = []
        for found in curves.values():
            mean, low, high = found.evaluation.interval(self.documents_of(self.held))
            for rows, new in zip((values, lower, upper), (mean, low, high), strict=True):
                rows.append(new)
            n.append(np.full(len(mean), len(self.held)))
        for table in controls.values():
            there = ~np.isnan(table).all(1)
            mean = np.full(len(table), np.nan)
            low, high = mean.copy(), mean.copy()
            if there.any():
                mean[there] = table[there].mean(1)
                low[there], high[there] = np.quantile(table[there], (0.025, 0.975), axis=1)
            for rows, new in zip((values, lower, upper), (mean, low, high), strict=True):
                rows.append(new)
            n.append(np.full(len(mean), len(self.held)))
        where = "pairs held out" if self.parted else "the pairs the scores are from"
        errors = [found.evaluation.error for found in curves.values()]
        worst = max(errors, key=lambda error: error["gap"])
        return Grid(
            "circuit.faithfulness",
            np.stack(values),
            (Axis("method", names), Axis("proportion", tuple(f"{p:g}" for p in PROPORTIONS))),
            "share of the difference",
            np.stack(lower),
            np.stack(upper),
            np.stack(n),
            error=dict(worst),
            about=f"Faithfulness on {where} of the first edges by score, dangling ones pruned; "
            f"other edges {self.choices.ablation} unless said. Of the controls the interval is the "
            "spread of the circuits. Mueller et al. 2025.",
        )

    def sizes_grid(self, curves: dict[str, Curve]) -> Grid:
        sizes = [[c.n_edges for c in found.evaluation.circuits] for found in curves.values()]
        return Grid(
            "circuit.sizes",
            np.array(sizes, dtype=np.float64),
            (
                Axis("method", tuple(curves)),
                Axis("proportion", tuple(f"{p:g}" for p in PROPORTIONS)),
            ),
            "edges",
            about=f"How many of the {self.graph.n_edges:,} edges are left after pruning.",
        )

    def edge_table(self, circuit: Circuit, scores: EdgeScores, exact: EdgeScores | None) -> Table:
        """The circuit's edges, strongest first."""
        own = replace(scores, values=np.where(circuit.mask, scores.values, np.nan))
        columns = dict(own.table(circuit.n_edges).columns)
        n = columns.pop("n")
        if exact is not None:
            ends = zip(columns["source"], columns["target"], strict=True)
            columns["exact"] = [_measured(exact[f"{source}->{target}"]) for source, target in ends]
        columns["n"] = n
        return Table(
            "circuit.edges",
            columns,
            f"The {circuit.n_edges} edges of the smallest circuit with a faithfulness of at least "
            f"{self.choices.faithful:g} where it was looked for. Scores by {scores.method}, in "
            f"{self.unit}: what is lost, by estimate, when the edge carries the corrupted "
            "activation; exact is that loss where it was patched.",
        )

    def node_table(self, circuit: Circuit, scores: EdgeScores, knocked: Knockouts) -> Table:
        """The circuit's nodes with what they are worth."""
        single = dict(zip(knocked.nodes, knocked.circuit[1:], strict=False))
        minimality = dict(zip(knocked.nodes, knocked.minimality, strict=True))
        order = sorted(knocked.nodes, key=lambda name: -minimality[name])
        node_scores = scores.nodes
        return Table(
            "circuit.nodes",
            {
                "node": order,
                "score": [float(node_scores[self.graph.node(name)]) for name in order],
                "faithfulness_without": [float(single[name]) for name in order],
                "minimality": [float(minimality[name]) for name in order],
            },
            "The circuit's nodes: attribution patching's score, the circuit's faithfulness without "
            "the node, and the largest change in faithfulness that knocking it out made (Wang et "
            "al. 2022, section 4.2).",
        )

    def summary(
        self,
        circuit: Circuit,
        scores: EdgeScores,
        exact: EdgeScores | None,
        curves: dict[str, Curve],
        judged: dict[str, tuple[float, float, float, int]],
        knocked: Knockouts,
    ) -> Table:
        """One row per figure."""
        rows: list[tuple[str, float, float | None, float | None, int, str]] = []
        held, found = len(self.held), len(self.found)
        share = circuit.n_edges / self.graph.n_edges
        rows.append(("edges", circuit.n_edges, None, None, found, f"{share * 100:.2g} % of all"))
        rows.append(("nodes", len(circuit.nodes), None, None, found, "embeddings among them"))
        for name, (mean, low, high, n) in judged.items():
            rows.append((f"faithfulness {name}", mean, low, high, n, "1 is the whole model"))
        for name, found_curve in curves.items():
            ends = found_curve.intervals(self.documents_of(self.held))
            areas = {"CPR": found_curve.cpr, "CMD": found_curve.cmd}
            for figure, value in areas.items():
                low, high = ends[figure.lower()]
                rows.append((f"{figure} ({name})", value, low, high, held, "MIB"))
        incomplete = knocked.incompleteness
        singles, rest = incomplete[1 : len(knocked.nodes) + 1], incomplete[len(knocked.nodes) + 1 :]
        rows.append(
            (
                "incompleteness, single nodes",
                float(singles.mean()),
                None,
                None,
                held,
                f"at most {singles.max():.2f}; 0 is complete",
            )
        )
        if len(rest):
            rows.append(
                (
                    "incompleteness, sets of nodes",
                    float(rest.mean()),
                    None,
                    None,
                    held,
                    f"at most {rest.max():.2f}, by a greedy search among them",
                )
            )
        least = int(knocked.minimality.argmin())
        rows.append(
            (
                "minimality, least of a node",
                float(knocked.minimality[least]),
                None,
                None,
                held,
                knocked.nodes[least],
            )
        )
        if scores.replicates is not None:
            mean, low, high = scores.stability(circuit.n_edges, self.choices.rank)
            rows.append(
                (
                    "edge overlap under resampling",
                    mean,
                    low,
                    high,
                    found,
                    f"Jaccard of the first {circuit.n_edges} edges",
                )
            )
        if exact is not None:
            drawn = np.where(self.drawn, exact.values, np.nan)
            rho, n = agreement(scores.values, drawn)
            rows.append(
                (
                    "rank correlation with exact patching",
                    rho,
                    None,
                    None,
                    found,
                    f"Spearman over {n} edges drawn at random",
                )
            )
        columns = ("figure", "value", "lower", "upper", "n", "about")
        return Table(
            "circuit.summary",
            {
                name: [_measured(row[i]) if i in (1, 2, 3) else row[i] for row in rows]
                for i, name in enumerate(columns)
            },
            "The circuit's evidence in figures; n counts pairs.",
        )


def _measured(value: Any) -> float | None:
    """None where a number was not measured."""
    return None if value is None or np.isnan(value) else float(value)


def split(n: int, documents: Sequence[str] | None, seed: int) -> tuple[list[int], list[int]]:
    """Pairs to find a circuit on and pairs to judge it on, whole documents on one side.

    All on both sides where there are fewer than `FEWEST`.
    """
    everything = list(range(n))
    unit = units_of(n, documents)
    if n < FEWEST or len(set(unit.tolist())) < 2:
        return everything, everything
    order = np.random.default_rng(seed).permutation(np.unique(unit))
    size = {u: int((unit == u).sum()) for u in order.tolist()}
    taken: set[int] = set()
    held = 0
    for u in order.tolist():
        if held + size[u] <= n // 2:
            taken.add(u)
            held += size[u]
    if not taken:
        taken.add(int(order[0]))
    judged = [i for i in everything if unit[i] in taken]
    return [i for i in everything if unit[i] not in taken], judged


def some_pairs(pairs: Pairs, some: list[int]) -> Pairs:
    """Some of the pairs."""
    roles, theirs = pairs.roles, pairs.corrupted_roles
    return Pairs(
        pairs.clean[some],
        pairs.corrupted[some],
        None if roles is None else [roles[i] for i in some],
        None if theirs is None else [theirs[i] for i in some],
        None if pairs.labels is None else tuple(pairs.labels[i] for i in some),
    )
