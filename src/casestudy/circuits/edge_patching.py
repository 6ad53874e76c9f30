"""What is the exact effect of each edge?

Exact edge patching: one edge of the computation graph carries the other run's activation, and
everything else is computed as usual (Wang et al. 2022's direct path, from every sender to every
receiver). Noising runs the clean prompts and corrupts one edge: is the edge necessary? Denoising
runs the corrupted prompts and restores one edge: is the edge sufficient? The score is m(clean) -
m(edge corrupted) or m(edge clean) - m(corrupted), so positive edges support the metric.

Assumes pairs of equal length. Cost: one cell of a sweep per edge and prompt, from the receiver's
layer up; edges into the logits cost a dot product. Use it for all edges of a small model, or for
selected edges of a large one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.checks import check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.circuits.agreement import EdgeScores
from casestudy.circuits.contributions import contribution_sites, contributions
from casestudy.circuits.edge_scores import differing
from casestudy.circuits.graph import LOGITS, Graph, Mask
from casestudy.circuits.paths import Path
from casestudy.engine.cells import Cell
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell, fill, pack
from casestudy.engine.readout import Metric, Tails
from casestudy.engine.sweep import sweep
from casestudy.engine.workers import at_once, mapped
from casestudy.measure.metrics import rows_of
from casestudy.measure.pairs import Direction, Pairs
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from casestudy.results.result import Array, worst_error


def patch_edges(
    model: Model,
    pairs: Pairs,
    contrast: Contrast | Metric,
    edges: Mask | Iterable[str] | None = None,
    *,
    direction: Direction = "denoising",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> EdgeScores:
    """Score edges by patching each one separately, exactly.

    Args:
        model: the decoder.
        pairs: clean and corrupted prompts of equal length; a pair's value is the sum over its
            `texts`.
        contrast: a contrast, or a function of the last token's logits.
        edges: as a mask or by name; all by default.
        direction: "denoising" runs the corrupted prompts (unpatched) and gives an edge what it
            carries in the clean run; "noising" runs the clean prompts and gives it what it carries
            in the corrupted run.
        budget: memory, checking.
        progress: called with the number of finished (edge, prompt) pairs, not always from the
            caller's thread.

    Error:  of the sweeps: the largest gap from full forward passes in a sample of cells.
    Raises: MeasureError for pairs that are identical or of unequal length; SiteError for edges the
            model does not have.
    """
    graph = Graph(model.config)
    differing(pairs)
    if edges is None:
        mask = graph.real
    elif isinstance(edges, np.ndarray):
        mask = edges & graph.real
    else:
        mask = graph.mask(edges)
    sides = pairs.sides(direction)
    total = np.zeros(graph.real.shape)
    runs = np.zeros((2, len(pairs.clean)))  # the base run, the other
    errors = []
    workers = at_once(model.device, len(pairs.clean))
    blocks = _blocks(model, graph, pairs, budget.memory // workers, workers)
    each = replace(budget, memory=budget.memory // workers, check=-(-budget.check // len(blocks)))
    told = _Told([int(mask.sum()) * len(some) for some in blocks], progress)

    def patched(number: int) -> tuple[Array, list[dict[str, float]], Array]:
        some = blocks[number]
        with torch.no_grad():
            base, source = (side[some].to(model.device) for side in (sides.base, sides.source))
            path = _Edges(model, graph, base, source, pairs.tails.some(some))
            here = rows_of(contrast, pairs.tails.of(some))
            return _of_block(path, graph, mask, here, each, partial(told.tell, number))

    # summed in the order of blocks, so that the last bits do not depend on which ends first
    every = mapped(patched, range(len(blocks)), workers)
    for some, (found, error, ends) in zip(blocks, every, strict=True):
        total += found
        errors += error
        runs[:, some] = ends
    runs, n = pairs.of_pairs(runs), len(pairs)
    sign = -1.0 if direction == "noising" else 1.0
    values = np.where(mask, sign * (total / n - runs[0].mean()), np.nan)
    clean, corrupted = runs if direction == "noising" else runs[::-1]
    return EdgeScores(
        graph, f"exact {direction}", values, n, clean, corrupted, error=worst_error(errors)
    )


class _Edges(Path):
    """Direct paths on which a sender's change is the change of its contribution to the stream.

    They differ from `path_patch` for models with a norm after attention (OLMo 2, Gemma): there a
    patched head also changes that norm's scale in `path_patch`, so heads would not add up.
    """

    def __init__(
        self, model: Model, graph: Graph, base: Tokens, source: Tokens, tails: Tails
    ) -> None:
        sites = contribution_sites(model, graph)
        super().__init__(model, base, source, LOGITS, "direct", "recomputed", sites, tails)
        ours, theirs = (contributions(model, graph, trace) for trace in (self.base, self.source))
        self.changes = theirs - ours  # batch sender pos d_model

    def with_change(self, senders: Sequence[int]) -> Float[Tensor, "sender row d_model"]:
        """The residual stream at the receiver with each sender's change."""
        site, layer = self.read_from()
        changes = self.changes[self.prompts[None], torch.tensor(senders)[:, None], self.positions]
        return self.rows(site, layer) + changes


class _Told:
    """The progress of blocks that are patched at the same time, told as one: (edge, prompt) pairs.

    Args:
        sizes: of each block.
        progress: called from the blocks' threads, never twice at the same time.
    """

    def __init__(self, sizes: Sequence[int], progress: Tell | None) -> None:
        self.sizes, self.progress = sizes, progress
        self.done = [0.0] * len(sizes)
        self.lock = threading.Lock()

    def tell(self, number: int, part: Progress) -> None:
        """Tell how far a block's sweep is."""
        if self.progress is None:
            return
        with self.lock:
            share = part.done / part.total if part.total else 1.0
            self.done[number] = max(self.done[number], share * self.sizes[number])
            self.progress(Progress(part.stage, round(sum(self.done)), sum(self.sizes)))


def _blocks(model: Model, graph: Graph, pairs: Pairs, memory: int, parts: int) -> list[list[int]]:
    """Blocks of prompts of similar length whose senders' changes at one receiver fit in a quarter
    of the memory."""
    per_token = 5 * len(graph.senders) * model.config.d_model
    per_token *= model.weights.W_E.element_size()
    lengths = pairs.clean.lengths.tolist()
    batches = pack(
        lengths, fits=lambda n, longest, _: n * longest * per_token <= memory // 4, parts=parts
    )
    return [sorted(batch) for batch in batches[::-1]]  # the longest first


def _of_block(
    path: _Edges,
    graph: Graph,
    mask: Mask,
    metric: Contrast | Metric,
    budget: Budget,
    progress: Tell | None,
) -> tuple[Array, list[dict[str, float]], Array]:
    """Sums over a block's prompts of the metric with each edge patched; checks; both runs."""
    runs = np.stack([path.value(trace, metric).cpu().numpy() for trace in (path.base, path.source)])
    sides = [trace.tokens for trace in (path.base, path.source)]
    check_finite(runs, model=path.model, of=sides)
    total, errors = np.zeros(mask.shape), []
    chosen = np.flatnonzero(mask.any(0)).tolist()
    last = len(graph.receivers) - 1
    if last in chosen:
        senders = np.flatnonzero(mask[:, last])
        found = path.read(path.with_change(senders.tolist()), metric, budget, progress)
        total[senders, last] = found.values.sum(1)
    # of any layer: each sweep computes the unpatched run again
    for receivers in _shares(graph, mask, [r for r in chosen if r != last], path, budget.memory):
        places = [(s, r) for r in receivers for s in np.flatnonzero(mask[:, r]).tolist()]
        values, error = _swept(path, graph, places, metric, budget, progress)
        rows, columns = zip(*places, strict=True)
        total[list(rows), list(columns)] = values.sum(1)
        errors.append(error)
    return total, errors, runs


def _shares(
    graph: Graph, mask: Mask, receivers: Sequence[int], path: _Edges, memory: int
) -> list[list[int]]:
    """Batches of receivers whose cells' values fit in a quarter of the memory."""
    config, size = path.config, path.model.weights.W_E.element_size()

    def cost(r: int) -> int:
        width = config.d_model if graph.receivers[r].kind == "mlp" else config.d_head
        return int(mask[:, r].sum()) * path.tokens.ids.numel() * width * size

    batches = fill([cost(r) for r in receivers], memory // 4)
    return [[receivers[i] for i in batch] for batch in batches]


def _swept(
    path: _Edges,
    graph: Graph,
    places: Sequence[tuple[int, int]],
    metric: Contrast | Metric,
    budget: Budget,
    progress: Tell | None,
) -> tuple[Array, dict[str, float]]:
    """The metric with each of these edges patched, (edge, prompt)."""
    cells: list[Cell] = []
    for r, group in groupby(places, key=lambda place: place[1]):
        there = path.to(graph.receivers[r])
        cells += there.cells(there.with_change([s for s, _ in group]))
    on = (path.model, path.tokens, None, cells, metric)
    found = sweep(*on, tails=path.tails, budget=budget, progress=progress)
    return found.values, found.error
