"""Where in a corpus is a part active?

One pass over the corpus's windows, through the layers up to the part's own. Kept are the strongest
contexts (a heap), a uniform sample of contexts for every band of quantiles, a bounded uniform
sample of values for every kind of position, sums, and a uniform sample of windows on which an
ablation is measured. So memory does not grow with the corpus, but for three numbers a window.

The first position of a window is left out everywhere: there is nothing before it, and models use it
as a place to attend to when there is nothing else. Two contexts are one if their last
`SAME` tokens are the same; the stronger is kept.
Cost: the layers up to the part's, at every token of the corpus.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from casestudy.behaviour.windows import Window
from casestudy.errors import MeasureError
from casestudy.measure.parts import CardPart, HeadPart
from casestudy.model.decoder import run
from casestudy.model.layers import layers_of
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.results.result import Array
from casestudy.results.stats import BOOTSTRAP_FROM, units_named, units_of

SAME = 12
"""Tokens up to and including a position by which two contexts count as one."""
BEFORE, AFTER = 24, 6
"""Tokens of a context that are shown."""
OF_A_KIND = 20_000
"""Values kept of each kind of position, beyond which a uniform sample of them."""
SAMPLED = 3_000
"""Contexts in the uniform sample."""
AT_ONCE = 2048
"""Tokens that are run together."""


@dataclass(frozen=True)
class Context:
    """One position of the corpus.

    Attributes:
        value: the part's activity there.
        ids: its window's tokens.
        at: the position, within them.
        key: for a head, the position that it attends to most.
        key_share: its share of the attention.
        document, line: where the text is.
        group: by the signs of the part's inputs; see `CardPart.groups`.
    """

    value: float
    ids: tuple[int, ...]
    at: int
    document: str
    line: int
    group: int = 0
    key: int | None = None
    key_share: float | None = None

    def excerpt(self) -> tuple[int, tuple[int, ...]]:
        """Where the tokens that are shown begin, and their ids."""
        start = max(0, self.at - BEFORE)
        return start, self.ids[start : self.at + 1 + AFTER]


class Draw:
    """A uniform sample of bounded size: the rows with the smallest random priorities."""

    def __init__(self, most: int, columns: int) -> None:
        self.most = most
        self.rows = np.empty((0, columns + 1))
        self.seen = 0

    def add(self, priority: Array, *columns: Array) -> None:
        """Take in some rows, each with its priority."""
        self.seen += len(priority)
        if len(self.rows) == self.most:
            there = priority < self.rows[:, 0].max()
            priority, columns = priority[there], tuple(column[there] for column in columns)
        new = np.column_stack((priority, *columns)).astype(np.float64)
        rows = np.concatenate((self.rows, new))
        if len(rows) > self.most:
            rows = rows[np.argpartition(rows[:, 0], self.most)[: self.most]]
        self.rows = rows

    def columns(self) -> list[Array]:
        """The sample's columns, in random order."""
        ordered = self.rows[np.argsort(self.rows[:, 0])]
        return [np.asarray(column) for column in ordered[:, 1:].T]


class Strongest:
    """The k contexts with the largest values, no two of the same last tokens."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.heap: list[tuple[float, int, tuple[int, ...]]] = []
        self.kept: dict[tuple[int, ...], tuple[float, int, Context]] = {}
        self.order = 0

    @property
    def least(self) -> float:
        """A value has to be above this to be kept."""
        self._drop_replaced()
        return self.heap[0][0] if len(self.kept) >= self.k else -float("inf")

    def offer(self, value: float, key: tuple[int, ...], context: Context) -> None:
        """Keep a context while it is among the strongest; of equal ones the first."""
        if value <= self.least or (key in self.kept and self.kept[key][0] >= value):
            return
        self.order += 1
        self.kept[key] = (value, self.order, context)
        heapq.heappush(self.heap, (value, -self.order, key))
        if len(self.kept) > self.k:
            self._drop_replaced()
            del self.kept[heapq.heappop(self.heap)[2]]

    def _drop_replaced(self) -> None:
        """Remove what a stronger context with the same last tokens has replaced."""
        while self.heap and self.kept.get(self.heap[0][2], (None, 0))[1] != -self.heap[0][1]:
            heapq.heappop(self.heap)

    def contexts(self) -> list[Context]:
        """The strongest first."""
        order = sorted(self.kept.values(), key=lambda kept: (-kept[0], kept[1]))
        return [context for _, _, context in order]


@dataclass
class Activity:
    """What was gathered of a corpus.

    Attributes:
        part: of the model.
        groups: the names of the groups.
        strongest: of each group.
        most_windows: how many windows to choose.
        rng: of the samples.
        sampled: contexts of a uniform sample.
        kinds: of each kind of position, a sample of (value, window).
        everywhere: of every position, with its kind.
        counts: (window, group) positions.
        documents: each window's.
        chosen: windows of a uniform sample, with their number.
        total: of the values, over `n` positions.
        largest: the largest value.
        mean_output, first_output: of what an ablation replaces, over the positions after the
            first of a window, and over the first.
        sources: what a head takes from each token.
    """

    part: CardPart
    groups: tuple[str, ...]
    strongest: list[Strongest]
    most_windows: int
    rng: np.random.Generator
    kinds: dict[int, Draw] = field(default_factory=dict)
    everywhere: Draw = field(default_factory=lambda: Draw(OF_A_KIND, 3))
    sampled: list[tuple[float, int, int, Context]] = field(default_factory=list)
    chosen: list[tuple[float, int, Window]] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    n: int = 0
    total: float = 0.0
    largest: float = -float("inf")
    mean_output: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    sources: Sources | None = None

    def units(self) -> tuple[NDArray[np.int64], str, int]:
        """Each window's unit of resampling, what the units are, and how many."""
        named = len(set(self.documents))
        if named >= BOOTSTRAP_FROM:
            return units_named(self.documents), "documents", named
        return units_of(len(self.documents)), "windows", len(self.documents)


class Sources:
    """What a head takes from each token of the vocabulary, summed over the corpus.

    Attributes:
        values: (token, d_head) sums of its values, without their constant part.
        counts: (token,) how often the token was a key.
        attention: (token,) the attention it got.
        first: attention that went to the first position of a window.
        queries: how many queries there were.
    """

    def __init__(self, model: Model, part: HeadPart) -> None:
        self.part = part
        n = model.config.d_vocab
        self.values = torch.zeros(n, model.config.d_head, dtype=torch.float64)
        self.counts = torch.zeros(n, dtype=torch.float64)
        self.attention = torch.zeros(n, dtype=torch.float64)
        self.first = 0.0
        self.queries = 0

    def add(self, model: Model, trace: Trace, pattern: torch.Tensor) -> None:
        """Take in some windows; the first position is no query here."""
        mask = trace.tokens.mask.clone()
        got = (pattern.double() * mask[:, :, None])[:, 1:].sum(1)
        self.first += float(got[:, 0].sum())
        mask[:, 0] = False
        self.queries += int(mask.sum())
        ids = trace.tokens.ids[mask].cpu()
        self.values.index_add_(0, ids, self.part.values(model, trace)[mask].cpu())
        self.counts += torch.bincount(ids, minlength=len(self.counts))
        self.attention.index_add_(0, ids, got[mask].cpu())


def activities_in(
    model: Model,
    parts: Sequence[CardPart],
    windows: Iterable[Window],
    *,
    k: int,
    most_windows: int,
    seed: int = 0,
) -> list[Activity]:
    """Run the windows of a corpus once, and gather where each part is active.

    Args:
        model: the decoder.
        parts: of it.
        windows: of the corpus, such as `behaviour.windows.Windows`.
        k: how many of the strongest contexts.
        most_windows: how many windows an ablation is measured on.
        seed: of the samples.

    Raises: MeasureError for a corpus of fewer than k positions, and for values that are not finite.
    """
    below = layers_of(model, 0, max(part.layer for part in parts) + 1)
    every = [_begun(model, part, k, most_windows, seed) for part in parts]
    batch: list[Window] = []
    with torch.no_grad():
        for window in windows:
            batch.append(window)
            if len(batch) * max(len(w.ids) for w in batch) >= AT_ONCE:
                _take_all(every, below, batch)
                batch = []
        if batch:
            _take_all(every, below, batch)
    n = every[0].n
    if n < k:
        raise MeasureError(
            f"the corpus has {n:,} positions after the first of a window, fewer than the "
            f"{k} contexts asked for",
            allowed=f"k up to {n}",
            hint="Give more text, or a smaller k=",
        )
    for found in every:
        assert found.mean_output is not None
        found.mean_output /= found.n
        assert found.first_output is not None
        found.first_output /= len(found.documents)
    return every


def _begun(model: Model, part: CardPart, k: int, most_windows: int, seed: int) -> Activity:
    """Nothing yet. Each part has its own generator, so that all draw the same windows."""
    groups = part.groups(model)
    heaps = [Strongest(k) for _ in groups]
    found = Activity(part, groups, heaps, most_windows, np.random.default_rng(seed))
    if isinstance(part, HeadPart):
        found.sources = Sources(model, part)
    return found


def _take_all(every: list[Activity], model: Model, batch: list[Window]) -> None:
    """Run some windows, and take in what they show of each part."""
    tokens = Tokens.of([window.ids for window in batch]).to(model.device)
    trace = run(model, tokens, keep=[k for found in every for k in found.part.keep(model)])
    for found in every:
        _take(found, model, batch, trace)


def _take(found: Activity, model: Model, batch: list[Window], trace: Trace) -> None:
    """Take in what some windows show of one part."""
    part = found.part
    values = part.activity(model, trace).double().cpu().numpy()
    group = part.group(model, trace).cpu().numpy().astype(np.int64)
    pattern = None
    if isinstance(part, HeadPart):
        pattern = part.pattern(model, trace)
        assert found.sources is not None
        found.sources.add(model, trace, pattern)
    _add_outputs(found, part.output(trace), trace.tokens)
    for i, window in enumerate(batch):
        number, length = len(found.documents), len(window.ids)
        own, sides = values[i, 1:length], group[i, 1:length]
        if not np.isfinite(own).all():
            raise MeasureError(
                f"{part.name} is not finite in {window.document}, line {window.lines[0]}",
                hint="Use bfloat16 or float32 (dtype='float32'): float16 ends at 65,504",
            )
        found.documents.append(window.document)
        found.counts.append(np.bincount(sides, minlength=len(found.groups)))
        found.n += len(own)
        found.total += float(own.sum())
        found.largest = max(found.largest, float(own.max()))
        _sample(found, window, number, own, sides, None if pattern is None else pattern[i])


def _add_outputs(found: Activity, output: torch.Tensor, tokens: Tokens) -> None:
    """Sums of what an ablation replaces, at the first position and at the others."""
    mask = tokens.mask.clone()
    first = output[:, 0].double().sum(0)
    mask[:, 0] = False
    total = output[mask].double().sum(0)
    found.mean_output = total if found.mean_output is None else found.mean_output + total
    found.first_output = first if found.first_output is None else found.first_output + first


def _sample(
    found: Activity,
    window: Window,
    number: int,
    own: Array,
    sides: NDArray[np.int64],
    pattern: torch.Tensor | None,
) -> None:
    """Offer a window's positions to the heaps and the samples."""
    kinds = np.array(window.kinds[1:])
    priority = found.rng.random(len(own) + 1)
    _choose(found, float(priority[-1]), number, window)
    priority = priority[:-1]
    where = np.full(len(own), number)
    found.everywhere.add(priority, own, where, kinds)
    for kind in np.unique(kinds):
        there = kinds == kind
        draw = found.kinds.setdefault(int(kind), Draw(OF_A_KIND, 2))
        draw.add(priority[there], own[there], where[there])
    size = np.abs(own)
    for side in np.unique(sides):
        heap = found.strongest[int(side)]
        some = np.flatnonzero((sides == side) & (size > heap.least))
        for p in some[np.argsort(-size[some], kind="stable")[: heap.k]].tolist():
            key = window.ids[max(0, p + 2 - SAME) : p + 2]
            heap.offer(float(size[p]), key, _context(window, p + 1, own[p], int(side), pattern))
    limit = -found.sampled[0][0] if len(found.sampled) == SAMPLED else 1.0
    for p in np.flatnonzero(priority < limit).tolist():
        context = _context(window, p + 1, own[p], int(sides[p]), pattern)
        entry = (-float(priority[p]), number, p, context)
        push = heapq.heappushpop if len(found.sampled) == SAMPLED else heapq.heappush
        push(found.sampled, entry)


def _choose(found: Activity, priority: float, number: int, window: Window) -> None:
    """Keep the windows with the smallest priorities for the ablation."""
    entry = (-priority, number, window)
    if len(found.chosen) < found.most_windows:
        heapq.heappush(found.chosen, entry)
    elif found.chosen and entry > found.chosen[0]:
        heapq.heapreplace(found.chosen, entry)


def _context(
    window: Window, at: int, value: float, group: int, pattern: torch.Tensor | None
) -> Context:
    key = share = None
    if pattern is not None:
        row = pattern[at, : at + 1]
        key = int(row.argmax())
        share = float(row[key])
    return Context(
        value=float(value),
        ids=window.ids,
        at=at,
        document=window.document,
        line=window.lines[at],
        group=group,
        key=key,
        key_share=share,
    )


def kind_values(found: Activity, kind: int) -> tuple[Array, NDArray[np.int64], int]:
    """A kind's sampled values, each one's window, and how many positions of the kind there were."""
    if kind not in found.kinds:
        return np.empty(0), np.empty(0, dtype=np.int64), 0
    values, window = found.kinds[kind].columns()
    return values, window.astype(np.int64), found.kinds[kind].seen
