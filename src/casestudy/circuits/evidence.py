"""How far can a circuit be trusted?

A circuit is found on half of the pairs and evaluated on the other half (on all pairs if there are
too few to split). Each step gives one kind of evidence, as in the circuits papers:

- `scores`: every edge's score, resampled if there are enough prompts, and with random signs;
- `plan`: what the following steps cost on this machine, and how much of them fits into
  `Budget.seconds` (see `cost`);
- `exact`: exact patching of the highest-ranked edges and of a random sample;
- `curves`: faithfulness by size, ranked by absolute and by signed score, and with the other edges
  corrupted, at their mean or at zero;
- `controls`: random circuits of the same sizes, and the circuits that the method finds if each
  pair's metric is multiplied by a random sign, so that there is nothing to find;
- `circuit`: the smallest circuit with a required faithfulness;
- `faithfulness`: of that circuit, on the pairs for the search and on the held-out pairs;
- `knockouts`: its completeness and minimality.

Each step is a function of earlier values. `CARD_STEPS` lists the steps in order with their inputs,
and `gather` runs those without a value. `packed` turns every value into arrays and plain data, so
a long search can be stored step by step and continued.

Assumes pairs of equal length that differ. Cost: two or three attributions, and a few hundred
circuit evaluations, most of them small (see `evaluate_circuit`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.cost import (
    FLIPS,
    CostProbe,
    Extent,
    Plan,
    make_plan,
    measure_costs,
)
from casestudy.circuits.curves import Curve, curve_circuits, curves, smallest_by
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import Method, attribute_edges
from casestudy.circuits.evaluate import CIRCUIT_BUDGET, EdgeAblation, Evaluation, Evaluator
from casestudy.circuits.graph import Circuit, Graph, Mask, Rank
from casestudy.circuits.knockouts import Knockouts, knock_out_by
from casestudy.circuits.step_clock import StepClock
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Planned, Progress, Tell
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError, one_of
from casestudy.measure.attribution_patching import STEPS, check_steps
from casestudy.measure.halves import Half, split
from casestudy.measure.pairs import Pairs
from casestudy.model.model import Model
from casestudy.results.stats import BOOTSTRAP_FROM, ratio_of_means

_FIRST_EDGES = 30
"""How many of the highest-ranked edges are patched exactly, in addition to the random sample."""


@dataclass(frozen=True)
class Choices:
    """The settings of the search for a circuit.

    Attributes:
        method, steps: of the scores.
        rank: by absolute or by signed score.
        ablation: what edges outside the circuit carry.
        faithful: the faithfulness that the smallest circuit must reach.
        random_circuits: number of random circuits per size.
        exact_edges: number of random edges that are patched exactly for comparison.
        replicates: number of bootstrap replicates over prompts.
        seed: of all random choices.
    """

    method: Method = "eap-ig-inputs"
    steps: int = STEPS
    rank: Rank = "absolute"
    ablation: EdgeAblation = "corrupted"
    faithful: float = 0.85
    random_circuits: int = 10
    exact_edges: int = 200
    replicates: int = 100
    seed: int = 0

    @property
    def other_ablations(self) -> list[EdgeAblation]:
        """The other ablations, which the evidence compares with."""
        kinds: tuple[EdgeAblation, ...] = get_args(EdgeAblation)
        return [kind for kind in kinds if kind != self.ablation]

    @property
    def curve_name(self) -> str:
        """The name of the curve with the settings of the search."""
        return f"{self.method}, {self.rank}"


def choices_of(**typed: Any) -> Choices:
    """Choices from the values that a user typed.

    Raises: MeasureError for a name that is not one of those allowed, or steps out of range.
    """
    for name, allowed in (
        ("method", get_args(Method)),
        ("rank", get_args(Rank)),
        ("ablation", get_args(EdgeAblation)),
    ):
        if name in typed:
            one_of(name, typed[name], allowed, MeasureError)
    if "steps" in typed:
        check_steps(typed["steps"])
    return Choices(**typed)


@dataclass(frozen=True)
class Question:
    """The input of a search for a circuit.

    Attributes:
        model: the decoder.
        graph: of the edges that are scored.
        search: the pairs for the search.
        judge: the pairs for the evaluation.
        held_out: whether `judge` has other pairs than `search`.
        choices: the settings of the search.
        budget: memory and checks; random choices use the seed of `choices`.
        progress: called with the progress within a step.
        evaluators: of each half and ablation, shared by all steps.
    """

    model: Model
    graph: Graph
    search: Half
    judge: Half
    held_out: bool
    choices: Choices
    budget: Budget = DEFAULT_BUDGET
    progress: Tell | None = None
    evaluators: dict[tuple[int, EdgeAblation], tuple[Half, Evaluator]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def of(
        cls,
        model: Model,
        everything: Half,
        choices: Choices,
        *,
        graph: Graph | None = None,
        budget: Budget = DEFAULT_BUDGET,
    ) -> Question:
        """Split the pairs into halves; each document is in one half."""
        search, judge = split(len(everything), everything.documents, choices.seed)
        graph = Graph(model.config) if graph is None else graph
        halves = everything[search], everything[judge]
        return cls(model, graph, *halves, search != judge, choices, budget)

    @property
    def drawing(self) -> Budget:
        """The budget for random choices: with the seed of `choices`."""
        return replace(self.budget, seed=self.choices.seed)

    @property
    def circuit_budget(self) -> Budget:
        """The budget of one evaluation of circuits."""
        return self.budget.checking(CIRCUIT_BUDGET.check)

    def with_judges(self, most: int | None) -> Question:
        """The same with at most so many of the pairs for the evaluation, the first ones."""
        return self if most is None else replace(self, judge=self.judge.first(most))

    def evaluator(self, half: Half, ablation: EdgeAblation) -> Evaluator:
        """Evaluates circuits on these pairs; made once for all steps."""
        key = id(half), ablation  # the half is kept as well, so that no other takes its id
        if key not in self.evaluators:
            on = self.model, self.graph, half.pairs, half.metric
            self.evaluators[key] = half, Evaluator(*on, ablation, self.budget.memory)
        return self.evaluators[key][1]

    def on(self, half: Half) -> tuple[Model, Pairs, Contrast | Metric]:
        """The first arguments of every function that measures these pairs."""
        return self.model, half.pairs, half.metric


@dataclass(frozen=True)
class ExactSample:
    """Edges that were patched exactly.

    Attributes:
        drawn: (sender, receiver) the random sample, without the highest-ranked edges.
        scores: the exact scores of both.
    """

    drawn: Mask
    scores: EdgeScores


@dataclass(frozen=True)
class Faithfulness:
    """A circuit's faithfulness on some pairs.

    Attributes:
        mean, lower, upper: with the 95 % interval over prompts.
        n: pairs.
    """

    mean: float
    lower: float
    upper: float
    n: int


@dataclass(frozen=True)
class Evidence:
    """Every step's value; each attribute has the name of its step.

    Attributes:
        scores: of every edge.
        plan: of the steps that follow.
        exact: None if the graph has neurons, or no edge was to be patched.
        curves: by rank and ablation.
        controls: (size, circuit) faithfulness of each kind of control; NaN for sizes of no or all
            edges.
        circuit: the smallest circuit with the required faithfulness on the search pairs.
        faithfulness: of the circuit, by pairs and ablation.
        knockouts: of the circuit.
    """

    scores: EdgeScores
    plan: Plan
    exact: ExactSample | None
    curves: dict[str, Curve]
    controls: dict[str, NDArray[np.float64]]
    circuit: Circuit
    faithfulness: dict[str, Faithfulness]
    knockouts: Knockouts


def score_edges(question: Question) -> EdgeScores:
    """Every edge's score, with bootstrap replicates if there are enough prompts, and the means
    with random signs."""
    choices, search = question.choices, question.search
    n = len(search)
    rng = np.random.default_rng(choices.seed)
    scores = attribute_edges(
        *question.on(search),
        choices.method,
        direction="noising",
        graph=question.graph,
        steps=choices.steps,
        replicates=choices.replicates if n >= BOOTSTRAP_FROM else 0,
        documents=search.documents,
        signs=rng.choice((-1, 1), (FLIPS, n)).tolist(),
        budget=question.drawing,
        progress=question.progress,
    )
    if np.isnan(ratio_of_means(scores.corrupted, scores.clean, scores.corrupted)):
        raise MeasureError(
            "the metric is the same for clean and corrupted prompts on average: there is no "
            "difference that a circuit could carry",
            hint="Choose another metric, or edits that undo the behaviour",
        )
    return scores


def plan_evidence(question: Question, scores: EdgeScores) -> Plan:
    """How much of the following steps is measured, and what it costs on this machine."""
    choices = question.choices
    ablations = (choices.ablation, *choices.other_ablations)
    most = next(kind for kind in ablations[::-1] if kind != "corrupted")
    own, other = (
        CostProbe(question.evaluator(question.judge, kind), question.drawing)
        for kind in (choices.ablation, most)
    )
    costs = measure_costs(own, other, scores, question.search, ablations, rank=choices.rank)
    asked = Extent(choices.random_circuits, choices.exact_edges)
    return make_plan(costs, asked, question.budget.seconds, workers=own.evaluator.workers)


def patch_sample(question: Question, scores: EdgeScores, plan: Plan) -> ExactSample | None:
    """Exact noising of the highest-ranked edges and a random sample; None for neurons."""
    graph, choices, count = question.graph, question.choices, plan.extent.exact_edges
    if any(graph.neurons.values()) or not count:
        return None
    rng = np.random.default_rng(choices.seed)
    edges = np.flatnonzero(graph.real)
    sample = rng.choice(edges, min(count, len(edges)), replace=False)
    drawn = np.zeros_like(graph.real)
    drawn.ravel()[sample] = True
    first = graph.top(scores.ranked, _FIRST_EDGES, choices.rank).mask
    exact = patch_edges(
        *question.on(question.search),
        drawn | first,
        direction="noising",
        budget=question.budget,
        progress=question.progress,
    )
    return ExactSample(drawn, exact)


def size_curves(question: Question, scores: EdgeScores) -> dict[str, Curve]:
    """Faithfulness by size, for each rank and ablation."""
    choices = question.choices
    ranks: tuple[Rank, ...] = get_args(Rank)
    budget, judge, tell = question.circuit_budget, question.judge, question.progress
    own = question.evaluator(judge, choices.ablation)
    found = curves(own, scores, ranks, budget=budget, progress=tell)
    named = {f"{choices.method}, {rank}": one for rank, one in zip(ranks, found, strict=True)}
    for ablation in choices.other_ablations:
        other = question.evaluator(judge, ablation)
        (one,) = curves(other, scores, [choices.rank], budget=budget, progress=tell)
        named[f"{choices.curve_name}, {ablation} ablation"] = one
    return named


def control_circuits(
    question: Question, scores: EdgeScores, plan: Plan, curves: dict[str, Curve]
) -> dict[str, NDArray[np.float64]]:
    """(size, circuit) faithfulness of random circuits of the curve's sizes, and of circuits that
    the method finds if each pair's metric is multiplied by a random sign."""
    sizes = [c.n_edges for c in curves[question.choices.curve_name].evaluation.circuits]
    assert scores.flipped is not None
    flipped = [
        circuit
        for values in scores.flipped
        for circuit in curve_circuits(
            question.graph, scores.towards * values.astype(np.float64), rank=question.choices.rank
        )
    ]
    question = question.with_judges(plan.extent.pairs)
    drawn = _random_circuits(question, sizes, plan.extent.random_circuits)
    found = _judged(question, [*flipped, *drawn.values()], parts=2).faithfulness
    values = np.full((len(sizes), plan.extent.random_circuits), np.nan)
    for place, value in zip(drawn, found[len(flipped) :], strict=True):
        values[place] = value
    return {
        "random circuits of the same size": values,
        "signs flipped at random": found[: len(flipped)].reshape(FLIPS, -1).T,
    }


def _random_circuits(
    question: Question, sizes: Sequence[int], count: int
) -> dict[tuple[int, int], Circuit]:
    """Random circuits by (size, number), without the sizes of no edge or all edges."""
    graph = question.graph
    rng = np.random.default_rng(question.choices.seed)
    return {
        (i, j): graph.random(n, int(rng.integers(2**31)))
        for i, n in enumerate(sizes)
        for j in range(count)
        if 0 < n < graph.n_edges
    }


def _judged(question: Question, circuits: list[Circuit], parts: int = 1) -> Evaluation:
    """Circuits on the pairs for evaluation, each part of them with a check as large as any."""
    own = question.evaluator(question.judge, question.choices.ablation)
    check = question.circuit_budget.check * parts
    return own.evaluate(circuits, replace(question.budget, check=check), question.progress)


def smallest_circuit(question: Question, scores: EdgeScores) -> Circuit:
    """The smallest circuit with the required faithfulness on the search pairs."""
    choices = question.choices
    return smallest_by(
        question.evaluator(question.search, choices.ablation),
        scores,
        choices.faithful,
        rank=choices.rank,
        budget=question.circuit_budget,
        progress=question.progress,
    )


def judge_circuit(
    question: Question, scores: EdgeScores, circuit: Circuit
) -> dict[str, Faithfulness]:
    """Faithfulness of the circuit on the search pairs and on the held-out pairs, by ablation, and
    that of circuits of its size which the method finds with random signs (their `lower` and
    `upper` are the smallest and the largest)."""
    choices, judge = question.choices, question.judge
    others = "on the same pairs: too few to hold any out"
    if question.held_out:
        others = "on pairs held out"
    runs: dict[str, tuple[Half, EdgeAblation]] = {
        "where it was looked for": (question.search, choices.ablation),
        others: (judge, choices.ablation),
    }
    for ablation in choices.other_ablations:
        runs[f"{others}, {ablation} ablation"] = (judge, ablation)
    flipped = [
        _of_size(question, scores.towards * table.astype(np.float64), circuit.n_edges)
        for table in (() if scores.flipped is None else scores.flipped)
    ]
    values, by_chance = {}, np.empty(0)
    for name, (half, ablation) in runs.items():
        more = flipped if name == others else []
        found = question.evaluator(half, ablation).evaluate(
            [circuit, *more], question.circuit_budget
        )
        mean, lower, upper = (float(x[0]) for x in found.interval(half.documents))
        values[name] = Faithfulness(mean, lower, upper, len(half))
        by_chance = found.faithfulness[1:] if more else by_chance
    if len(by_chance):
        ends = float(by_chance.mean()), float(by_chance.min()), float(by_chance.max())
        values[f"{others}, signs flipped at random"] = Faithfulness(*ends, len(judge))
    return values


def _of_size(question: Question, scores: NDArray[np.float64], n_edges: int) -> Circuit:
    """The highest-ranked edges that leave `n_edges` edges after pruning."""
    graph, rank = question.graph, question.choices.rank

    order = graph.order(scores, rank)
    n = bisect_left(
        range(graph.n_edges), n_edges, key=lambda n: graph.prefix(order, n).pruned().n_edges
    )
    return graph.prefix(order, n).pruned()


def knock_out_nodes(
    question: Question, scores: EdgeScores, plan: Plan, circuit: Circuit
) -> Knockouts:
    """Completeness and minimality of the circuit on the pairs for evaluation."""
    question, extent = question.with_judges(plan.extent.pairs), plan.extent
    return knock_out_by(
        question.evaluator(question.judge, question.choices.ablation),
        circuit,
        importance=scores.nodes,
        most_nodes=extent.nodes,
        random_sets=extent.random_sets,
        greedy_steps=extent.greedy_steps,
        budget=question.drawing,
        progress=question.progress,
    )


_PLAN = "plan"


@dataclass(frozen=True)
class CardStep:
    """One step of a card.

    Attributes:
        name: of its value, a field of `Evidence`.
        title: for progress.
        run: computes the step's value from the question and the values named in `needs`.
        needs: earlier steps.
    """

    name: str
    title: str
    run: Callable[..., Any]
    needs: tuple[str, ...] = ()


CARD_STEPS = (
    CardStep("scores", "scoring every edge", score_edges),
    CardStep(_PLAN, "timing a few circuits", plan_evidence, ("scores",)),
    CardStep("exact", "patching a sample of edges exactly", patch_sample, ("scores", _PLAN)),
    CardStep("curves", "curves", size_curves, ("scores",)),
    CardStep("controls", "controls", control_circuits, ("scores", _PLAN, "curves")),
    CardStep("circuit", "the smallest circuit", smallest_circuit, ("scores",)),
    CardStep("faithfulness", "its faithfulness elsewhere", judge_circuit, ("scores", "circuit")),
    CardStep(
        "knockouts",
        "completeness and minimality",
        knock_out_nodes,
        ("scores", _PLAN, "circuit"),
    ),
)
"""The steps, in an order in which each comes after those it needs."""

STAGE = "circuit"
"""`Progress.stage` of a card's steps; the note is the title of the step that begins."""


def writing_up() -> Progress:
    """The progress of a card when all steps are done."""
    return Progress(STAGE, len(CARD_STEPS), len(CARD_STEPS) + 1, "writing it up")


def take_steps(
    question: Question, values: dict[str, Any], progress: Tell | None = None
) -> Generator[tuple[str, Any], None, None]:
    """Run the steps without a value, add each value to `values`, and yield it with its name.

    Args:
        question: of the evidence.
        values: by step, of the same question.
        progress: called when a step begins, and with the progress within it.

    Raises: as `gather`.
    """
    clock = StepClock(values, _PLAN)
    for i, step in enumerate(CARD_STEPS):
        if step.name in values:
            continue
        asked = question
        if progress is not None:
            begins = Progress(STAGE, i, len(CARD_STEPS) + 1, step.title, left=clock.left(step.name))
            progress(begins)
            tell = partial(clock.tell, progress, begins, step.name)
            asked = replace(question, progress=tell)
        clock.begin()
        values[step.name] = step.run(asked, *(values[name] for name in step.needs))
        clock.end(step.name)
        if step.name == _PLAN and progress is not None:
            said = f"circuit: {values[_PLAN]}"
            progress(Planned(STAGE, i, len(CARD_STEPS) + 1, step.title, words=said))
        yield step.name, values[step.name]


def gather(
    question: Question,
    known: Mapping[str, Any] | None = None,
    *,
    keep: Callable[[str, Any], None] | None = None,
    progress: Tell | None = None,
) -> Evidence:
    """Run the steps without a known value.

    Args:
        question: of the evidence.
        known: values of earlier calls by step, of the same question.
        keep: called with each step's name and its value as soon as it is computed; `packed.pack`
            makes the value storable.
        progress: called when a step begins, and with the progress within it.

    Raises: as `attribute_edges` and `evaluate_circuit`; MeasureError if no circuit is faithful
        enough, or a known value belongs to no step.
    """
    values = dict(known or {})
    names = [step.name for step in CARD_STEPS]
    if unknown := values.keys() - set(names):
        raise MeasureError(f"no step is named {min(unknown)!r}", allowed=", ".join(names))
    for name, value in take_steps(question, values, progress):
        if keep is not None:
            keep(name, value)
    return Evidence(**values)
