"""What would the model say if one activation were another, for thousands of activations at once?

The incremental engine behind every exact patch. A cell replaces one activation (a site, a layer, a
place, perhaps a head or a neuron) in one prompt and reads the metric at the prompt's last token. A
plain way is one full forward pass per cell; this way computes only what the replacement changes:

- nothing below its layer and nothing before its first position: keys and values there come from
  the unpatched run, and positions before the two runs first differ are known to change nothing;
- in the layer it enters, only the positions it touches, until attention spreads them;
- in the last layer, only the last position, and for a linear contrast a dot product with its
  folded direction instead of an unembedding.

All cells climb the layers together. Those that enter at a layer join those that entered below, so
every layer is a few large matrix products over packed rows; only attention looks at which rows
belong together: variants that share a first position and a length.

Assumes a causal decoder. Cost: 2 x parameters of a block x rows x layers above, where a cell has as
many rows as there are positions from its first to the last. Memory is held under a budget: prompts
are taken in blocks whose unpatched runs fit, their cells in climbs of so many rows.

Exact: a sample of cells is recomputed with a full forward pass and one edit, and the sweep fails
where the two differ by more than 1e-4 in float32 (1e-9 in float64).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.errors import MeasureError, SiteError
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import (
    Trace,
    apply_norm,
    attend,
    attention_scores,
    merge_heads,
    mix_values,
    mlp,
    position_queries_and_keys,
    project,
    run,
    softmax,
    unembed,
    visible_keys,
)
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site, check_layer
from casestudy.model.tokens import Tokens
from casestudy.results.stats import ratio_of_means

Metric = Callable[[Tensor, Tensor], Tensor]
"""From last-position logits (rows, d_vocab) and each row's prompt (rows) to a value per row."""

Values = Callable[[Site, int | None, Tensor, Tensor], Tensor]
"""From a site, a layer, prompts (rows) and positions (rows) to activations that broadcast to
(rows, …), where … are the site's axes after batch and position."""

Progress = Callable[[int, int], None]
"""Told how many of how many (cell, prompt) pairs are done."""

Watch = Callable[["Sweep"], None]
"""Shown what was found so far, NaN where nothing was yet; what it raises ends the sweep."""

DEFAULT_MEMORY = 2 << 30
# Climbs of this many rows keep a CPU's matrix products at full rate while their buffers stay in
# cache and in memory the allocator already holds; a GPU needs more rows to be busy.
_ROWS = {"cpu": 2048}
_ROWS_ELSEWHERE = 65536
_MLP_BLOCK_BYTES = 8 << 20

_PRE = frozenset({Site.RESID_PRE, Site.EMBED, Site.POS_EMBED})
_KEYS = frozenset({Site.K, Site.V})
_HEADS = frozenset({Site.Z, Site.Q, Site.PATTERN})
_MID = frozenset({Site.RESID_MID, Site.ATTN_OUT}) | _HEADS
_CLIMBED = frozenset(
    {Site.EMBED, Site.POS_EMBED, Site.RESID_PRE, Site.Q, Site.K, Site.V, Site.Z, Site.ATTN_OUT}
    | {Site.RESID_MID, Site.MLP_OUT, Site.RESID_POST}
)
"""The sites that the other run gives without a full forward pass."""
_SOURCE = -1
_POST = frozenset({Site.MLP_OUT, Site.MLP_POST, Site.RESID_POST})
SITES = _PRE | _KEYS | _MID | _POST
"""The sites a cell may replace."""


@dataclass(frozen=True)
class Place:
    """Which positions of each prompt a cell covers, and where their replacements come from.

    Attributes:
        label: a position's number, a role's name, "all", "last".
        base: per prompt, positions in the run that is changed, ascending; empty where the prompt
            has no such place.
        source: per prompt, as many positions in the run the replacements come from.
    """

    label: str
    base: tuple[tuple[int, ...], ...]
    source: tuple[tuple[int, ...], ...]

    @classmethod
    def at(cls, position: int, tokens: Tokens) -> Place:
        """One absolute position, absent from the prompts that are shorter."""
        where = tuple((position,) if position < n else () for n in tokens.lengths.tolist())
        return cls(str(position), where, where)

    @classmethod
    def everywhere(cls, tokens: Tokens) -> Place:
        """Every position of every prompt."""
        where = tuple(tuple(range(n)) for n in tokens.lengths.tolist())
        return cls("all", where, where)

    @classmethod
    def last(cls, tokens: Tokens, source: Tokens | None = None) -> Place:
        """Each prompt's last token, from the last token of its partner."""
        source = tokens if source is None else source
        ends = tuple((n - 1,) for n in tokens.lengths.tolist())
        return cls("last", ends, tuple((n - 1,) for n in source.lengths.tolist()))


@dataclass(frozen=True, eq=False)
class Cell:
    """One replacement, made in each prompt on its own.

    Attributes:
        site: what is replaced; one of `SITES`.
        layer: in which layer; None for the embeddings.
        place: at which positions.
        head: one head (a key/value head for k and v), or None for all.
        neuron: one neuron of `mlp_post`, or None for all.
        subspace: orthonormal columns; only the stream's component in their span is replaced.
        values: what is put in, (prompt, pos, …) by base position, instead of the sweep's source;
            for a head, that head's alone.
    """

    site: Site
    layer: int | None
    place: Place
    head: int | None = None
    neuron: int | None = None
    subspace: Float[Tensor, "d_model k"] | None = None
    values: Float[Tensor, "prompt pos ..."] | None = None


@dataclass(frozen=True)
class Plan:
    """How a sweep was cut up: the same plan and thread count give the same numbers.

    Attributes:
        memory: the budget in bytes, beyond the model itself.
        rows: the largest climb allowed, in rows.
        threads: of the machine's arithmetic.
        blocks: per block of prompts: which prompts, and the rows at the top of each climb.
        operations: floating-point operations of the necessary matrix products: the two unpatched
            runs and every row of every climb (a multiplication and an addition count as two).
    """

    memory: int
    rows: int
    threads: int
    blocks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    operations: int

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "memory": self.memory,
            "rows": self.rows,
            "threads": self.threads,
            "blocks": [{"prompts": list(p), "climbs": list(c)} for p, c in self.blocks],
            "operations": self.operations,
        }


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        cells: as given.
        values: (cell, prompt) the metric with the cell's activation replaced; NaN where the prompt
            has no such place.
        base: (prompt,) the metric of the run that was changed.
        other: (prompt,) that of the run the replacements come from; None for an ablation.
        known: (cell, prompt) True where the value is the base's by construction: the two runs
            agree at the cell's place, or nothing there can reach the last position.
        error: {"gap": largest difference from the plain way in the sample, "bound": allowed (none
            in bfloat16), "checked": sample size}.
        plan: how it was cut up.
    """

    cells: tuple[Cell, ...]
    values: NDArray[np.float64]
    base: NDArray[np.float64]
    other: NDArray[np.float64] | None
    known: NDArray[np.bool_]
    error: dict[str, float]
    plan: Plan

    def normalised(self) -> NDArray[np.float64]:
        """Per cell: (mean patched - mean base) / (mean other - mean base), over the same prompts.

        1 is the other run, 0 the unpatched one; NaN where the two do not differ or no prompt has
        the cell's place.
        """
        if self.other is None:
            raise MeasureError("an ablation has no other run", hint="Compare with the base instead")
        return ratio_of_means(self.values, self.base, self.other)


def sweep(
    model: Model,
    base: Tokens,
    source: Tokens | Values | None,
    cells: Sequence[Cell],
    metric: Contrast | Metric,
    *,
    memory: int = DEFAULT_MEMORY,
    check: int = 8,
    seed: int = 0,
    rows: int | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Sweep:
    """Every cell in every prompt, exactly.

    Args:
        model: the decoder.
        base: the run that is changed (denoising: the corrupted prompts; noising: the clean ones).
        source: where replacements come from: the prompts of the other run, pair by pair; a function
            (ablations); or None where every cell brings its own `values`.
        cells: what to replace.
        metric: a contrast, or any function of the logits at the last token.
        memory: budget in bytes, beyond the model's own parameters.
        check: how many computed (cell, prompt) pairs to recompute the plain way.
        seed: which pairs those are.
        rows: the largest climb, in rows; by default what keeps the device busy. Smaller ones let
            somebody who watches see more, sooner.
        progress, watch: called after every climb.

    Unit:   the metric's (logits for a contrast).
    Error:  largest gap between the sampled values and full forward passes.
    Raises: MeasureError for pairs that are identical or do not match, NaN in a run, a budget too
            small, or a failed check; SiteError for a cell the model does not have.
    """
    for cell in cells:
        _validate(model.config, cell, base, source)
    if isinstance(source, Tokens):
        _validate_pairs(base, source)
    with torch.no_grad():
        return _Engine(model, base, source, tuple(cells), metric).sweep(
            memory, check, seed, rows, progress, watch
        )


def rounding_bound(dtype: torch.dtype) -> float:
    """What two ways of computing one value may differ by; bfloat16 promises nothing."""
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, float("inf"))


def first_differences(base: Tokens, source: Tokens) -> list[int]:
    """Per pair, the first position at which the two differ (where one is a prefix: its length)."""
    found = []
    for a, b in zip(base.rows(), source.rows(), strict=True):
        same = [x == y for x, y in zip(a, b, strict=False)]
        found.append(same.index(False) if False in same else len(same))
    return found


def _validate(
    config: ModelConfig, cell: Cell, base: Tokens, source: Tokens | Values | None
) -> None:
    site = cell.site
    if site not in SITES:
        names = ", ".join(sorted(s.value for s in SITES))
        raise SiteError(f"a sweep cannot replace {site.value}", allowed=names)
    if site is Site.RESID_MID and config.parallel:
        raise SiteError("this model's blocks are parallel: they have no resid_mid")
    if site is Site.POS_EMBED and not config.learned_positions:
        raise SiteError("this model has no position embedding")
    if site.layered:
        if cell.layer is None:
            raise SiteError(f"a cell at {site.value} names no layer")
        check_layer(cell.layer, config.n_layers)
    for what, index, axes, count in (
        ("head", cell.head, ("head",), config.n_heads),
        ("head", cell.head, ("kv_head",), config.n_kv_heads),
        ("neuron", cell.neuron, ("d_mlp",), config.d_mlp),
    ):
        if axes[0] in site.axes and index is not None and not 0 <= index < count:
            raise SiteError(f"{what} {index} of {site.value}", allowed=f"0 to {count - 1}")
    if cell.head is not None and not {"head", "kv_head"} & set(site.axes):
        raise SiteError(f"{site.value} has no heads")
    if cell.neuron is not None and site is not Site.MLP_POST:
        raise SiteError(f"{site.value} has no neurons", allowed="mlp_post")
    if cell.subspace is not None and "d_model" not in site.axes:
        raise SiteError(
            f"{site.value} does not lie in the residual stream", hint="No subspace there"
        )
    place, lengths = cell.place, base.lengths.tolist()
    others = source.lengths.tolist() if isinstance(source, Tokens) else lengths
    if len(place.base) != len(lengths) or len(place.source) != len(lengths):
        raise MeasureError(f"place {place.label} knows {len(place.base)} prompts of {len(lengths)}")
    for b, (here, there) in enumerate(zip(place.base, place.source, strict=True)):
        if len(here) != len(there):
            raise MeasureError(
                f"prompt {b}: {place.label} is {len(here)} positions here and {len(there)} there",
                allowed="as many in both runs",
            )
        if any(not 0 <= p < lengths[b] for p in here) or any(
            not 0 <= p < others[b] for p in there if cell.values is None
        ):
            raise SiteError(
                f"prompt {b}: {place.label} is at {list(here)}",
                allowed=f"positions 0 to {min(lengths[b], others[b]) - 1}",
            )
        if list(here) != sorted(set(here)):
            raise SiteError(f"prompt {b}: {place.label} is at {list(here)}", allowed="ascending")
    if source is None and cell.values is None:
        raise MeasureError(f"a cell at {site.value} has no values and the sweep has no source")
    if site is Site.PATTERN and others != lengths:
        raise MeasureError("patterns of unequal lengths cannot be exchanged")


def _validate_pairs(base: Tokens, source: Tokens) -> None:
    if len(base) != len(source):
        raise MeasureError(f"{len(base)} prompts and {len(source)} partners", allowed="pairs")
    same = [b for b, (x, y) in enumerate(zip(base.rows(), source.rows(), strict=True)) if x == y]
    if same:
        raise MeasureError(
            f"clean and corrupted are identical in prompts {', '.join(map(str, same))}",
            hint="Leave them out: nothing can be patched between equal runs",
        )


@dataclass(frozen=True)
class _Variant:
    """A cell in a prompt: one row of work for the sweep."""

    cell: int
    prompt: int
    positions: tuple[int, ...]
    sources: tuple[int, ...]
    length: int

    @property
    def first(self) -> int:
        return self.positions[0]

    @property
    def rows(self) -> int:
        return self.length - self.positions[0]


@dataclass
class _Entry:
    """Cells that enter at one site of one layer, one row per (variant, position)."""

    site: Site
    layer: int | None
    cell: Cell  # whose subspace and values all of them share
    ids: Int[Tensor, " row"]
    prompts: Int[Tensor, " row"]  # within the block
    positions: Int[Tensor, " row"]
    sources: Int[Tensor, " row"]
    heads: Int[Tensor, " row"]  # -1: all
    neurons: Int[Tensor, " row"]


@dataclass
class _Narrow:
    """Rows of the stream that entered in this layer; attention has not spread them yet."""

    x: Float[Tensor, "row d_model"]
    ids: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]


@dataclass
class _Group:
    """Variants with one length and one first position, side by side in the packed rows."""

    length: int
    first: int
    ids: Int[Tensor, " n"]
    prompts: Int[Tensor, " n"]

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> int:
        return self.size * (self.length - self.first)


@dataclass
class _Block:
    """Some prompts with their unpatched runs."""

    prompts: tuple[int, ...]
    base: Trace
    source: Trace | None
    local: dict[int, int] = field(default_factory=dict)


class _Engine:
    """One sweep: the cells, the two runs, and how the metric is read."""

    def __init__(
        self,
        model: Model,
        base: Tokens,
        source: Tokens | Values | None,
        cells: tuple[Cell, ...],
        metric: Contrast | Metric,
    ) -> None:
        self.model, self.config, self.weights = model, model.config, model.weights
        self.base, self.source = base.to(model.device), source
        if isinstance(source, Tokens):
            self.source = source.to(model.device)
        self.cells = tuple(
            cell if cell.layer is None else replace(cell, layer=cell.layer % self.config.n_layers)
            for cell in cells
        )
        self.device = model.device
        self.top = self.config.n_layers - 1
        self.lengths = [int(n) for n in base.lengths]
        self.differ = [0] * len(base)
        if isinstance(self.source, Tokens):
            self.differ = first_differences(self.base, self.source)
        # Worth it from half the tokens on: a plain run is a few percent of a sweep.
        self.shares_prefix = (
            isinstance(self.source, Tokens)
            and self.lengths == self.source.lengths.tolist()
            and all(cell.site in _CLIMBED or cell.values is not None for cell in cells)
            and sum(self.differ) > sum(self.lengths) / 2
        )
        self.readout = Readout(model, metric, len(base))
        self.operations = 0

    def cell_of(self, variant: _Variant) -> Cell:
        """A variant's cell; the other run's is all its positions' embeddings."""
        if variant.cell == _SOURCE:
            return Cell(Site.RESID_PRE, 0, Place("all", (), ()))
        return self.cells[variant.cell]

    # What there is to do.

    def variants(self) -> tuple[list[_Variant], NDArray[np.bool_], NDArray[np.bool_]]:
        """The (cell, prompt) pairs to compute; which are known; which are absent."""
        shape = (len(self.cells), len(self.base))
        known, absent = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        live: dict[tuple[int, bool, bool], list[tuple[tuple[int, int], ...]]] = {}
        variants = []
        for c, cell in enumerate(self.cells):
            ends = cell.layer == self.top and cell.site in _MID | _POST
            own = cell.values is not None
            key = (id(cell.place), ends, own)
            if key not in live:
                live[key] = [
                    tuple(
                        (p, s)
                        for p, s in zip(cell.place.base[b], cell.place.source[b], strict=True)
                        if (own or p != s or p >= self.differ[b])
                        and (not ends or p == self.lengths[b] - 1)
                    )
                    for b in range(len(self.base))
                ]
            for b, pairs in enumerate(live[key]):
                if not cell.place.base[b]:
                    absent[c, b] = True
                elif not pairs:
                    known[c, b] = True
                else:
                    here, there = tuple(p for p, _ in pairs), tuple(s for _, s in pairs)
                    variants.append(_Variant(c, b, here, there, self.lengths[b]))
        return variants, known, absent

    def sites(self, variants: Sequence[_Variant]) -> tuple[list[Keep], list[Keep]]:
        """What the unpatched run and the other run have to keep."""
        base: set[tuple[Site, int | None]] = set()
        source: set[tuple[Site, int | None]] = set()
        lowest = self.config.n_layers
        for cell in {v.cell: self.cells[v.cell] for v in variants}.values():
            layer, site = cell.layer, cell.site
            lowest = min(lowest, layer or 0)
            if cell.values is None and isinstance(self.source, Tokens):
                source.add((site, layer))
            base.add((site, layer))
            if site in _POST or (site in _MID and self.config.parallel):
                base.add((Site.RESID_POST, layer))
            if site in _HEADS:
                base |= {(Site.Z, layer), (Site.ATTN_OUT, layer)}
            if site in _HEADS | {Site.ATTN_OUT} and not self.config.parallel:
                base.add((Site.RESID_MID, layer))
            if site is Site.MLP_POST:
                base.add((Site.MLP_OUT, layer))
        for layer in range(0 if self.shares_prefix else lowest, self.config.n_layers):
            base |= {(Site.RESID_PRE, layer), (Site.ROT_K, layer), (Site.V, layer)}
        final = Site.FINAL_RESID.at(last=True)
        return [*_keeps(base), final], [*_keeps(source), final]

    # The plan.

    def trace_bytes(self, keeps: Iterable[Keep], length: int) -> int:
        """What one prompt of this length takes in a block's unpatched run."""
        c, total = self.config, 0
        sizes = {
            "d_model": c.d_model,
            "d_head": c.d_head,
            "head": c.n_heads,
            "kv_head": c.n_kv_heads,
            "d_mlp": c.d_mlp,
        }
        for keep in keeps:
            size = 1
            for axis in keep.site.axes[1:]:
                size *= sizes.get(axis, length)
            total += size * (1 if keep.layers is None else len(keep.layers))
        return total * self.itemsize

    @property
    def itemsize(self) -> int:
        return self.weights.W_E.element_size()

    def row_bytes(self) -> int:
        """Per row of a climb: the stream (four times at the peak), q, k, v, z and the scores."""
        c = self.config
        heads = 3 * c.n_heads * c.d_head + 2 * c.n_kv_heads * c.d_head
        scores = 3 * c.n_heads * max(self.lengths)
        joined = 2 * c.n_heads * c.d_head * 5  # keys and values with up to four prefixes beside
        return (5 * c.d_model + heads + scores + joined) * self.itemsize

    def mlp_block(self) -> int:
        """Rows per call of the MLP."""
        return max(64, _MLP_BLOCK_BYTES // (self.config.d_mlp * self.itemsize))

    def plan(
        self,
        variants: Sequence[_Variant],
        keeps: tuple[list[Keep], list[Keep]],
        memory: int,
        most: int | None,
    ) -> tuple[int, list[tuple[list[int], list[list[_Variant]]]]]:
        """Blocks of prompts, each with its climbs.

        Raises: MeasureError where not even one cell fits.
        """
        cap = most or _ROWS.get(self.device.type, _ROWS_ELSEWHERE)
        widths = 2 if self.config.gated_mlp else 1
        block = min(self.mlp_block(), cap)
        scratch = block * ((1 + widths) * self.config.d_mlp + 2 * self.config.d_model)
        scratch *= self.itemsize
        per_prompt: dict[int, list[_Variant]] = {}
        for variant in variants:
            per_prompt.setdefault(variant.prompt, []).append(variant)
        order = sorted(range(len(self.base)), key=lambda b: (self.lengths[b], b))

        def trace(prompts: Sequence[int]) -> int:
            longest = max(self.lengths[b] for b in prompts)
            # a run holds, beside what it keeps, one layer's activations of its whole block
            passing = longest * (8 * self.config.d_model + 3 * self.config.d_mlp) * self.itemsize
            kept = sum(self.trace_bytes(keep, longest) for keep in keeps)
            return len(prompts) * (kept + passing)

        blocks: list[tuple[list[int], list[list[_Variant]]]] = []
        while order:
            taken = [order.pop(0)]
            while order and trace([*taken, order[0]]) <= memory // 2:
                # sorted by length: the next is the longest, and all are padded to it
                own = self.lengths[order[0]] + sum(self.lengths[b] for b in taken)
                if (len(taken) + 1) * self.lengths[order[0]] > 2 * own:
                    break
                taken.append(order.pop(0))
            mine = [v for b in taken for v in per_prompt.get(b, [])]
            mine.sort(key=lambda v: (v.length, v.first, v.prompt, v.cell))
            left = memory - trace(taken) - scratch
            least = max((v.rows for v in mine), default=1)
            if left < least * self.row_bytes():
                need = trace(taken) + scratch + least * self.row_bytes()
                raise MeasureError(
                    f"a memory budget of {memory / 1e6:.2f} MB",
                    allowed=f"at least {need / 1e6 + 0.01:.2f} MB, for one cell of the longest "
                    "prompt",
                )
            rows = min(cap, left // self.row_bytes())
            blocks.append((taken, _cut(mine, max(rows, least))))
        return cap, blocks

    # The run.

    def sweep(
        self,
        memory: int,
        check: int,
        seed: int,
        rows: int | None,
        progress: Progress | None,
        watch: Watch | None,
    ) -> Sweep:
        variants, known, absent = self.variants()
        keeps = self.sites(variants)
        cap, blocks = self.plan(variants, keeps, memory, rows)
        chosen = set(random.Random(seed).sample(range(len(variants)), min(check, len(variants))))
        sample = [variants[i] for i in sorted(chosen)]

        values = np.full(known.shape, np.nan)
        base = np.full(len(self.base), np.nan)
        other = np.full(len(self.base), np.nan) if isinstance(self.source, Tokens) else None
        done, gap = int(known.sum()), 0.0
        total = done + len(variants)

        def found() -> Sweep:
            plan = Plan(
                memory,
                cap,
                torch.get_num_threads(),
                tuple((tuple(p), tuple(sum(v.rows for v in c) for c in cs)) for p, cs in blocks),
                self.operations,
            )
            all_values = np.where(known, base[None, :], values)
            ends = None if other is None else other.copy()
            return Sweep(self.cells, all_values, base.copy(), ends, known, {}, plan)

        if progress:
            progress(done, total)
        for prompts, climbs in blocks:
            block = self.open_block(prompts, keeps)
            base[prompts] = self.read_run(block.base, prompts, "the unpatched run")
            if other is not None and block.source is not None:
                other[prompts] = self.read_run(block.source, prompts, "the other run")
            for climb in climbs:
                ours = _Climb(self, block, climb).climb().cpu().numpy()
                values[[v.cell for v in climb], [v.prompt for v in climb]] = ours
                done += len(climb)
                if progress:
                    progress(done, total)
                if watch:
                    watch(found())
            mine = [v for v in sample if v.prompt in block.local]
            if mine:
                plain = self.plainly(block, mine)
                ours = values[[v.cell for v in mine], [v.prompt for v in mine]]
                gap = max(gap, float(np.abs(plain - ours).max()))
        whole = found()
        if np.isnan(whole.values[~absent]).any():
            raise MeasureError("a patched run gave NaN", hint="The replacement may not be finite")
        bound = rounding_bound(self.model.dtype)
        if not gap <= bound:
            raise MeasureError(
                f"the sweep differs from full forward passes by {gap:.2e} logits",
                allowed=f"at most {bound:.0e}",
                hint="Please report it with the model and the cells",
            )
        error = {"gap": gap, "checked": float(len(sample))}
        if bound < float("inf"):
            error["bound"] = bound
        return replace(whole, error=error)

    def open_block(self, prompts: list[int], keeps: tuple[list[Keep], list[Keep]]) -> _Block:
        base = run(self.model, self.base[prompts], keep=keeps[0])
        block = _Block(tuple(prompts), base, None, {b: i for i, b in enumerate(prompts)})
        size = self.attention_size() + self.mlp_size()
        self.count(sum(self.lengths[b] for b in prompts), size, layers=self.config.n_layers)
        if isinstance(self.source, Tokens) and self.shares_prefix:
            block.source = self.climbed_source(block, prompts, keeps[1])
        elif isinstance(self.source, Tokens):
            block.source = run(self.model, self.source[prompts], keep=keeps[1])
            rows = sum(int(self.source.lengths[b]) for b in prompts)
            self.count(rows, size, layers=self.config.n_layers)
        return block

    def climbed_source(self, block: _Block, prompts: list[int], keeps: list[Keep]) -> Trace:
        """The other run from the first differences on; what is before them is the unpatched run's.

        In the last layer only what reaches the last position is right, and only that is used.
        """
        assert isinstance(self.source, Tokens)
        tokens = self.source[prompts]
        config = replace(self.config, n_layers=0)
        bare = replace(self.model, config=config, weights=replace(self.weights, blocks=()))
        sites = [Site.EMBED, *([Site.POS_EMBED] if self.weights.W_pos is not None else [])]
        embedded = run(bare, tokens, keep=[*sites, Site.FINAL_RESID])
        kept = {
            address: embedded.values[address]
            if address in embedded.values
            else block.base.values[address].clone()
            for keep in keeps
            if not keep.last
            for address in keep.addresses(self.config.n_layers)
        }
        variants = [
            _Variant(_SOURCE, b, where, where, self.lengths[b])
            for b in prompts
            for where in [tuple(range(self.differ[b], self.lengths[b]))]
        ]
        climb = _SourceClimb(self, block, variants, embedded[Site.FINAL_RESID], kept)
        climb.climb()
        lasts: dict[tuple[Site, int | None], Tensor] = {(Site.FINAL_RESID, None): climb.final}
        return Trace(tokens, kept, lasts, None, self.config.n_layers)

    def read_run(self, trace: Trace, prompts: list[int], what: str) -> NDArray[np.float64]:
        index = torch.tensor(prompts, device=self.device)
        values = self.readout(trace.last(Site.FINAL_RESID), index).cpu().numpy()
        if not np.isfinite(values).all():
            bad = [prompts[i] for i in np.flatnonzero(~np.isfinite(values))]
            raise MeasureError(f"{what} gave NaN or infinity in prompts {bad}")
        return np.asarray(values, dtype=np.float64)

    def source_rows(self, block: _Block, entry: _Entry) -> Tensor:
        """What an entry's rows are replaced by: (row, …), all heads and neurons."""
        if entry.cell.values is not None:
            index = torch.tensor(block.prompts, device=self.device)[entry.prompts]
            given = entry.cell.values.to(self.device, self.model.dtype)
            return given[index, entry.positions]
        if block.source is not None:
            kept = block.source.values[entry.site, entry.layer]
            return _rows(entry.site, kept, entry.prompts, entry.sources)
        assert callable(self.source)
        index = torch.tensor(block.prompts, device=self.device)[entry.prompts]
        rows = self.source(entry.site, entry.layer, index, entry.positions)
        shape = block.base.values[entry.site, entry.layer].shape
        rest = (shape[1], shape[3]) if entry.site is Site.PATTERN else shape[2:]
        return rows.to(self.device, self.model.dtype).expand(len(index), *rest)

    def entry(self, block: _Block, variants: Sequence[_Variant], ids: Sequence[int]) -> _Entry:
        """The rows of variants that share a site, a layer, a subspace and values."""
        first = self.cell_of(variants[0])
        columns: list[list[int]] = [[], [], [], [], [], []]
        for variant, number in zip(variants, ids, strict=True):
            cell, n = self.cell_of(variant), len(variant.positions)
            columns[0] += [number] * n
            columns[1] += [block.local[variant.prompt]] * n
            columns[2] += variant.positions
            columns[3] += variant.sources
            columns[4] += [-1 if cell.head is None else cell.head] * n
            columns[5] += [-1 if cell.neuron is None else cell.neuron] * n
        tensors = [torch.tensor(column, device=self.device) for column in columns]
        return _Entry(first.site, first.layer, first, *tensors)

    # The plain way.

    def plainly(self, block: _Block, sample: Sequence[_Variant]) -> NDArray[np.float64]:
        """The same values by full forward passes with one edit per prompt."""
        prompts = [v.prompt for v in sample]
        edits = [self.plain_edit(block, v, i) for i, v in enumerate(sample)]
        trace = run(self.model, self.base[prompts], edit=edits, logits="last")
        assert trace.logits is not None
        index = torch.tensor(prompts, device=self.device)
        found = self.readout.of_logits(trace.logits, index).cpu().numpy()
        return np.asarray(found, dtype=np.float64)

    def plain_edit(self, block: _Block, variant: _Variant, row: int) -> Edit:
        """The cell as an edit of one row of a plain run, at all its positions, live or not."""
        cell = self.cells[variant.cell]
        place = cell.place
        whole = _Variant(
            variant.cell,
            variant.prompt,
            place.base[variant.prompt],
            place.source[variant.prompt],
            variant.length,
        )
        new = self.source_rows(block, self.entry(block, [whole], [0]))
        where = torch.tensor(whole.positions, device=self.device)

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

    # Counting operations.

    def attention_size(self) -> int:
        """Parameters of one layer's attention matrices."""
        c = self.config
        return 2 * c.d_model * c.d_head * (c.n_heads + c.n_kv_heads)

    def mlp_size(self) -> int:
        """Parameters of one layer's MLP matrices."""
        return (3 if self.config.gated_mlp else 2) * self.config.d_model * self.config.d_mlp

    def count(self, rows: int, size: int, layers: int = 1) -> None:
        self.operations += 2 * rows * size * layers


class _Climb:
    """Variants on their way up the layers."""

    def __init__(self, engine: _Engine, block: _Block, variants: Sequence[_Variant]) -> None:
        self.engine, self.block, self.variants = engine, block, variants
        self.model, self.config = engine.model, engine.config
        self.device, self.top = engine.device, engine.top
        self.values = torch.full(
            (len(variants),), float("nan"), dtype=torch.float64, device=self.device
        )
        self.first = self._column([v.first for v in variants])
        self.offset = torch.zeros(len(variants), dtype=torch.long, device=self.device)
        self.prompt = self._column([v.prompt for v in variants])
        self.entries: dict[int, list[_Entry]] = {}
        self.arrivals: dict[int, dict[tuple[int, int], list[int]]] = {}
        self._sort_arrivals()

    def _column(self, numbers: Sequence[int]) -> Int[Tensor, " n"]:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _sort_arrivals(self) -> None:
        """Which variants enter where, and at which layer's attention they spread."""
        batches: dict[tuple[Any, ...], list[int]] = {}
        for i, variant in enumerate(self.variants):
            cell = self.engine.cell_of(variant)
            layer = cell.layer or 0
            batches.setdefault((layer, cell.site, id(cell.subspace), id(cell.values)), []).append(i)
            spread = layer if cell.site in _PRE | _KEYS else layer + 1
            groups = self.arrivals.setdefault(spread, {})
            groups.setdefault((variant.length, variant.first), []).append(i)
        for (layer, *_), ids in batches.items():
            entry = self.engine.entry(self.block, [self.variants[i] for i in ids], ids)
            self.entries.setdefault(layer, []).append(entry)

    def climb(self) -> Float[Tensor, " variant"]:
        """Run every layer from the lowest entry up; the metric of every variant."""
        x = torch.empty(0, self.config.d_model, dtype=self.model.dtype, device=self.device)
        groups: list[_Group] = []
        narrow: list[_Narrow] = []
        for layer in range(min(self.entries), self.config.n_layers):
            entries = self.entries.get(layer, [])
            narrow += [self.enter_stream(e) for e in entries if e.site in _PRE]
            x, groups = self.spread(layer, x, groups, narrow)
            self.note(Site.RESID_PRE, layer, x, groups)
            narrow = []
            middle = []
            for entry in entries:
                if entry.site in _MID and not self.config.parallel:
                    middle.append(self.enter_middle(layer, entry))
                elif entry.site in _MID | _POST:
                    narrow.append(self.enter_end(layer, entry))
            if groups or middle:
                x, after = self.layer(layer, x, groups, middle, entries)
                narrow += after
        if groups:
            self.read(x, torch.cat([group.ids for group in groups]))
        for rows in narrow:
            self.read(rows.x, rows.ids)
        return self.values

    def read(self, x: Float[Tensor, "row d_model"], ids: Int[Tensor, " row"]) -> None:
        """Last-position rows to values."""
        self.values[ids] = self.engine.readout(x, self.prompt[ids])

    def note(self, site: Site, layer: int, x: Tensor, groups: list[_Group]) -> None:
        """For the climb of the other run, which keeps what it passes."""

    # Entering.

    def base_rows(self, site: Site, entry: _Entry) -> Tensor:
        layer = entry.layer if site.layered else None
        kept = self.block.base.values[site, layer]
        return _rows(site, kept, entry.prompts, entry.positions)

    def replaced(self, entry: _Entry) -> Tensor:
        """The entry's rows of its site after the replacement: all heads, all d_model."""
        new = self.engine.source_rows(self.block, entry)
        old = self.base_rows(entry.site, entry)
        subspace = entry.cell.subspace
        if subspace is not None:
            u = subspace.to(old)
            return old + (new - old) @ u @ u.T
        if not {"head", "kv_head"} & set(entry.site.axes):
            return new
        given = entry.cell.values is not None
        if given and entry.cell.head is not None:
            new = new.unsqueeze(1).expand_as(old)
        n_heads = old.shape[1]
        chosen = entry.heads[:, None] == torch.arange(n_heads, device=self.device)
        chosen = (chosen | (entry.heads < 0)[:, None])[..., None]
        return torch.where(chosen, new, old)

    def enter_stream(self, entry: _Entry) -> _Narrow:
        """Cells that replace what a layer reads."""
        new = self.replaced(entry)
        if entry.site is not Site.RESID_PRE:
            kept = self.block.base.values[Site.RESID_PRE, 0]
            pre = kept[entry.prompts, entry.positions]
            new = pre + (new - self.base_rows(entry.site, entry))
        return _Narrow(new, entry.ids, entry.positions)

    def enter_middle(self, layer: int, entry: _Entry) -> _Narrow:
        """Cells that replace the stream between attention and MLP, or what attention adds to it."""
        if entry.site is Site.RESID_MID:
            return _Narrow(self.replaced(entry), entry.ids, entry.positions)
        change = self.attention_change(layer, entry)
        mid = self.base_rows(Site.RESID_MID, entry) + change
        return _Narrow(mid, entry.ids, entry.positions)

    def enter_end(self, layer: int, entry: _Entry) -> _Narrow:
        """Cells that replace the stream after a layer, or what its MLP adds to it.

        In a parallel block attention's part is added here too.
        """
        if entry.site is Site.RESID_POST:
            return _Narrow(self.replaced(entry), entry.ids, entry.positions)
        if entry.site in _MID:
            change = self.attention_change(layer, entry)
        elif entry.site is Site.MLP_OUT:
            change = self.replaced(entry) - self.base_rows(Site.MLP_OUT, entry)
        else:
            change = self.neuron_change(layer, entry)
        post = self.base_rows(Site.RESID_POST, entry) + change
        return _Narrow(post, entry.ids, entry.positions)

    def attention_change(self, layer: int, entry: _Entry) -> Float[Tensor, "row d_model"]:
        """New attn_out minus the unpatched one."""
        old = self.base_rows(Site.ATTN_OUT, entry)
        if entry.site is Site.ATTN_OUT:
            return self.replaced(entry) - old
        block = self.model.weights.blocks[layer]
        new_z, old_z = self.new_z(layer, entry), self.base_rows(Site.Z, entry)
        self.engine.count(len(old), self.config.d_head * self.config.d_model)
        if block.attn_post_norm is None:
            flat = block.attn.W_O.reshape(-1, self.config.d_model)
            return (new_z - old_z).flatten(1) @ flat
        return apply_norm(self.config, block.attn_post_norm, merge_heads(new_z, block.attn)) - old

    def new_z(self, layer: int, entry: _Entry) -> Float[Tensor, "row head d_head"]:
        """Each row's head outputs once its query, its pattern or its z is replaced."""
        if entry.site is Site.Z:
            return self.replaced(entry)
        new = self.replaced(entry)  # row head (d_head or key_pos)
        out = torch.empty_like(self.base_rows(Site.Z, entry))
        keys = self.block.base.values[Site.ROT_K, layer]
        values = self.block.base.values[Site.V, layer]
        attn = self.model.weights.blocks[layer].attn
        everywhere = torch.arange(keys.shape[1], device=self.device)
        for prompt in entry.prompts.unique().tolist():
            rows = (entry.prompts == prompt).nonzero().squeeze(1)
            v = values[prompt][None]
            if entry.site is Site.PATTERN:
                out[rows] = mix_values(new[rows].transpose(0, 1)[None], v)[0]
                continue
            # queries of one prompt at any positions, over the prompt's unpatched keys
            q, at = new[rows][None], entry.positions[rows]
            some = keys[prompt][None, :1]  # rotated already; only the queries are wanted here
            q, _ = position_queries_and_keys(self.config, attn, layer, q, some, at, everywhere[:1])
            visible = visible_keys(self.config, layer, at, everywhere)
            scores = attention_scores(self.config, layer, q, keys[prompt][None], visible)
            out[rows] = mix_values(softmax(scores), v)[0]
        return out

    def neuron_change(self, layer: int, entry: _Entry) -> Float[Tensor, "row d_model"]:
        """New mlp_out minus the unpatched one, where neurons' outputs are replaced."""
        block = self.model.weights.blocks[layer]
        new, old = self.engine.source_rows(self.block, entry), self.base_rows(Site.MLP_POST, entry)
        if new.ndim == 1:  # a cell's own values, of one neuron
            new = new[:, None].expand_as(old)
        one = entry.neurons >= 0
        index = entry.neurons.clamp(min=0)
        change = torch.empty_like(self.base_rows(Site.MLP_OUT, entry))
        change[~one] = (new - old)[~one] @ block.mlp.W_out
        single = (new - old).gather(1, index[:, None])
        change[one] = (single * block.mlp.W_out[index])[one]
        if block.mlp_post_norm is None:
            return change
        raw = old @ block.mlp.W_out
        raw = raw if block.mlp.b_out is None else raw + block.mlp.b_out
        after = apply_norm(self.config, block.mlp_post_norm, raw + change)
        return after - self.base_rows(Site.MLP_OUT, entry)

    # Climbing.

    def spread(
        self,
        layer: int,
        x: Float[Tensor, "row d_model"],
        groups: list[_Group],
        narrow: list[_Narrow],
    ) -> tuple[Float[Tensor, "rows d_model"], list[_Group]]:
        """Join the variants that spread here: the unpatched suffix with their changed rows in."""
        fresh = self.arrivals.get(layer, {})
        if not fresh:
            return x, groups
        base = self.block.base.values[Site.RESID_PRE, layer]
        local = self._column([self.block.local[v.prompt] for v in self.variants])
        old = {(group.length, group.first): group for group in groups}
        starts, start = {}, 0
        for group in groups:
            starts[group.length, group.first] = start
            start += group.rows
        pieces, joined, start = [], [], 0
        for length, first in sorted(old.keys() | fresh.keys()):
            ids = []
            if (length, first) in old:
                group = old[length, first]
                at = starts[length, first]
                pieces.append(x[at : at + group.rows])
                ids.append(group.ids)
            if (length, first) in fresh:
                new = self._column(fresh[length, first])
                pieces.append(base[local[new], first:length].flatten(0, 1))
                ids.append(new)
            members = torch.cat(ids)
            group = _Group(length, first, members, local[members])
            steps = torch.arange(group.size, device=self.device) * (length - first)
            self.offset[members] = start + steps
            start += group.rows
            joined.append(group)
        x = torch.cat(pieces)
        for rows in narrow:
            x[self.row_of(rows.ids, rows.positions)] = rows.x
        return x, joined

    def row_of(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Where variants' positions lie among the packed rows."""
        return self.offset[ids] + positions - self.first[ids]

    def layer(
        self,
        layer: int,
        x: Float[Tensor, "row d_model"],
        groups: list[_Group],
        middle: list[_Narrow],
        entries: list[_Entry],
    ) -> tuple[Float[Tensor, "rows d_model"], list[_Narrow]]:
        """One block over the packed rows, and its MLP over the rows that entered in its middle."""
        narrow_rows = sum(len(rows.x) for rows in middle)
        if groups:
            keys = [entry for entry in entries if entry.site in _KEYS]
            out = self.attention(layer, x, groups, keys)
            if layer == self.top:
                x = x[self.last_rows(groups)]
            if self.config.parallel:
                added = self.mlp(layer, x)
                x = x + out + added
                self.note(Site.MLP_OUT, layer, added, groups)
                self.note(Site.RESID_POST, layer, x, groups)
                return x, []
            x = x + out
            self.note(Site.RESID_MID, layer, x, groups)
        wide = len(x)
        if narrow_rows:
            x = torch.cat([x, *(rows.x for rows in middle)])
        added = self.mlp(layer, x)
        x = x + added
        self.note(Site.MLP_OUT, layer, added[:wide], groups)
        self.note(Site.RESID_POST, layer, x[:wide], groups)
        after, start = [], wide
        for rows in middle:
            end = start + len(rows.x)
            after.append(_Narrow(x[start:end], rows.ids, rows.positions))
            start = end
        return x[:wide], after

    def last_rows(self, groups: list[_Group]) -> Int[Tensor, " variant"]:
        return torch.cat(
            [self.offset[group.ids] + group.length - 1 - group.first for group in groups]
        )

    def attention(
        self,
        layer: int,
        x: Float[Tensor, "row d_model"],
        groups: list[_Group],
        entries: list[_Entry],
    ) -> Float[Tensor, "query d_model"]:
        """attn_out of the packed rows; in the last layer, of each variant's last row only."""
        config, block = self.config, self.model.weights.blocks[layer]
        attn = block.attn
        normed = apply_norm(config, block.attn_norm, x)
        last = layer == self.top
        k, v = project(normed, attn.W_K, attn.b_K), project(normed, attn.W_V, attn.b_V)
        for entry in entries:
            rows = self.row_of(entry.ids, entry.positions)
            (k if entry.site is Site.K else v)[rows] = self.replaced(entry)
        self.note(Site.K, layer, k, groups)
        self.note(Site.V, layer, v, groups)
        positions = torch.cat(
            [
                torch.arange(group.first, group.length, device=self.device).repeat(group.size)
                for group in groups
            ]
        )
        query_positions = positions
        if last:
            rows = self.last_rows(groups)
            normed, query_positions = normed[rows], positions[rows]
        q = project(normed, attn.W_Q, attn.b_Q)
        self.note(Site.Q, layer, q, groups)
        q, k = position_queries_and_keys(
            config, attn, layer, q[None], k[None], query_positions, positions
        )
        q, k = q[0], k[0]
        head = self.config.d_head * self.config.d_model
        self.engine.count(len(x), 2 * config.n_kv_heads * head)
        self.engine.count(len(q), 2 * config.n_heads * head)

        z = torch.empty_like(q)
        start = query_start = 0
        for group in groups:
            end = start + group.rows
            query_end = query_start + (group.size if last else group.rows)
            z[query_start:query_end] = self.attend(
                layer,
                group,
                q[query_start:query_end].unflatten(0, (group.size, -1)),
                k[start:end].unflatten(0, (group.size, -1)),
                v[start:end].unflatten(0, (group.size, -1)),
            ).flatten(0, 1)
            start, query_start = end, query_end
        self.note(Site.Z, layer, z, groups)
        out = apply_norm(config, block.attn_post_norm, merge_heads(z, attn))
        self.note(Site.ATTN_OUT, layer, out, groups)
        return out

    def attend(
        self,
        layer: int,
        group: _Group,
        q: Float[Tensor, "n query head d_head"],
        k: Float[Tensor, "n suffix kv_head d_head"],
        v: Float[Tensor, "n suffix kv_head d_head"],
    ) -> Float[Tensor, "n query head d_head"]:
        """Queries of a suffix over the unpatched prefix and their own suffix."""
        first, length = group.first, group.length
        key_positions = torch.arange(length, device=self.device)
        query_positions = key_positions[length - q.shape[1] :]
        visible = visible_keys(self.config, layer, query_positions, key_positions)
        if first == 0:
            return attend(self.config, layer, q, k, v, visible)
        base_k = self.block.base.values[Site.ROT_K, layer]
        base_v = self.block.base.values[Site.V, layer]
        if 4 * q.shape[1] >= length:
            # many queries: copying the prefix beside each suffix lets one fused kernel do it all
            k = torch.cat((base_k[group.prompts, :first], k), 1)
            v = torch.cat((base_v[group.prompts, :first], v), 1)
            return attend(self.config, layer, q, k, v, visible)

        # Few queries, a long prefix: the variants of one prompt share it, as more queries.
        prompts, which = group.prompts.unique(return_inverse=True)
        counts = which.bincount()
        order = which.argsort(stable=True)
        slot = torch.empty_like(which)
        slot[order] = torch.arange(len(which), device=self.device) - (
            counts.cumsum(0) - counts
        ).repeat_interleave(counts)
        most, n_queries = int(counts.max()), q.shape[1]
        shared = q.new_zeros(len(prompts), most, *q.shape[1:])
        shared[which, slot] = q
        scores = attention_scores(
            self.config,
            layer,
            shared.flatten(1, 2),
            base_k[prompts, :first],
            visible[:, :first].repeat(most, 1),
        ).unflatten(2, (most, n_queries))  # prompt head slot query prefix
        own = attention_scores(self.config, layer, q, k, visible[:, first:])
        pattern = softmax(torch.cat((scores[which, :, slot], own), -1))
        back = torch.zeros_like(scores)
        back[which, :, slot] = pattern[..., :first]
        mixed = mix_values(back.flatten(2, 3), base_v[prompts, :first])
        theirs: Tensor = mixed.unflatten(1, (most, n_queries))[which, slot]
        return theirs + mix_values(pattern[..., first:], v)

    def mlp(self, layer: int, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """mlp_out of packed rows, in blocks whose hidden layer stays in cache."""
        block, size = self.model.weights.blocks[layer], self.engine.mlp_block()
        self.engine.count(len(x), self.engine.mlp_size())
        out = []
        for rows in x.split(size):
            normed = apply_norm(self.config, block.mlp_norm, rows)
            added = mlp(self.config, block.mlp, normed)
            out.append(apply_norm(self.config, block.mlp_post_norm, added))
        return torch.cat(out) if len(out) > 1 else out[0]


class _SourceClimb(_Climb):
    """The other run: its embeddings from the first differences on, climbing over the base's prefix.

    Args:
        embedded: the other prompts' embeddings, all positions.
        kept: what to keep, filled in where it differs from the unpatched run.
    """

    def __init__(
        self,
        engine: _Engine,
        block: _Block,
        variants: Sequence[_Variant],
        embedded: Float[Tensor, "batch pos d_model"],
        kept: dict[tuple[Site, int | None], Tensor],
    ) -> None:
        super().__init__(engine, block, variants)
        self.embedded, self.kept = embedded, kept
        self.final = embedded.new_empty(len(variants), embedded.shape[-1])

    def enter_stream(self, entry: _Entry) -> _Narrow:
        rows = self.embedded[entry.prompts, entry.positions]
        return _Narrow(rows, entry.ids, entry.positions)

    def read(self, x: Float[Tensor, "row d_model"], ids: Int[Tensor, " row"]) -> None:
        self.final[ids] = x  # a variant per prompt, in the block's order

    def note(self, site: Site, layer: int, x: Tensor, groups: list[_Group]) -> None:
        if (site, layer) not in self.kept:
            return
        start = 0
        every = len(x) == sum(group.rows for group in groups)
        for group in groups:
            first = group.first if every else group.length - 1  # last rows alone at the top
            end = start + group.size * (group.length - first)
            rows = x[start:end].unflatten(0, (group.size, -1))
            self.kept[site, layer][group.prompts, first : group.length] = rows
            start = end


class Readout:
    """From the final residual stream at the last position to the metric.

    A linear contrast is a dot product with Σ weight · W_U in float64; a soft-capped unembedding or
    any other function of the logits needs the logits.
    """

    def __init__(self, model: Model, metric: Contrast | Metric, n_prompts: int) -> None:
        self.model, self.metric = model, metric
        self.linear = isinstance(metric, Contrast) and model.config.final_softcap is None
        if isinstance(metric, Contrast):
            if len(metric) != n_prompts:
                raise MeasureError(
                    f"a contrast of {len(metric)} prompts for {n_prompts}", allowed="one each"
                )
            undefined = metric.weights.isnan().any(1).nonzero()[:, 0].tolist()
            if undefined:
                raise MeasureError(
                    f"the contrast {metric.name!r} is not defined for prompts {undefined}",
                    hint="Leave them out: they have no answer or no counterpart",
                )
            device = model.device
            self.ids, self.weights = metric.ids.to(device), metric.weights.to(device)
            self.constant = metric.constant.to(device)
            if self.linear:
                self.directions = metric.directions(model.weights)
                if model.weights.b_U is not None:
                    biases = model.weights.b_U[self.ids].double()
                    self.constant = self.constant + (biases * self.weights).sum(1)

    def __call__(
        self, x: Float[Tensor, "row d_model"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The metric of rows of the final stream, each of its prompt."""
        return self.of_normed(
            apply_norm(self.model.config, self.model.weights.final_norm, x), prompts
        )

    def of_normed(
        self, normed: Float[Tensor, "row d_model"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The metric of rows that the final norm has been applied to."""
        if self.linear:
            found = (normed.double() * self.directions[prompts]).sum(-1)
            return found + self.constant[prompts]
        size = max(1, (64 << 20) // (self.model.config.d_vocab * normed.element_size()))
        pieces = [
            self.of_logits(unembed(self.model.config, self.model.weights, rows), which)
            for rows, which in zip(normed.split(size), prompts.split(size), strict=True)
        ]
        return torch.cat(pieces)

    def of_logits(
        self, logits: Float[Tensor, "row d_vocab"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The metric of logits."""
        if isinstance(self.metric, Contrast):
            chosen = logits.gather(1, self.ids[prompts]).double()
            return (chosen * self.weights[prompts]).sum(1) + self.constant_of_logits(prompts)
        return self.metric(logits, prompts).double()

    def constant_of_logits(self, prompts: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The contrast's own constant: the logits have the unembedding's bias in them."""
        assert isinstance(self.metric, Contrast)
        return self.metric.constant.to(self.model.device)[prompts]


def _rows(
    site: Site, kept: Tensor, prompts: Int[Tensor, " row"], positions: Int[Tensor, " row"]
) -> Tensor:
    """(prompt, position) rows of a kept activation; of a pattern, (row, head, key_pos)."""
    if site is Site.PATTERN:
        return kept.transpose(1, 2)[prompts, positions]
    return kept[prompts, positions]


def _keeps(addresses: set[tuple[Site, int | None]]) -> list[Keep]:
    """One Keep per site, so that a run is asked once for each."""
    layers: dict[Site, list[int]] = {}
    for site, layer in addresses:
        layers.setdefault(site, []).extend([] if layer is None else [layer])
    return [
        Keep(site, tuple(sorted(found)) if site.layered else None)
        for site, found in sorted(layers.items(), key=lambda item: item[0].value)
    ]


def _cut(variants: list[_Variant], most: int) -> list[list[_Variant]]:
    """Runs of variants of at most so many rows, about equal."""
    total = sum(v.rows for v in variants)
    target = total / max(1, -(-total // most))
    climbs: list[list[_Variant]] = []
    held = 0
    for variant in variants:
        if not climbs or held + variant.rows > most or held >= target:
            climbs.append([])
            held = 0
        climbs[-1].append(variant)
        held += variant.rows
    return climbs
