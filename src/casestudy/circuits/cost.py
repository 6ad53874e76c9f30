"""What does a circuit's evidence cost on this machine, and how much of it fits into a limit?

Once every edge has a score, circuits of a few sizes are evaluated on the pairs of the evaluation,
by the search's ablation and by one that computes more tokens, and a few edges are patched on a few
pairs, each timed. This gives the seconds per circuit by size and number of tokens, from which the
time of the planned evaluations is estimated. If it exceeds a limit, the parts of the evidence that
say least per second are made smaller, by the steps of `LADDER`: random circuits, edges patched
exactly, nodes knocked out, and in the end the pairs of the controls and the knockouts. Scores,
curves, the circuit and its faithfulness are always measured on all pairs.

Assumes pairs of equal length that differ. Cost: a dozen circuits, and a few edges on a few pairs;
the runs that all circuits share are kept for the steps that follow. Times are of the processor, so
that other processes hardly change them, divided by what several threads gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.curves import FIRST_SIZES, NEXT_SIZES, ROUNDS, curve_circuits
from casestudy.circuits.edge_patching import patch_edges
from casestudy.circuits.edge_scores import differing
from casestudy.circuits.evaluate import CIRCUIT_BUDGET, EdgeAblation, Evaluator
from casestudy.circuits.graph import Circuit, Rank
from casestudy.circuits.knockouts import GREEDY_STEPS, MINIMALITY_SETS, MOST_NODES, RANDOM_SETS
from casestudy.circuits.plain import Plain
from casestudy.engine.packing import Budget
from casestudy.measure.halves import Half
from casestudy.measure.pairs import Pairs

FLIPS = 5
"""The number of controls with random signs."""

_GUESS = 0.02
"""The size of the smallest circuit, as a share of all edges, before it is known."""

_PROBED = (_GUESS, 0.1, 0.5)
"""The shares of all edges at which circuits are timed: the highest-ranked and a random one."""

_PAIRS = 4
"""The most pairs that edges are timed on."""

_EDGES = (8, 40)
"""How many edges are patched exactly in the timed calls."""


_NEAR, _KNOCKED_OUT = 0.8, 0.6
"""The share of a circuit's own time among circuits of near sizes, and among knockouts of one: as
measured on `tiny` and SmolLM2-135M."""

_FURTHER = 0.7
"""What each further thread adds to the speed of one: measured with two, of small models."""


@dataclass(frozen=True)
class Extent:
    """How much of the evidence is gathered.

    Attributes:
        random_circuits: per size.
        exact_edges: drawn at random and patched exactly.
        nodes: the most that are knocked out one by one.
        random_sets: of nodes, knocked out together.
        greedy_steps: of the search for the worst set.
        pairs: the most that controls and knockouts are evaluated on; None for all.
    """

    random_circuits: int
    exact_edges: int
    nodes: int = MOST_NODES
    random_sets: int = RANDOM_SETS
    greedy_steps: int = GREEDY_STEPS
    pairs: int | None = None

    def within(self, other: Extent) -> Extent:
        """The smaller one of each."""
        least = {}
        for f in fields(self):
            both = [v for v in (getattr(self, f.name), getattr(other, f.name)) if v is not None]
            least[f.name] = min(both, default=None)
        return Extent(**least)  # type: ignore[arg-type]


LADDER = (
    Extent(5, 100, 16),
    Extent(3, 50, 12),
    Extent(2, 50, 8, 10, 2),
    Extent(1, 20, 8, 10, 2, pairs=8),
    Extent(1, 20, 4, 4, 1, pairs=6),
)
"""What is asked is cut down to these in turn, until it fits."""

_NAMES = {
    "random_circuits": "random circuits of each size",
    "exact_edges": "randomly drawn edges patched exactly",
    "nodes": "nodes knocked out",
    "random_sets": "random sets of nodes knocked out",
    "greedy_steps": "steps of the search for the worst set",
    "pairs": "pairs for controls and knockouts",
}


@dataclass(frozen=True)
class Plan:
    """What is gathered, and what that was estimated to cost.

    Attributes:
        extent: how much is gathered.
        evaluations: of circuits, each on all prompts of its step.
        seconds: computing time on this machine, estimated before the first of them.
        limit: the most seconds; None for no limit.
        limited: what was made smaller, in words: "random circuits of each size: 3 of 10".
        steps: the seconds of each step.
    """

    extent: Extent
    evaluations: int
    seconds: float
    limit: float | None = None
    limited: tuple[str, ...] = ()
    steps: Mapping[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the limit."""
        return self.limit is None or self.seconds <= self.limit

    def __str__(self) -> str:
        said = f"planned {self.evaluations:,} evaluations of circuits, about "
        said += f"{spoken_seconds(self.seconds)} of computing on this machine"
        if self.limited:
            assert self.limit is not None
            said += f"; limited to fit {spoken_seconds(self.limit)}: {', '.join(self.limited)}"
        if not self.fits:
            assert self.limit is not None
            said += f"; the least there is takes longer than {spoken_seconds(self.limit)}"
        return said

    @property
    def about(self) -> dict[str, Any]:
        """As stored in a card's `about`."""
        return {
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 1),
            "limit": self.limit,
            "limited": list(self.limited),
            "words": str(self),
        }


def spoken_seconds(seconds: float) -> str:
    """A time in words: "8 s", "3 min", "1.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


def make_plan(costs: Costs, asked: Extent, limit: float | None = None, *, workers: int = 1) -> Plan:
    """The largest extent that fits into the limit; the smallest one if none does.

    Args:
        costs: of this machine.
        asked: the extent without a limit.
        limit: seconds.
        workers: threads that compute at the same time.
    """
    gain = 1 + _FURTHER * (workers - 1)
    asked = asked.within(replace(asked, pairs=costs.n_judge))
    tried = [asked, *(asked.within(step) for step in LADDER)] if limit is not None else [asked]
    for extent in tried:
        evaluations, processor = costs.of(extent)
        steps = {name: seconds / gain for name, seconds in processor.items()}
        seconds = sum(steps.values())
        if limit is None or seconds <= limit:
            break
    limited = tuple(
        f"{name}: {getattr(extent, key)} of {getattr(asked, key)}"
        for key, name in _NAMES.items()
        if getattr(extent, key) != getattr(asked, key)
    )
    return Plan(extent, evaluations, seconds, limit, limited, steps)


@dataclass(frozen=True)
class _Evaluated:
    """Circuits to evaluate.

    Attributes:
        sizes: edges of each.
        whole: how many more are the whole model without some nodes; one that lacks a single node
            counts half, as it is computed from that node's layer on.
        rows: tokens that are computed of the pairs.
        calls: of `evaluate_circuit`.
        checked: circuits on one prompt that are computed again the plain way.
        opened: tokens of the pairs whose shared runs are made first.
        own: the share of a circuit's time that is left where the circuits have much in common.
    """

    sizes: Sequence[int]
    rows: float
    calls: int = 1
    checked: int = 0
    whole: float = 0.0
    opened: float = 0.0
    own: float = 1.0


@dataclass(frozen=True)
class Line:
    """A time that grows with the number of tokens, by two measurements.

    Attributes:
        rows, seconds: of either measurement.
    """

    rows: tuple[float, float]
    seconds: tuple[float, float]

    def at(self, rows: float) -> float:
        """Seconds for so many tokens; in proportion beyond both, and where both have as many."""
        (few, many), (short, long) = self.rows, self.seconds
        if many < 1.5 * few:
            return short * rows / few
        if rows > many:  # a slope between two short times says little about a long one
            return max(short, long) * rows / many
        slope = max(0.0, long - short) / (many - few)
        return max(0.0, short + slope * (rows - few))


@dataclass(frozen=True)
class Costs:
    """Processor seconds on this machine, and the sizes of the circuits to come.

    Attributes:
        n_edges: of the graph.
        n_judge: pairs of the evaluation.
        tokens: of the pairs of the search and of the evaluation.
        rows: how many of these are computed, for each ablation.
        ablations: the ablation of the search, then the others.
        opened: the ablations by which the evaluation's pairs have been run already.
        sizes: edges of the curve's circuits.
        nodes: of a circuit as large as the smallest faithful one is guessed to be.
        probed, seconds: of a circuit with so many edges, on the pairs that were timed.
        growth: with the number of tokens, of one circuit's seconds.
        call: of what an evaluation's circuits share.
        opening: of what the evaluations of the same pairs share, for each token.
        whole: seconds of the whole model without half of a circuit's nodes, on the pairs that were
            timed.
        check: seconds per circuit that is computed again the plain way.
        edges: seconds to patch some edges exactly on the pairs of the search: what they share, and
            of each.
    """

    n_edges: int
    n_judge: int
    tokens: tuple[float, float]
    rows: Mapping[EdgeAblation, tuple[float, float]]
    ablations: tuple[EdgeAblation, ...]
    opened: tuple[EdgeAblation, ...]
    sizes: tuple[int, ...]
    nodes: int
    probed: tuple[int, ...]
    seconds: tuple[float, ...]
    growth: Line
    call: Line
    opening: float
    whole: float
    check: float
    edges: tuple[float, float]

    def of(self, extent: Extent) -> tuple[int, dict[str, float]]:
        """Evaluations of circuits, and each step's seconds."""
        steps = self._steps(extent)
        evaluations = sum(len(p.sizes) for parts in steps.values() for p in parts)
        # of each knockout the circuit and the model
        evaluations += 1 + (1 + extent.greedy_steps) * self.tried(extent) + extent.random_sets
        seconds = {name: sum(map(self.of_part, parts)) for name, parts in steps.items()}
        shared, each = self.edges
        exact = shared + each * extent.exact_edges if extent.exact_edges else 0.0
        return evaluations, {"exact": exact, **seconds}

    def tried(self, extent: Extent) -> int:
        """Nodes that are knocked out one by one."""
        return min(extent.nodes, self.nodes)

    def of_part(self, part: _Evaluated) -> float:
        """Seconds of one step's evaluations."""
        each = np.interp(np.asarray(part.sizes, dtype=np.float64), self.probed, self.seconds)
        circuits = float(each.sum()) + part.whole * self.whole
        grown = self.growth.at(part.rows) / (self.growth.seconds[0] or 1.0)
        shared = part.calls * self.call.at(part.rows) + part.opened * self.opening
        return shared + grown * circuits * part.own + part.checked * self.check

    def _steps(self, extent: Extent) -> dict[str, list[_Evaluated]]:
        own, *others = self.ablations
        search, judge = self.rows[own]
        few = judge * min(1.0, (extent.pairs or self.n_judge) / self.n_judge)
        guess = round(self.n_edges * _GUESS)
        checked = CIRCUIT_BUDGET.check
        inside = [size for size in self.sizes if 0 < size < self.n_edges]
        nodes, steps = self.tried(extent), extent.greedy_steps
        single = 1 + (1 + steps) * nodes
        # without half of its nodes a circuit has about a quarter of its edges
        halved = extent.random_sets + 2 * nodes * min(MINIMALITY_SETS, extent.random_sets)
        knockouts = [guess] * single + [guess // 4] * halved
        tried = FIRST_SIZES + (ROUNDS - 1) * NEXT_SIZES
        first = [round(n) for n in np.geomspace(1, self.n_edges, FIRST_SIZES)]
        return {
            "curves": [
                _Evaluated([*self.sizes, *self.sizes], judge, 1, 2 * checked),
                *(
                    _Evaluated(
                        self.sizes,
                        self.rows[kind][1],
                        1,
                        checked,
                        opened=0.0 if kind in self.opened else self.tokens[1],
                    )
                    for kind in others
                ),
            ],
            "controls": [
                _Evaluated(
                    [*inside * extent.random_circuits, *list(self.sizes) * FLIPS],
                    few,
                    1,
                    2 * checked,
                    opened=self.tokens[1] * few / judge if few < judge else 0.0,
                ),
            ],
            "circuit": [
                _Evaluated(
                    [*first, *[guess] * (tried - FIRST_SIZES)],
                    search,
                    ROUNDS,
                    opened=self.tokens[0],
                    own=_NEAR,
                ),
            ],
            "faithfulness": [
                _Evaluated([guess], search, 1, checked),
                _Evaluated([guess] * (1 + FLIPS), judge, 1, checked),
                *(_Evaluated([guess], self.rows[kind][1], 1, checked) for kind in others),
            ],
            "knockouts": [
                _Evaluated(
                    knockouts,
                    few,
                    3 + steps,
                    2 * (3 + steps),
                    single / 2 + extent.random_sets,
                    own=_KNOCKED_OUT,
                ),
            ],
        }


class CostProbe:
    """Times evaluations.

    Args:
        evaluator: keeps what its evaluations share, for the steps that are planned.
        budget: memory and seed.
    """

    def __init__(self, evaluator: Evaluator, budget: Budget) -> None:
        self.evaluator, self.budget = evaluator, budget
        self.rows = _rows(evaluator.pairs, evaluator.ablation)
        self.opening = self.seconds([evaluator.graph.empty])
        """Seconds of the first evaluation, beyond those of its circuits."""

    def seconds(self, circuits: Sequence[Circuit], check: int = 0) -> float:
        """Of one evaluation."""
        budget = self.budget.checking(check)
        return self.of(lambda: self.evaluator.evaluate(circuits, budget))

    def of(self, call: Callable[[], Any]) -> float:
        """Processor seconds of a call: what is timed is too little for several threads to share
        well. Elsewhere than on a CPU by the clock."""
        if self.evaluator.model.device.type != "cpu":
            return seconds_of(call)
        begun = time.process_time()
        call()
        return time.process_time() - begun

    def line(self, circuits: Sequence[Circuit]) -> tuple[float, float]:
        """Seconds that circuits share in one evaluation, and each one's own."""
        distinct = list(dict.fromkeys(circuits))
        one = self.seconds(distinct[:1])
        if len(distinct) == 1:
            return 0.0, one
        each = max(0.0, self.seconds(distinct) - one) / (len(distinct) - 1)
        return max(0.0, one - each), each

    def checking(self, circuit: Circuit) -> float:
        """Seconds to compute a circuit the plain way on a prompt of middling length."""
        on = self.evaluator
        lengths = on.pairs.clean.lengths.argsort().tolist()
        prompt = lengths[len(lengths) // 2]
        with torch.no_grad():
            return self.of(lambda: Plain(on.ablated, on.metric, circuit, prompt).value())


def measure_costs(
    own: CostProbe,
    other: CostProbe,
    scores: EdgeScores,
    search: Half,
    ablations: Sequence[EdgeAblation] = get_args(EdgeAblation),
    *,
    rank: Rank = "absolute",
) -> Costs:
    """Time a few circuits and edges.

    Args:
        own: on the pairs of the evaluation, by the search's ablation.
        other: on the same, by an ablation that computes more tokens.
        scores: of every edge.
        search: the pairs of the search.
        ablations: that of the search, then the others.
        rank: of the edges.
    """
    judge = own.evaluator.pairs
    graph = scores.graph
    each, probed = [0.0], [0]
    for share in _PROBED:
        n = round(graph.n_edges * share)
        # they share little: neither do the circuits to come
        found = [graph.top(scores.ranked, n, rank).pruned(), graph.random(n, 0).pruned()]
        shared, seconds = own.line(found)
        probed.append(max(probed[-1] + 1, sum(c.n_edges for c in found) // len(found)))
        each.append(max(each[-1], seconds))
        if share == _GUESS:
            guessed, mine, (theirs, more) = found[0], shared, other.line(found)
    nodes = np.flatnonzero(guessed.senders)[1:].tolist()
    halves = [graph.full.without(some) for some in (nodes[::2], nodes[1::2]) if some]
    whole = max(0.0, own.seconds(halves) - mine) / len(halves) if halves else 0.0
    ends = own.rows, other.rows
    opening = max(0.0, own.opening - mine, other.opening - theirs)
    tokens = _rows(search.pairs, "zero"), _rows(judge, "zero")
    return Costs(
        graph.n_edges,
        len(judge),
        tokens,
        {kind: (_rows(search.pairs, kind), _rows(judge, kind)) for kind in ablations},
        tuple(ablations),
        (own.evaluator.ablation, other.evaluator.ablation),
        tuple(c.n_edges for c in curve_circuits(graph, scores.ranked, rank=rank)),
        len(guessed.nodes),
        tuple(probed),
        tuple(each),
        Line(ends, (each[1], more)),
        Line(ends, (mine, theirs)),
        opening / tokens[1],
        whole,
        own.checking(found[0]),
        _exact_edges(own, scores, search),
    )


def _exact_edges(probe: CostProbe, scores: EdgeScores, search: Half) -> tuple[float, float]:
    """Seconds to patch edges exactly on all pairs of the search: what they share, and each.

    Timed on a few pairs of middling length, with a few edges and with more.
    """
    graph = scores.graph
    if any(graph.neurons.values()):
        return 0.0, 0.0
    edges = np.random.default_rng(probe.budget.seed).permutation(np.flatnonzero(graph.real))
    budget = probe.budget.checking(1)

    def timed(count: int, some: Half) -> float:
        mask = np.zeros_like(graph.real)
        mask.ravel()[edges[:count]] = True
        on = probe.evaluator.model, some.pairs, some.metric, mask
        return probe.of(lambda: patch_edges(*on, direction="noising", budget=budget))

    few, more = _EDGES
    some = _middling(search, _PAIRS)
    timed(1, some)  # what is slow only once, such as a first allocation, is not timed
    base = timed(few, some)
    each = max(0.0, timed(more, some) - base) / (more - few)
    shared = max(0.0, base - few * each)
    # the unpatched runs compute all tokens, an edge those that differ
    tokens, rows = (
        _rows(search.pairs, kind) / _rows(some.pairs, kind) for kind in ("zero", "corrupted")
    )
    return shared * tokens, each * rows


def _middling(half: Half, count: int) -> Half:
    """At most so many pairs: those whose number of tokens is closest to the median."""
    texts = half.pairs.texts
    lengths = np.zeros(len(half), dtype=np.int64)
    whose = np.arange(len(half)) if texts is None else np.array(texts.pairs)
    np.maximum.at(lengths, whose, half.pairs.clean.lengths.cpu().numpy())
    order = np.argsort(lengths, kind="stable")
    first = max(0, (len(lengths) - count) // 2)
    return half[sorted(order[first : first + count].tolist())]


def _rows(pairs: Pairs, ablation: EdgeAblation) -> float:
    """Tokens that are computed: with corrupted activations, from the first difference on."""
    lengths: NDArray[np.int64] = pairs.clean.lengths.cpu().numpy()
    skipped = sum(differing(pairs)) if ablation == "corrupted" else 0
    return float(lengths.sum() - skipped)


def seconds_of(call: Callable[[], Any]) -> float:
    """The smaller of processor and clock time."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return min(time.perf_counter() - clock, time.process_time() - processor)
