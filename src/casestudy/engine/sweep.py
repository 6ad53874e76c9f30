"""What is the metric when one activation is replaced, for thousands of activations at once?

This is the entry point of the engine, behind every exact patch. A cell replaces one activation (a
site, a layer, a place, perhaps a head or a neuron) in one prompt; the metric is computed at the
prompt's last token. The plain way is one full forward pass per cell. A sweep computes only what the
patch changes:

- nothing below its layer and nothing before its first position: keys and values there come from
  the unpatched run, and positions before the two runs first differ are known to change nothing;
- in the layer it enters, only the positions it touches, until attention spreads them;
- in the last layer, only the last position, and for a linear contrast a dot product with its
  folded direction instead of an unembedding.

`cells` lists the patches, `plan` divides them, `climb` runs them, `readout` reads the metric.

Assumes a causal decoder. Cost: 2 x parameters of a block x rows x layers above, where a cell has as
many rows as there are positions from its first to the last. Memory stays within a budget:
prompts are divided into blocks whose unpatched runs fit, and cells into climbs of limited size.

Exact: a sample of cells is recomputed with a full forward pass and one edit. The sweep fails if the
two differ by more than rounding: 1e-4 in float32 (1e-9 in float64), or, for large values or
activations, more than a second computation in float64 allows (see `rounding`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.checks import check_finite
from casestudy.behaviour.contrast import Contrast
from casestudy.engine.cells import Cell, Task, Values, Variant
from casestudy.engine.climb import Climb, SourceClimb, final_rows
from casestudy.engine.entries import Entry, Runs, source_rows
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell
from casestudy.engine.plan import (
    Keeps,
    Operations,
    Planner,
    Share,
    SweepPlan,
    attention_size,
    keeps,
    mlp_size,
    planned,
)
from casestudy.engine.readout import Metric, Readout, Tails
from casestudy.engine.rounding import BothWays, checked
from casestudy.engine.workers import at_once, together
from casestudy.errors import MeasureError
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.results.stats import ratio_of_means

STAGE = "sweep"
"""`Progress.stage` of a sweep; `done` and `total` count (cell, prompt) pairs."""

Watch = Callable[["Sweep"], None]
"""Called with the values computed so far, NaN elsewhere; an exception ends the sweep."""


@dataclass(frozen=True)
class Sweep:
    """The values of a sweep.

    Attributes:
        cells: as given.
        values: (cell, prompt) the metric with the cell's activation replaced; NaN if the prompt
            has no such place.
        base: (prompt,) the metric of the unpatched base run.
        other: (prompt,) the metric of the source run; None for an ablation.
        known: (cell, prompt) True if the value equals the base's by construction: the two runs
            agree at the cell's place, or the patch cannot reach the last position.
        error: {"gap": largest difference from the plain way in the sample, "bound": allowed (absent
            if there is no guarantee, as in bfloat16), "checked": sample size}; see
            `rounding.checked`.
        plan: how the sweep was divided.
    """

    cells: tuple[Cell, ...]
    values: NDArray[np.float64]
    base: NDArray[np.float64]
    other: NDArray[np.float64] | None
    known: NDArray[np.bool_]
    error: dict[str, float]
    plan: SweepPlan

    def normalised(self) -> NDArray[np.float64]:
        """Per cell: (mean patched - mean base) / (mean other - mean base), over the same prompts.

        1 is the other run, 0 the unpatched base run; NaN if the two do not differ or no prompt has
        the cell's place.
        """
        if self.other is None:
            raise MeasureError("an ablation has no other run", hint="Compare with the base instead")
        return ratio_of_means(self.values, self.base, self.other)

    def part(self, cells: slice, error: dict[str, float]) -> Sweep:
        """Some of the cells, with a check of their own."""
        values, known = self.values[cells], self.known[cells]
        return replace(self, cells=self.cells[cells], values=values, known=known, error=error)


def sweep(
    model: Model,
    base: Tokens,
    source: Tokens | Values | None,
    cells: Sequence[Cell],
    metric: Contrast | Metric,
    *,
    tails: Tails | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
    watch: Watch | None = None,
) -> Sweep:
    """The metric of every cell in every prompt, exactly.

    Args:
        model: the decoder.
        base: the prompts of the patched run (denoising: the corrupted ones; noising: the clean
            ones).
        source: the source of the replacements: the prompts of the other run, pair by pair; a
            function (ablations); or None if every cell has its own `values`.
        cells: what to replace.
        metric: a contrast, or any function of the logits at the last token.
        tails: where prompts are read at several of their last positions; the metric then has a row
            for each reading, and a prompt's value is their weighted sum.
        budget: memory, rows of the largest climb, and the number of (cell, prompt) pairs to
            recompute the plain way.
        progress, watch: called after every climb.

    Unit:   the metric's (logits for a contrast).
    Error:  largest gap between the sampled values and full forward passes.
    Raises: MeasureError for pairs that are identical or do not match, NaN in a run, a budget too
            small, or a failed check; SiteError for a cell the model does not have.
    """
    task = Task.checked(model, base, source, cells, tails)
    with torch.no_grad():
        (found,) = _Sweeping(task, metric).sweep([len(cells)], budget, progress, watch)
    if isinstance(found, MeasureError):
        raise found
    return found


def sweeps(
    model: Model,
    base: Tokens,
    source: Tokens | Values | None,
    parts: Sequence[Sequence[Cell]],
    metric: Contrast | Metric,
    *,
    tails: Tails | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> list[Sweep | MeasureError]:
    """Several lists of cells in one sweep: one pair of unpatched runs, and climbs that they share.

    Args:
        parts: the lists of cells; each has a check of its own.
        tails: as in `sweep`.
        budget: as in `sweep`; as many values are computed again of each part.

    Returns: for each part its sweep, or the error if its check failed or a value is NaN.
    Raises: as `sweep` does before anything is computed, and for NaN in an unpatched run.
    """
    task = Task.checked(model, base, source, [cell for part in parts for cell in part], tails)
    with torch.no_grad():
        return _Sweeping(task, metric).sweep([len(part) for part in parts], budget, progress, None)


class _Values:
    """The values computed so far; NaN elsewhere."""

    def __init__(self, task: Task, known: NDArray[np.bool_]) -> None:
        self.cells, self.known = task.cells, known
        self.values = np.full(known.shape, np.nan)
        self.base = np.full(known.shape[1], np.nan)
        paired = isinstance(task.source, Tokens)
        self.other = np.full(known.shape[1], np.nan) if paired else None

    def put(self, variants: Sequence[Variant], values: NDArray[np.float64]) -> None:
        """Store the metric of some variants."""
        self.values[[v.cell for v in variants], [v.prompt for v in variants]] = values

    def at(self, variants: Sequence[Variant]) -> NDArray[np.float64]:
        """The metric of some variants."""
        return self.values[[v.cell for v in variants], [v.prompt for v in variants]]

    def result(self, plan: SweepPlan) -> Sweep:
        """As a sweep without a check."""
        values = np.where(self.known, self.base[None, :], self.values)
        other = None if self.other is None else self.other.copy()
        return Sweep(self.cells, values, self.base.copy(), other, self.known, {}, plan)


class _Sweeping:
    """One sweep: block after block, climb after climb, and the check of a sample."""

    def __init__(self, task: Task, metric: Contrast | Metric) -> None:
        self.task, self.model, self.config = task, task.model, task.config
        self.metric = metric
        self.readout = Readout(task.model, metric, len(task.tails.weights))
        self.operations = Operations()

    def sweep(
        self, sizes: Sequence[int], budget: Budget, progress: Tell | None, watch: Watch | None
    ) -> list[Sweep | MeasureError]:
        """Every variant's value, and the largest gap of the sample of each part.

        Args:
            sizes: of the parts, in cells.
        """
        ends = np.cumsum([0, *sizes]).tolist()
        parts = [range(*pair) for pair in pairwise(ends)]
        variants, known, absent = self.task.variants()
        keep = keeps(self.task, variants)
        workers = at_once(self.task.device, len(self.task.base))
        planner = Planner(self.task, keep, budget.memory, budget.rows, workers)
        shares = planner.shares(variants)
        samples = [self.sample(variants, part, budget) for part in parts]
        sample = [variant for some in samples for variant in some]
        found, done = _Values(self.task, known), int(known.sum())
        total = done + len(variants)

        def so_far() -> Sweep:
            return found.result(planned(shares, budget.memory, planner.cap, self.operations.total))

        if progress:
            progress(Progress(STAGE, done, total))
        again: dict[Variant, float] = {}
        # the longest prompts, which are the last, are begun first
        jobs = [partial(self.of_share, share, keep, found, sample) for share in shares[::-1]]
        for _, (plainly, some, values) in together(jobs, planner.workers):
            if plainly:
                again.update(zip(some, values.tolist(), strict=True))
                continue
            found.put(some, values)
            done += len(some)
            if progress:
                progress(Progress(STAGE, done, total))
            if watch:
                watch(so_far())
        plain = [(variant, again[variant]) for variant in sample]
        whole = so_far()
        outcomes: list[Sweep | MeasureError] = []
        for part, some in zip(parts, samples, strict=True):
            cells = slice(part.start, part.stop)
            wide = partial(self.in_float64, some, 2 * budget.memory)
            try:
                error = self.error(found, plain, part, wide, whole.values[cells][~absent[cells]])
                outcomes.append(whole.part(cells, error))
            except MeasureError as problem:
                outcomes.append(problem)
        return outcomes

    def error(
        self,
        found: _Values,
        plain: Sequence[tuple[Variant, float]],
        part: range,
        again: BothWays,
        values: NDArray[np.float64],
    ) -> dict[str, float]:
        """The check of a part's sample.

        Raises: MeasureError if it fails, or if a value of the part is NaN.
        """
        if np.isnan(values).any():
            raise MeasureError("a patched run gave NaN", hint="The replacement may not be finite")
        mine = [(variant, value) for variant, value in plain if variant.cell in part]
        fast, slow = found.at([v for v, _ in mine]), np.array([value for _, value in mine])
        return checked(self.model, fast, slow, again, "the sweep")

    @staticmethod
    def sample(variants: Sequence[Variant], part: range, budget: Budget) -> list[Variant]:
        """The variants of a part that are computed again the plain way."""
        mine = [variant for variant in variants if variant.cell in part]
        count = min(budget.check, len(mine))
        chosen = random.Random(budget.seed).sample(range(len(mine)), count)
        return [mine[i] for i in sorted(chosen)]

    def in_float64(
        self, sample: Sequence[Variant], memory: int, model: Model
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some variants' values by the fast way and the plain way, with the model in float64."""
        metric = self.metric  # a contrast keeps directions of the model it last met: give a copy
        if isinstance(metric, Contrast):
            metric = metric[list(range(len(metric)))]
        wide = _Sweeping(_of_model(self.task, model), metric)
        return wide.both_ways(sample, memory)

    def both_ways(
        self, sample: Sequence[Variant], memory: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some variants' values by the fast way and the plain way."""
        keep = keeps(self.task, sample)
        shape = (len(self.task.cells), len(self.task.base))
        found = _Values(self.task, np.zeros(shape, dtype=bool))
        plain: dict[Variant, float] = {}
        for share in Planner(self.task, keep, memory, None).shares(sample):
            if not share.climbs:
                continue
            for plainly, some, values in self.of_share(share, keep, found, sample):
                if plainly:
                    plain.update(zip(some, values.tolist(), strict=True))
                else:
                    found.put(some, values)
        return found.at(list(plain)), np.array(list(plain.values()))

    def of_share(
        self, share: Share, keep: Keeps, found: _Values, sample: Sequence[Variant]
    ) -> Iterator[tuple[bool, Sequence[Variant], NDArray[np.float64]]]:
        """A block's variants and their values, climb by climb; and at the end, marked True, those
        of the sample by the plain way. The metrics of its unpatched runs are stored."""
        runs = self.open(share, keep, found)
        for some in share.climbs:
            climb = Climb(runs, self.task.cells, some, self.readout, self.operations)
            yield False, some, climb.climb().cpu().numpy()
        mine = [v for v in sample if v.prompt in runs.local]
        if mine:
            yield True, mine, self.plainly(runs, mine)

    # The unpatched runs.

    def open(self, share: Share, keep: Keeps, found: _Values) -> Runs:
        """A block's unpatched runs; their metrics are stored with the values."""
        task, prompts = self.task, share.prompts
        base = run(self.model, task.base[prompts], keep=keep.base)
        rows = final_rows(base, task.tails, prompts)
        read = self.read_run(rows, base.tokens, prompts, "the unpatched run")
        runs = Runs(task, tuple(prompts), base, read=read)
        size = attention_size(self.config) + mlp_size(self.model)
        self.operations.add(sum(task.lengths[b] for b in prompts), size, self.config.n_layers)
        found.base[prompts] = self.added(read, prompts)
        if found.other is None or not isinstance(task.source, Tokens):
            return runs
        if task.shares_prefix:
            source, rows = self.source_after_prefix(runs, keep.source)
        else:
            source = run(self.model, task.source[prompts], keep=keep.source)
            rows = final_rows(source, task.tails, prompts)
            computed = sum(int(task.source.lengths[b]) for b in prompts)
            self.operations.add(computed, size, self.config.n_layers)
        other = self.read_run(rows, source.tokens, prompts, "the other run")
        found.other[prompts] = self.added(other, prompts)
        return replace(runs, source=source)

    def source_after_prefix(
        self, runs: Runs, keep: Sequence[Keep]
    ) -> tuple[Trace, Float[Tensor, "reading d_model"]]:
        """The source run from the first differences on, with the base run's values before them;
        and its final rows at every reading.

        In the last layer only the values at positions that are read are correct; only these are
        used.
        """
        task, weights = self.task, self.model.weights
        assert isinstance(task.source, Tokens)
        tokens = task.source[list(runs.prompts)]
        config = replace(self.config, n_layers=0)
        bare = replace(self.model, config=config, weights=replace(weights, blocks=()))
        sites = [Site.EMBED, *([Site.POS_EMBED] if weights.W_pos is not None else [])]
        embedded = run(bare, tokens, keep=[*sites, Site.FINAL_RESID])
        kept = {
            address: embedded.values[address]
            if address in embedded.values
            else runs.base.values[address].clone()
            for what in keep
            if not what.last and what.site is not Site.FINAL_RESID
            for address in what.addresses(self.config.n_layers)
        }
        climb = SourceClimb(runs, embedded[Site.FINAL_RESID], kept, self.operations)
        climb.climb()
        return Trace(tokens, kept, {}, None, self.config.n_layers), climb.final

    def read_run(
        self,
        rows: Float[Tensor, "reading d_model"],
        tokens: Tokens,
        prompts: list[int],
        what: str,
    ) -> Float[Tensor, " every_reading"]:
        """The metric of an unpatched run at every reading of the task, NaN outside the block.

        Raises: MeasureError if it is not finite.
        """
        mine = self.task.tails.of(prompts)
        index = torch.tensor(mine, device=self.task.device)
        values = self.readout(rows, index)
        whose = [b for b in prompts for _ in range(self.task.tails.counts[b])]
        check_finite(values.cpu().numpy(), what, whose, model=self.model, of=[tokens])
        every = values.new_full((len(self.task.tails.weights),), float("nan"))
        every[index] = values
        return every

    def added(
        self, read: Float[Tensor, " every_reading"], prompts: Sequence[int]
    ) -> NDArray[np.float64]:
        """Each prompt's readings, added up by weight."""
        tails = self.task.tails
        if tails.single:
            return np.asarray(read[list(prompts)].cpu().numpy(), dtype=np.float64)
        weighed = read.cpu().numpy() * np.array(tails.weights)
        return np.array([weighed[tails.of([b])].sum() for b in prompts])

    # The plain way.

    def plainly(self, runs: Runs, sample: Sequence[Variant]) -> NDArray[np.float64]:
        """The same values by full forward passes with one edit per prompt."""
        prompts = [v.prompt for v in sample]
        edits = [self.plain_edit(runs, v, i) for i, v in enumerate(sample)]
        tails, tokens = self.task.tails, self.task.base[prompts]
        trace = run(self.model, tokens, edit=edits, logits="last" if tails.single else "all")
        assert trace.logits is not None
        index = torch.tensor(tails.of(prompts), device=self.task.device)
        if tails.single:
            found = self.readout.of_logits(trace.logits, index).cpu().numpy()
            return np.asarray(found, dtype=np.float64)
        ends = zip(prompts, tokens.lengths.tolist(), strict=True)
        rows = [trace.logits[i, n - tails.counts[b] : n] for i, (b, n) in enumerate(ends)]
        weights = np.array(tails.weights)[index.cpu().numpy()]
        read = self.readout.of_logits(torch.cat(rows), index).cpu().numpy() * weights
        each = np.split(read, np.cumsum([tails.counts[b] for b in prompts])[:-1])
        return np.array([part.sum() for part in each])

    def plain_edit(self, runs: Runs, variant: Variant, row: int) -> Edit:
        """The cell as an edit of one row of a plain run, at all positions of its place."""
        cell = self.task.cells[variant.cell]
        here, there = (side[variant.prompt] for side in (cell.place.base, cell.place.source))
        whole = replace(variant, positions=here, sources=there)
        new = source_rows(runs, Entry.of(runs, self.task.cells, [whole], [0]))
        where = torch.tensor(here, device=self.task.device)

        def put(x: Tensor) -> Tensor:
            x = x.clone()
            mine = x[row]  # a view: pos …, or head query_pos key_pos
            if cell.site is Site.PATTERN:
                mine = mine.transpose(0, 1)
                width = min(new.shape[-1], mine.shape[-1])  # blocks are padded differently
                mine = mine[..., :width]
            part = new[..., : mine.shape[-1]] if cell.site is Site.PATTERN else new
            index = cell.head if cell.head is not None else cell.neuron
            if cell.subspace is not None:
                u = cell.subspace.to(x)
                mine[where] += (new - mine[where]) @ u @ u.T
            elif index is not None:
                mine[where, index] = part if cell.values is not None else part[:, index]
            else:
                mine[where] = part
            return x

        return Edit(cell.site, cell.layer, put)


def _of_model(task: Task, model: Model) -> Task:
    """The task with the same model in another number format."""
    source = task.source
    if not callable(source):
        return replace(task, model=model)

    def cast(site: Site, layer: int | None, prompts: Tensor, positions: Tensor) -> Tensor:
        return source(site, layer, prompts, positions).to(model.dtype)

    return replace(task, model=model, source=cast)
