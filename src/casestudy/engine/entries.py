"""How does a cell change the residual stream, and where do its rows enter?

An entry has the cells of a climb that replace the same site of the same layer, with all their
positions. From the unpatched run and the replacement it computes the rows of the residual stream at
the first point that the patch changes: the layer's input, the point between attention and MLP, or
the layer's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.engine.cells import KEYS, MID, Cell, Task, Variant
from casestudy.engine.rows import after_attention, attn_out
from casestudy.model.decoder import (
    apply_norm,
    attend,
    attention_scores,
    mix_values,
    position_queries_and_keys,
    softmax,
    visible_keys,
)
from casestudy.model.sites import Site
from casestudy.model.trace import Trace


@dataclass(frozen=True)
class Runs:
    """The unpatched runs of a block of prompts.

    Attributes:
        task: the sweep's.
        prompts: the indices of the block's prompts.
        base, source: the kept activations of each run; no source for an ablation.
        read: (reading,) the metric of the base run at every reading of the task, NaN for those of
            other blocks.
    """

    task: Task
    prompts: tuple[int, ...]
    base: Trace
    source: Trace | None = None
    read: Float[Tensor, " reading"] | None = None

    @cached_property
    def local(self) -> dict[int, int]:
        """Each prompt's row in the traces."""
        return {b: i for i, b in enumerate(self.prompts)}


@dataclass(frozen=True)
class Entry:
    """Cells that replace one site of one layer, with one row per variant and position.

    Attributes:
        cell: one of them; all share its subspace, and whether they have values of their own.
        ids: the variant's number in the climb.
        prompts: the row in the block's traces.
        positions, sources: the position in the base and in the source run.
        heads, neurons: the head or neuron that is replaced; -1 for all.
        own: of cells with values of their own, each variant's values and its number of rows.
        reached: of keys and values, the rows of the queries that attend to them.
    """

    site: Site
    layer: int | None
    cell: Cell
    ids: Int[Tensor, " row"]
    prompts: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]
    sources: Int[Tensor, " row"]
    heads: Int[Tensor, " row"]
    neurons: Int[Tensor, " row"]
    own: tuple[tuple[Tensor, int], ...] = ()
    reached: Entry | None = None

    @classmethod
    def of(
        cls, runs: Runs, cells: Sequence[Cell], variants: Sequence[Variant], ids: Sequence[int]
    ) -> Entry:
        """The rows of variants that share a site, a layer, a subspace, and a kind of values."""
        first = cells[variants[0].cell]
        tensors = _columns(runs, cells, variants, ids)
        own = ((cells[v.cell].values, len(v.positions)) for v in variants)
        mine = tuple((values, n) for values, n in own if values is not None)
        entry = cls(first.site, first.layer, first, *tensors, own=mine)
        if first.site not in KEYS:
            return entry
        wide = [variant.reached(first.layer == runs.task.top) for variant in variants]
        return replace(entry, reached=replace(entry, **_named(_columns(runs, cells, wide, ids))))

    @property
    def changed(self) -> Entry:
        """The rows whose residual stream changes first."""
        return self if self.reached is None else self.reached


_COLUMNS = ("ids", "prompts", "positions", "sources", "heads", "neurons")


def _named(columns: Sequence[Tensor]) -> dict[str, Any]:
    return dict(zip(_COLUMNS, columns, strict=True))


def _columns(
    runs: Runs, cells: Sequence[Cell], variants: Sequence[Variant], numbers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An entry's columns, a row per variant and position."""
    columns: list[list[int]] = [[], [], [], [], [], []]
    for variant, number in zip(variants, numbers, strict=True):
        cell, n = cells[variant.cell], len(variant.positions)
        columns[0] += [number] * n
        columns[1] += [runs.local[variant.prompt]] * n
        columns[2] += variant.positions
        columns[3] += variant.sources
        columns[4] += [-1 if cell.head is None else cell.head] * n
        columns[5] += [-1 if cell.neuron is None else cell.neuron] * n
    ids, prompts, at, sources, heads, neurons = (
        torch.tensor(column, device=runs.task.device) for column in columns
    )
    return ids, prompts, at, sources, heads, neurons


def base_rows(runs: Runs, site: Site, entry: Entry) -> Tensor:
    """An entry's rows of a site in the base run."""
    layer = entry.layer if site.layered else None
    return _rows(site, runs.base.values[site, layer], entry.prompts, entry.positions)


def source_rows(runs: Runs, entry: Entry) -> Tensor:
    """The replacement of an entry's rows: (row, …), all heads and neurons."""
    task = runs.task
    if entry.cell.values is None and runs.source is not None:
        kept = runs.source.values[entry.site, entry.layer]
        return _rows(entry.site, kept, entry.prompts, entry.sources)
    index = torch.tensor(runs.prompts, device=task.device)[entry.prompts]
    if entry.own:
        sizes = [n for _, n in entry.own]
        places = zip(entry.own, index.split(sizes), entry.positions.split(sizes), strict=True)
        rows = torch.cat([values[prompts, where] for (values, _), prompts, where in places])
        return rows.to(task.device, task.model.dtype)
    assert callable(task.source)
    rows = task.source(entry.site, entry.layer, index, entry.positions)
    shape = runs.base.values[entry.site, entry.layer].shape
    rest = (shape[1], shape[3]) if entry.site is Site.PATTERN else shape[2:]
    return rows.to(task.device, task.model.dtype).expand(len(index), *rest)


def _rows(
    site: Site, kept: Tensor, prompts: Int[Tensor, " row"], positions: Int[Tensor, " row"]
) -> Tensor:
    """(prompt, position) rows of a kept activation; of a pattern, (row, head, key_pos)."""
    if site is Site.PATTERN:
        return kept.transpose(1, 2)[prompts, positions]
    return kept[prompts, positions]


def replaced(runs: Runs, entry: Entry) -> Tensor:
    """The entry's rows of its site after the replacement: all heads, all d_model."""
    new = source_rows(runs, entry)
    old = base_rows(runs, entry.site, entry)
    subspace = entry.cell.subspace
    if subspace is not None:
        u = subspace.to(old)
        return old + (new - old) @ u @ u.T
    if not {"head", "kv_head"} & set(entry.site.axes):
        return new
    if entry.cell.values is not None and entry.cell.head is not None:
        new = new.unsqueeze(1).expand_as(old)
    chosen = entry.heads[:, None] == torch.arange(old.shape[1], device=old.device)
    chosen = (chosen | (entry.heads < 0)[:, None])[..., None]
    return torch.where(chosen, new, old)


def at_input(runs: Runs, entry: Entry) -> Float[Tensor, "row d_model"]:
    """The residual stream at a layer's input, for cells that replace it or the embeddings."""
    new = replaced(runs, entry)
    if entry.site is Site.RESID_PRE:
        return new
    kept = runs.base.values[Site.RESID_PRE, 0]
    pre = kept[entry.prompts, entry.positions]
    return pre + (new - base_rows(runs, entry.site, entry))


def at_middle(runs: Runs, layer: int, entry: Entry) -> Float[Tensor, "row d_model"]:
    """The residual stream after attention, for cells that replace it or attention's output."""
    if entry.site is Site.RESID_MID:
        return replaced(runs, entry)
    site = after_attention(runs.task.config)
    return base_rows(runs, site, entry.changed) + _attention_change(runs, layer, entry)


def at_end(runs: Runs, layer: int, entry: Entry) -> Float[Tensor, "row d_model"]:
    """The residual stream after a layer, for cells that replace it or the MLP's output.

    In a parallel layer, attention's output is added here too.
    """
    if entry.site is Site.RESID_POST:
        return replaced(runs, entry)
    if entry.site in MID | KEYS:
        return at_middle(runs, layer, entry)
    if entry.site is Site.MLP_OUT:
        change = replaced(runs, entry) - base_rows(runs, Site.MLP_OUT, entry)
    else:
        change = _neuron_change(runs, layer, entry)
    return base_rows(runs, Site.RESID_POST, entry) + change


def _attention_change(runs: Runs, layer: int, entry: Entry) -> Float[Tensor, "row d_model"]:
    if entry.site is Site.ATTN_OUT:
        return replaced(runs, entry) - base_rows(runs, Site.ATTN_OUT, entry)
    block = runs.task.model.weights.blocks[layer]
    old = base_rows(runs, Site.ATTN_OUT, entry.changed)
    old_z = base_rows(runs, Site.Z, entry.changed)
    new_z = old_z.clone() if entry.site in KEYS else _new_z(runs, layer, entry)
    if entry.site in KEYS:
        groups = runs.task.config.n_heads // runs.task.config.n_kv_heads
        for head, rows, z in _z_after_keys(runs, layer, entry):
            mine = slice(None) if head < 0 else slice(head * groups, (head + 1) * groups)
            if head >= 0 and block.attn_post_norm is None and len(rows) == len(old):
                change = (z - old_z[:, mine]).flatten(1)
                return change @ block.attn.W_O[mine].reshape(-1, old.shape[-1])
            new_z[rows, mine] = z
    if block.attn_post_norm is None:  # linear in z
        flat = block.attn.W_O.reshape(-1, old.shape[-1])
        return (new_z - old_z).flatten(1) @ flat
    return attn_out(runs.task.config, block, new_z) - old


def _new_z(runs: Runs, layer: int, entry: Entry) -> Float[Tensor, "row head d_head"]:
    """Each row's head outputs once its query, its pattern or its z is replaced."""
    new = replaced(runs, entry)  # row head (d_head or key_pos)
    if entry.site is Site.Z:
        return new
    config, attn = runs.task.config, runs.task.model.weights.blocks[layer].attn
    out = torch.empty_like(base_rows(runs, Site.Z, entry))
    keys, values = runs.base.values[Site.ROT_K, layer], runs.base.values[Site.V, layer]
    everywhere = torch.arange(keys.shape[1], device=keys.device)
    for prompt in entry.prompts.unique().tolist():
        rows = (entry.prompts == prompt).nonzero().squeeze(1)
        v = values[prompt][None]
        if entry.site is Site.PATTERN:
            out[rows] = mix_values(new[rows].transpose(0, 1)[None], v)[0]
            continue
        # queries of one prompt at several positions, over the prompt's unpatched keys
        q, at = new[rows][None], entry.positions[rows]
        one = keys[prompt][None, :1]  # already rotated; only the queries are needed here
        q, _ = position_queries_and_keys(config, attn, layer, q, one, at, everywhere[:1])
        visible = visible_keys(config, layer, at, everywhere)
        scores = attention_scores(config, layer, q, keys[prompt][None], visible)
        out[rows] = mix_values(softmax(scores), v)[0]
    return out


def _z_after_keys(
    runs: Runs, layer: int, entry: Entry
) -> Iterator[tuple[int, Int[Tensor, " n"], Float[Tensor, "n head d_head"]]]:
    """Outputs of the heads whose keys or values are replaced: of each key/value head that a variant
    replaces (-1 for all), rows of `entry.reached` and their new z."""
    config, reached = runs.task.config, entry.reached
    assert reached is not None
    attn, base = runs.task.model.weights.blocks[layer].attn, runs.base.values
    new = replaced(runs, entry)
    if entry.site is Site.K:
        none = new.new_zeros(1, 1, config.n_heads, config.d_head)  # only keys are needed here
        at = entry.positions
        _, turned = position_queries_and_keys(config, attn, layer, none, new[None], at[:1], at)
        new = turned[0]
    groups = config.n_heads // config.n_kv_heads
    replaced_heads, reached_heads = entry.heads, reached.heads
    if entry.site is Site.K and config.qk_norm == "all":  # the norm changes every head's keys
        replaced_heads, reached_heads = (-torch.ones_like(x) for x in (entry.heads, reached.heads))
    for head in replaced_heads.unique().tolist():
        kv = slice(None) if head < 0 else slice(head, head + 1)
        heads = slice(None) if head < 0 else slice(head * groups, (head + 1) * groups)
        rows = (reached_heads == head).nonzero()[:, 0]
        ids, variant = reached.ids[rows].unique(return_inverse=True)
        prompts = torch.zeros_like(ids).scatter_(0, variant, reached.prompts[rows])
        first = int(reached.positions[rows].min())
        keys = base[Site.ROT_K, layer][prompts][:, :, kv]
        values = base[Site.V, layer][prompts][:, :, kv]
        patched = (replaced_heads == head).nonzero()[:, 0]
        place = torch.searchsorted(ids, entry.ids[patched])
        side = keys if entry.site is Site.K else values
        side[place, entry.positions[patched]] = new[patched][:, kv]
        positions = torch.arange(keys.shape[1], device=keys.device)
        visible = visible_keys(config, layer, positions[first:], positions)
        q = base[Site.ROT_Q, layer][prompts, first:][:, :, heads]
        z = attend(config, layer, q, keys, values, visible)
        yield head, rows, z[variant, reached.positions[rows] - first]


def _neuron_change(runs: Runs, layer: int, entry: Entry) -> Float[Tensor, "row d_model"]:
    """New mlp_out minus the unpatched one, where neurons' outputs are replaced."""
    block = runs.task.model.weights.blocks[layer]
    new, old = source_rows(runs, entry), base_rows(runs, Site.MLP_POST, entry)
    before = base_rows(runs, Site.MLP_OUT, entry)
    if new.ndim == 1:  # a cell's own values, of one neuron
        new = new[:, None].expand_as(old)
    one = entry.neurons >= 0
    index = entry.neurons.clamp(min=0)
    change = torch.empty_like(before)
    change[~one] = (new - old)[~one] @ block.mlp.W_out
    single = (new - old).gather(1, index[:, None])
    change[one] = (single * block.mlp.W_out[index])[one]
    if block.mlp_post_norm is None:
        return change
    raw = old @ block.mlp.W_out
    raw = raw if block.mlp.b_out is None else raw + block.mlp.b_out
    return apply_norm(runs.task.config, block.mlp_post_norm, raw + change) - before
