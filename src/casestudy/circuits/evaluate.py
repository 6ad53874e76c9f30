"""How much of a behaviour does a subgraph keep on its own?

Edge ablation: the clean prompts are run, and every edge outside the circuit carries an ablated
activation: the corrupted run's, a mean, or zero. The circuit's faithfulness is its metric, scaled
from everything ablated (0) to the whole model (1).

Many circuits are evaluated at once, and only differences are computed: of each circuit the nodes
with an edge into it, and once what several circuits have in common (`by_edges`). If the ablation is
the corrupted run, only positions from a pair's first difference on. The whole graph is the clean
run. A graph without some whole nodes (knockouts) is a run in which these have their ablated outputs
(`by_nodes`).

Circuits are pruned first. A node that is not reached from the embeddings within the circuit stays
ablated (with mean or zero ablation, its output for ablated inputs would be different). A node that
does not reach the logits is left out. Nothing is frozen: each run has its own norm scales and
patterns. A random sample is computed again the plain way, with a full forward pass in which every
head's inputs are edited; the largest gap is kept.

Assumes pairs of equal length. Cost: per circuit, its nodes' share of a forward pass without the
unembedding, plus 2 · edges · d_model operations per token.
Sources: Wang et al. 2022 (mean ablation, faithfulness, completeness, minimality); Conmy et al. 2023
(edges); Hanna et al. 2024 and Mueller et al. 2025, "MIB" (the evaluation).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from casestudy.behaviour.checks import check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.ablated import Ablated, EdgeAblation
from casestudy.circuits.block import PromptBlock
from casestudy.circuits.by_edges import ByEdges
from casestudy.circuits.by_nodes import ByNodes
from casestudy.circuits.edge_scores import differing
from casestudy.circuits.graph import Circuit, Graph
from casestudy.circuits.plain import Plain
from casestudy.engine.packing import Budget, Progress, Tell, fill, pack
from casestudy.engine.readout import Metric
from casestudy.engine.rounding import checked
from casestudy.engine.workers import Part, at_once, together
from casestudy.errors import MeasureError
from casestudy.measure.pairs import Pairs
from casestudy.model.model import Model
from casestudy.results.stats import FAITHFULNESS, mean_interval, ratio_in_parts, ratio_of_means

__all__ = ["CIRCUIT_BUDGET", "EdgeAblation", "Evaluation", "Evaluator", "evaluate_circuit"]

CIRCUIT_BUDGET = Budget(check=4)
"""By default: a plain run of a circuit takes a forward pass for each of its receivers' inputs."""

KEPT = 8
"""An evaluator keeps blocks of prompts that use at most 1 / this of the memory; a card has four."""

_ROWS = 1024
"""Tokens per block and circuit: matrix products at full rate, buffers that nearly fit the cache."""


@dataclass(frozen=True)
class Evaluation:
    """The metric of each circuit.

    Attributes:
        circuits: as evaluated: pruned.
        values: (circuit, prompt) the metric with all other edges ablated.
        full: (prompt,) the metric of the whole model.
        empty: (prompt,) the metric with everything ablated.
        ablation: what the edges outside the circuits carried.
        error: {"gap": largest difference from the plain way in the sample, "bound": allowed (absent
            if there is no guarantee, as in bfloat16), "checked": sample size}; see
            `rounding.checked`.
    """

    circuits: tuple[Circuit, ...]
    values: NDArray[np.float64]
    full: NDArray[np.float64]
    empty: NDArray[np.float64]
    ablation: EdgeAblation
    error: Mapping[str, float]

    @property
    def faithfulness(self) -> NDArray[np.float64]:
        """(circuit,) (mean value - mean empty) / (mean full - mean empty); NaN if full and
        empty are equal.

        1 is the whole model, 0 everything ablated; above 1 a circuit overshoots.
        """
        return ratio_of_means(self.values, self.empty, self.full)

    def part(self, circuits: slice) -> Evaluation:
        """Some of the circuits, with the check of all."""
        return replace(self, circuits=self.circuits[circuits], values=self.values[circuits])

    def interval(
        self, documents: Sequence[str] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Faithfulness and the ends of its 95 % interval over prompts, the ratio linearised."""
        parts = ratio_in_parts(self.values, self.empty, self.full)
        found = mean_interval(parts.T, unit=FAITHFULNESS, documents=documents)
        return found[:3]


def evaluate_circuit(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    circuits: Sequence[Circuit],
    *,
    ablation: EdgeAblation = "corrupted",
    budget: Budget = CIRCUIT_BUDGET,
    progress: Tell | None = None,
) -> Evaluation:
    """Run the clean prompts through each circuit, all other edges ablated.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length; a pair's value is the sum over its
            `texts`.
        contrast: a contrast, or a function of the last token's logits.
        circuits: subsets of one graph's edges.
        ablation: what edges outside a circuit carry: "corrupted" the activation of the corrupted
            prompt, "mean" the mean of the corrupted prompts at a token's role (or position, if
            roles are not known), "zero" zero.
        budget: memory, and how many (circuit, prompt) pairs to compute again the plain way.
        progress: called with the number of finished (circuit, prompt) pairs.

    Shape:  values (circuit, prompt).
    Unit:   the metric's.
    Error:  largest gap between the sampled values and full forward passes.
    Raises: MeasureError for pairs that are identical or of unequal length, circuits of several
            graphs, NaN in a run, or a failed check.
    """
    if not circuits:
        raise MeasureError("no circuit to evaluate")
    graph = circuits[0].graph
    if graph.config != model.config:
        raise MeasureError("a circuit of another model", hint="Its config differs from this one's")
    found = Evaluator(model, graph, pairs, contrast, ablation, budget.memory)
    return found.evaluate(circuits, budget, progress)


Segments = list[list[int]]
"""A block of prompts: lists of those that attend together."""

_Found = tuple[Sequence[int], Sequence[int] | None, NDArray[np.floating]]
"""(circuit, prompt) values of some circuits, by number, on some prompts; or with None values of the
sample, by number, the plain way."""


@dataclass(frozen=True)
class _Kinds:
    """How each of some circuits is evaluated: by number.

    Attributes:
        whole: the whole model.
        by_nodes: the whole model without these nodes.
        by_edges: the others.
    """

    whole: list[int]
    by_nodes: dict[int, tuple[int, ...]]
    by_edges: list[int]

    @classmethod
    def of(cls, gone: Sequence[tuple[int, ...] | None]) -> _Kinds:
        """From the nodes that each circuit lacks as a whole, None if it lacks edges."""
        return cls(
            [i for i, nodes in enumerate(gone) if nodes == ()],
            {i: nodes for i, nodes in enumerate(gone) if nodes},
            [i for i, nodes in enumerate(gone) if nodes is None],
        )


class Evaluator:
    """Evaluates circuits on the same pairs again and again; what they share is computed once.
    Blocks of prompts are evaluated at the same time (see `engine/workers`).

    Args:
        model, pairs, metric, ablation: as in `evaluate_circuit`.
        graph: of the circuits.
        memory: bytes.

    Raises: MeasureError for pairs that are identical or of unequal length.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        pairs: Pairs,
        metric: Contrast | Metric,
        ablation: EdgeAblation,
        memory: int,
    ) -> None:
        self.most_kept = memory // KEPT
        self.model, self.graph, self.config = model, graph, model.config
        self.pairs, self.metric, self.ablation, self.memory = pairs, metric, ablation, memory
        least = 2 * int(pairs.clean.lengths.max()) * self.row_floats() * self.itemsize
        self.workers = at_once(model.device, min(len(pairs.clean), memory // least))
        self.share = memory // self.workers
        """Bytes for each block."""
        self.firsts = differing(pairs)
        with torch.no_grad():
            self.ablated = Ablated(model, graph, pairs, ablation, memory)
        self.kept: dict[tuple[tuple[int, ...], ...], PromptBlock] = {}
        self.keeping = threading.Lock()

    def evaluate(
        self, circuits: Sequence[Circuit], budget: Budget, progress: Tell | None = None
    ) -> Evaluation:
        """The metric of each circuit; as `evaluate_circuit`."""
        if not circuits:
            raise MeasureError("no circuit to evaluate")
        graph = self.graph
        if any(c.graph is not graph and c.graph != graph for c in circuits):
            raise MeasureError("circuits of different graphs", allowed="one graph for all")
        pruned = tuple(circuit.pruned() for circuit in circuits)
        # Equal circuits are evaluated once: the smallest of a curve are often equal.
        place: dict[Circuit, int] = {}
        for circuit in (graph.full, graph.empty, *pruned):
            place.setdefault(circuit, len(place))
        with torch.no_grad():
            values, error = self.checked(list(place), budget, progress)
        values = self.pairs.of_pairs(values)
        rows = [place[circuit] for circuit in pruned]
        return Evaluation(pruned, values[rows], values[0], values[1], self.ablation, error)

    def checked(
        self, circuits: Sequence[Circuit], budget: Budget, progress: Tell | None
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        """(circuit, prompt) values, and the check of a sample."""
        n = len(self.pairs.clean)
        total = len(circuits) * n
        numbers = random.Random(budget.seed).sample(range(total), min(budget.check, total))
        sample = [divmod(number, n) for number in numbers]
        values, plain = self.both_ways(circuits, range(n), sample, progress)
        sides = [self.pairs.clean, self.pairs.corrupted]
        texts = self.pairs.texts
        whose = range(n) if texts is None else texts.pairs
        check_finite(values, prompts=whose, model=self.model, of=sides)
        fast = np.array([values[place] for place in sample])
        again = partial(self.in_float64, circuits, sample)
        return values, checked(self.model, fast, plain, again, "a circuit's value")

    def both_ways(
        self,
        circuits: Sequence[Circuit],
        prompts: Iterable[int],
        sample: Sequence[tuple[int, int]],
        progress: Tell | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(circuit, prompt) values (NaN for prompts that are not needed), and a sample of (circuit,
        prompt) values by the plain way."""
        chosen = set(prompts)
        values, done = np.full((len(circuits), len(self.pairs.clean)), np.nan), 0
        plain = np.full(len(sample), np.nan)
        work = _Kinds.of([self.knocked_out(circuit) for circuit in circuits])
        jobs: list[Part[_Found]] = [  # the longest prompts, which are the last, first
            partial(self.of_block, circuits, work, segments)
            for segments in self.blocks(sorted(chosen))[::-1]
        ]
        jobs += [
            partial(self.plainly, circuits[i], b, number) for number, (i, b) in enumerate(sample)
        ]
        for _, (rows, some, found) in together(jobs, self.workers):
            if some is None:
                plain[rows] = found
                continue
            values[np.ix_(rows, some)] = found
            done += len(rows) * len(some)
            if progress is not None:
                progress(Progress("circuits", done, len(circuits) * len(chosen)))
        return values, plain

    def of_block(
        self, circuits: Sequence[Circuit], work: _Kinds, segments: Segments
    ) -> Iterator[_Found]:
        """The circuits on a block of prompts, group by group."""
        block = self.block(segments)
        some = block.some
        yield work.whole, some, block.full.cpu().numpy()
        for group in self.groups(circuits, work.by_edges, block):
            masks = np.stack([circuits[i].mask for i in group])
            yield group, some, ByEdges(block, masks).climb().cpu().numpy()
        for group in self.node_groups(work.by_nodes, block):
            sets = [work.by_nodes[i] for i in group]
            yield group, some, ByNodes(block, sets).climb().cpu().numpy()

    def plainly(self, circuit: Circuit, prompt: int, number: int) -> Iterator[_Found]:
        """A value of the sample, by the plain way."""
        yield [number], None, np.array(Plain(self.ablated, self.metric, circuit, prompt).value())

    def in_float64(
        self, circuits: Sequence[Circuit], sample: Sequence[tuple[int, int]], model: Model
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A sample's values by the fast way and the plain way, with the model in float64."""
        wide = Evaluator(model, self.graph, self.pairs, self.metric, self.ablation, self.memory)
        which = sorted({i for i, _ in sample})
        here = [(which.index(i), b) for i, b in sample]
        some = [circuits[i] for i in which]
        values, plain = wide.both_ways(some, {b for _, b in sample}, here)
        return np.array([values[place] for place in here]), plain

    def knocked_out(self, circuit: Circuit) -> tuple[int, ...] | None:
        """The senders that a circuit lacks, if it has all edges between the others.

        None if it has not, or if it is no run without these nodes: a norm after attention or over
        all queries mixes the heads, neurons are no site.
        """
        gone = tuple(np.flatnonzero(~circuit.senders).tolist())
        if not gone:
            return () if circuit == self.graph.full else None
        if not circuit.mask[circuit.senders, -1].all():  # every node left would write to the logits
            return None
        senders = [self.graph.senders[i] for i in gone]
        split = any(self.graph.neurons.get(s.layer or 0) for s in senders)
        mixed = self.config.qk_norm == "all" or any(
            layer.attn_post_norm is not None for layer in self.model.weights.blocks
        )
        if split or mixed or senders[0].kind == "embed":
            return None
        return gone if self.graph.full.without(gone).pruned() == circuit else None

    # Batches.

    def block(self, segments: Segments) -> PromptBlock:
        """Some prompts with their ablated outputs; kept if all that are kept use little memory."""
        key = tuple(map(tuple, segments))
        if key in self.kept:
            return self.kept[key]
        starts = [min(map(self.start, some)) for some in segments]
        block = PromptBlock(self.ablated, self.metric, segments, starts)
        with self.keeping:
            if sum(other.nbytes for other in (*self.kept.values(), block)) <= self.most_kept:
                self.kept[key] = block
        return block

    def start(self, prompt: int) -> int:
        """The first position of a prompt that is computed."""
        return self.firsts[prompt] if self.ablation == "corrupted" else 0

    def blocks(self, prompts: Sequence[int]) -> list[Segments]:
        """Blocks of prompts, the longest last; a circuit's rows fit. Prompts of similar length and
        first difference are a segment."""
        lengths = [int(self.pairs.clean.lengths[b]) for b in prompts]
        starts = [self.start(b) for b in prompts]
        most = max(1, min(_ROWS, self.share // 2 // (self.row_floats() * self.itemsize)))
        blocks = pack(
            lengths,
            starts,
            fits=lambda n, _, width: n * width <= most,
            useful=0.0,
            parts=self.workers,
        )
        found: list[Segments] = []
        for block in blocks:
            ends, firsts = [lengths[i] for i in block], [starts[i] for i in block]
            segments = pack(ends, firsts, fits=lambda *_: True)
            found.append([sorted(prompts[block[i]] for i in some) for some in segments])
        return found

    def groups(
        self, circuits: Sequence[Circuit], some: Sequence[int], block: PromptBlock
    ) -> list[list[int]]:
        """Batches of some circuits that fit in memory together."""

        def cost(circuit: Circuit) -> int:
            senders = int(circuit.senders.sum())
            used = np.flatnonzero(np.asarray(circuit.mask.any(0)))
            layers = [self.graph.receivers[r].layer for r in used]
            most = max((layers.count(layer) for layer in set(layers)), default=0)
            numbers = block.n_rows * self.circuit_floats(senders, most)
            return circuit.mask.size + numbers * self.itemsize

        batches = fill([cost(circuits[i]) for i in some], self.share // 2)
        return [[some[i] for i in batch] for batch in batches]

    def node_groups(self, sets: Mapping[int, Sequence[int]], block: PromptBlock) -> list[list[int]]:
        """Batches of sets of nodes, in the order of the layers that they leave whole."""
        some = sorted(sets, key=lambda i: tuple(sets[i]))
        cost = block.n_rows * self.itemsize * self.circuit_floats(0, 3)
        return [[some[i] for i in batch] for batch in fill([cost] * len(some), self.share // 2)]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.model.weights.W_E.element_size()

    def circuit_floats(self, senders: int, receivers: int) -> int:
        """Numbers per token of one circuit: its senders, a layer's inputs and what they become."""
        config = self.config
        longest = int(self.pairs.clean.lengths.max())
        per_head = config.n_heads * (4 * config.d_head + 3 * longest)  # the last: scores
        return config.d_model * (senders + 3 * receivers + 4) + 3 * config.d_mlp + per_head

    def row_floats(self) -> int:
        """Numbers per token of the ablated run, its traces, and the largest circuit."""
        receivers = self.config.n_heads + 2 * self.config.n_kv_heads
        whole = self.circuit_floats(len(self.graph.senders), receivers)
        return 2 * len(self.graph.senders) * self.config.d_model + whole
