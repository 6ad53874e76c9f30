"""How is a sweep divided, and which activations must its unpatched runs keep?

Prompts are divided into blocks whose unpatched runs fit in half of the memory. A block's variants
are divided into climbs whose rows fit in the rest. Both follow from shapes, before anything runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from casestudy.engine.cells import HEADS, KEYS, MID, POST, Task, Variant
from casestudy.engine.packing import fill, pack
from casestudy.errors import MeasureError
from casestudy.model.config import ModelConfig, mlp_after_attention
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens

# Climbs of this many rows keep a CPU's matrix products at full rate while their buffers stay in
# cache and in memory the allocator already holds; a GPU needs more rows to be busy.
_ROWS = {"cpu": 2048}
_ROWS_ELSEWHERE = 65536
_MLP_BLOCK_BYTES = 8 << 20
_USEFUL = 0.5
"""A block's unpatched run may be half padding: it is a few percent of the sweep."""


@dataclass(frozen=True)
class SweepPlan:
    """How a sweep was divided: the same plan and thread count give the same numbers.

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
        """As a dictionary for a manifest."""
        return {
            "memory": self.memory,
            "rows": self.rows,
            "threads": self.threads,
            "blocks": [{"prompts": list(p), "climbs": list(c)} for p, c in self.blocks],
            "operations": self.operations,
        }


@dataclass(frozen=True)
class Share:
    """One block of prompts and the variants of each of its climbs."""

    prompts: list[int]
    climbs: list[list[Variant]]


def planned(shares: Sequence[Share], memory: int, rows: int, operations: int) -> SweepPlan:
    """The plan to store, from the blocks and climbs."""
    blocks = (
        (tuple(share.prompts), tuple(sum(v.rows for v in climb) for climb in share.climbs))
        for share in shares
    )
    return SweepPlan(memory, rows, torch.get_num_threads(), tuple(blocks), operations)


# What the unpatched runs keep.


@dataclass(frozen=True)
class Keeps:
    """The activations that the unpatched run and the source run must keep."""

    base: list[Keep]
    source: list[Keep]


def keeps(task: Task, variants: Sequence[Variant]) -> Keeps:
    """The activations that these variants are made from."""
    base: set[tuple[Site, int | None]] = set()
    source: set[tuple[Site, int | None]] = set()
    middle, lowest = mlp_after_attention(task.config), task.config.n_layers
    for cell in {v.cell: task.cells[v.cell] for v in variants}.values():
        layer, site = cell.layer, cell.site
        lowest = min(lowest, layer or 0)
        if cell.values is None and isinstance(task.source, Tokens):
            source.add((site, layer))
        base.add((site, layer))
        if site in POST or (site in MID | KEYS and not middle):
            base.add((Site.RESID_POST, layer))
        if site in HEADS | KEYS:
            base |= {(Site.Z, layer), (Site.ATTN_OUT, layer)}
        if site in KEYS:
            base.add((Site.ROT_Q, layer))
        if site in HEADS | KEYS | {Site.ATTN_OUT} and middle:
            base.add((Site.RESID_MID, layer))
        if site is Site.MLP_POST:
            base.add((Site.MLP_OUT, layer))
    for layer in range(0 if task.shares_prefix else lowest, task.config.n_layers):
        base |= {(Site.RESID_PRE, layer), (Site.ROT_K, layer), (Site.V, layer)}
    final = Site.FINAL_RESID.at(last=task.tails.single)
    return Keeps([*_by_site(base), final], [*_by_site(source), final])


def _by_site(addresses: set[tuple[Site, int | None]]) -> list[Keep]:
    """One Keep per site, so that each site is kept once."""
    layers: dict[Site, list[int]] = {}
    for site, layer in addresses:
        layers.setdefault(site, []).extend([] if layer is None else [layer])
    return [
        Keep(site, tuple(sorted(kept)) if site.layered else None)
        for site, kept in sorted(layers.items(), key=lambda item: item[0].value)
    ]


# Bytes and operations.


def trace_bytes(config: ModelConfig, sites: Iterable[Keep], length: int, itemsize: int) -> int:
    """Bytes of one prompt of this length in a block's unpatched run."""
    sizes = {
        "d_model": config.d_model,
        "d_head": config.d_head,
        "head": config.n_heads,
        "kv_head": config.n_kv_heads,
        "d_mlp": config.d_mlp,
    }
    total = 0
    for keep in sites:
        size = 1
        for axis in keep.site.axes[1:]:
            size *= sizes.get(axis, length)
        total += size * (1 if keep.layers is None else len(keep.layers))
    return total * itemsize


def row_bytes(config: ModelConfig, longest: int, itemsize: int) -> int:
    """Bytes per row of a climb: residual stream (four times at the peak), q, k, v, z, scores."""
    heads = 3 * config.n_heads * config.d_head + 2 * config.n_kv_heads * config.d_head
    scores = 3 * config.n_heads * longest
    joined = 2 * config.n_heads * config.d_head * 5  # keys and values, with up to four prefixes
    return (5 * config.d_model + heads + scores + joined) * itemsize


def mlp_rows(config: ModelConfig, itemsize: int) -> int:
    """Rows per call of the MLP, whose hidden layer then stays in cache."""
    return max(64, _MLP_BLOCK_BYTES // (config.d_mlp * itemsize))


def attention_size(config: ModelConfig) -> int:
    """Parameters of one layer's attention matrices."""
    return 2 * config.d_model * config.d_head * (config.n_heads + config.n_kv_heads)


def mlp_size(model: Model) -> int:
    """Parameters of one layer's MLP matrices."""
    return (3 if model.weights.gated else 2) * model.config.d_model * model.config.d_mlp


class Operations:
    """Counts the floating-point operations of matrix products, of several threads."""

    def __init__(self) -> None:
        self.total = 0
        self.lock = threading.Lock()

    def add(self, rows: int, size: int, layers: int = 1) -> None:
        """Count `rows` times matrices of `size` parameters, in each of `layers` layers."""
        with self.lock:
            self.total += 2 * rows * size * layers


# Blocks and climbs.


class Planner:
    """Makes a task's plan from sizes.

    Args:
        memory: bytes.
        most: the largest climb, in rows; by default what keeps the device busy.
        workers: blocks of prompts that are computed at the same time; fewer if the memory is too
            small for so many.
    """

    def __init__(
        self, task: Task, keep: Keeps, memory: int, most: int | None, workers: int = 1
    ) -> None:
        self.task, self.keep, config = task, keep, task.config
        self.itemsize = task.model.weights.W_E.element_size()
        self.cap = most or _ROWS.get(task.device.type, _ROWS_ELSEWHERE)
        self.row = row_bytes(config, max(task.lengths), self.itemsize)
        widths = 2 if task.model.weights.gated else 1
        block = min(mlp_rows(config, self.itemsize), self.cap)
        scratch = block * ((1 + widths) * config.d_mlp + 2 * config.d_model)
        self.scratch = scratch * self.itemsize
        longest = max(task.lengths)
        least = max(
            2 * self.runs(1, longest), self.runs(1, longest) + self.scratch + longest * self.row
        )
        self.workers = max(1, min(workers, memory // least))
        self.memory = memory // self.workers

    def runs(self, n: int, longest: int) -> int:
        """Bytes of n prompts' unpatched runs: kept activations, and one layer's other values."""
        config = self.task.config
        passing = longest * (8 * config.d_model + 3 * config.d_mlp) * self.itemsize
        kept = sum(
            trace_bytes(config, sites, longest, self.itemsize)
            for sites in (self.keep.base, self.keep.source)
        )
        return n * (kept + passing)

    def shares(self, variants: Sequence[Variant]) -> list[Share]:
        """Blocks of prompts, each with its climbs.

        Raises: MeasureError if not even one cell fits.
        """
        per_prompt: dict[int, list[Variant]] = {}
        for variant in variants:
            per_prompt.setdefault(variant.prompt, []).append(variant)
        blocks = pack(
            self.task.lengths,
            fits=lambda n, longest, _: self.runs(n, longest) <= self.memory // 2,
            useful=_USEFUL,
            parts=self.workers,
            weights=[
                length + sum(v.rows for v in per_prompt.get(b, ()))
                for b, length in enumerate(self.task.lengths)
            ],
        )
        return [
            Share(
                prompts, self.climbs(prompts, [v for b in prompts for v in per_prompt.get(b, [])])
            )
            for prompts in blocks
        ]

    def climbs(self, prompts: Sequence[int], variants: list[Variant]) -> list[list[Variant]]:
        """A block's variants, in climbs that fit into memory together with its runs."""
        runs = self.runs(len(prompts), max(self.task.lengths[b] for b in prompts))
        left = self.memory - runs - self.scratch
        least = max((v.rows for v in variants), default=1)
        if left < least * self.row:
            need = runs + self.scratch + least * self.row
            raise MeasureError(
                f"a memory budget of {self.memory / 1e6:.2f} MB",
                allowed=f"at least {need / 1e6 + 0.01:.2f} MB, for one cell of the longest prompt",
            )
        variants.sort(key=lambda v: (v.length, v.first, v.prompt, v.cell))
        rows = max(min(self.cap, left // self.row), least)
        return [
            [variants[i] for i in climb]
            for climb in fill([v.rows for v in variants], rows, even=True)
        ]
