"""How are patched variants run through the layers above their patches?

A climb runs variants through the layers, from the lowest patched layer to the top. Rows of all
variants are packed in one matrix, so that every layer is a few large matrix products; only
attention needs to know which rows belong to the same variant. Variants that enter at a layer are
added to those that entered below.

Cost: 2 x parameters of a block x rows x layers above, where a variant has as many rows as there are
positions from its first changed one to the last; in the last layer, after the keys and values, one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.engine import entries
from casestudy.engine.cells import HEADS, KEYS, MID, PRE, Cell, Place, Variant
from casestudy.engine.entries import Entry, Runs
from casestudy.engine.plan import Operations, attention_size, mlp_size
from casestudy.engine.readout import Readout, Tails
from casestudy.engine.rows import attend_after, attn_out, head_maps, mlp_in_parts, through_block
from casestudy.model.config import mlp_after_attention
from casestudy.model.decoder import apply_norm, position_queries_and_keys, project
from casestudy.model.sites import Site
from casestudy.model.trace import Trace


@dataclass(frozen=True)
class Narrow:
    """Rows of patched positions that no attention layer has read yet (see the glossary)."""

    x: Float[Tensor, "row d_model"]
    ids: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]


@dataclass(frozen=True)
class Group:
    """Variants of one length and one first patched position, read at as many last positions,
    adjacent in the packed rows."""

    length: int
    first: int
    reads: int
    ids: Int[Tensor, " n"]
    prompts: Int[Tensor, " n"]

    @property
    def size(self) -> int:
        """Variants."""
        return len(self.ids)

    @property
    def rows(self) -> int:
        """Variants times positions."""
        return self.size * (self.length - self.first)

    @property
    def key(self) -> tuple[int, int, int]:
        """What its variants share."""
        return self.length, self.first, self.reads


class Climb:
    """Runs a set of variants through the layers, from the lowest patched layer to the top.

    Args:
        runs: the unpatched runs of the variants' prompts.
        cells: the cells that the variants refer to by index.
        variants: the variants to run.
        readout: maps final rows to values; None if a subclass reads the rows itself.
        operations: counts the operations.
    """

    def __init__(
        self,
        runs: Runs,
        cells: Sequence[Cell],
        variants: Sequence[Variant],
        readout: Readout | None,
        operations: Operations,
    ) -> None:
        self.runs, self.cells, self.variants = runs, cells, variants
        self.readout, self.operations = readout, operations
        self.model, self.config, self.device = runs.task.model, runs.task.config, runs.task.device
        self.top = runs.task.top
        self.values = torch.full(
            (len(variants),), float("nan"), dtype=torch.float64, device=self.device
        )
        self.first = self._column([v.first for v in variants])
        self.offset = torch.zeros(len(variants), dtype=torch.long, device=self.device)
        tails = runs.task.tails
        # of each variant, the number of the reading that its position 0 would be
        self.reading = self._column([tails.starts[v.prompt] + v.tail - v.length for v in variants])
        self.entries: dict[int, list[Entry]] = {}
        self.arrivals: dict[int, dict[tuple[int, int, int], list[int]]] = {}
        self._sort_arrivals()

    def _column(self, numbers: Sequence[int]) -> Int[Tensor, " n"]:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _sort_arrivals(self) -> None:
        """Sort the variants by the layer where they enter, and the attention that spreads them."""
        batches: dict[tuple[Any, ...], list[int]] = {}
        for i, variant in enumerate(self.variants):
            cell = self.cells[variant.cell]
            layer = cell.layer or 0
            own = cell.values is not None
            shape = own and (cell.head is None, cell.neuron is None)  # of the values
            key = layer, cell.site, id(cell.subspace), shape
            batches.setdefault(key, []).append(i)
            spread = layer if cell.site in PRE else layer + 1
            groups = self.arrivals.setdefault(spread, {})
            groups.setdefault((variant.length, variant.first, variant.reads), []).append(i)
        for (layer, *_), ids in batches.items():
            entry = Entry.of(self.runs, self.cells, [self.variants[i] for i in ids], ids)
            self.entries.setdefault(layer, []).append(entry)

    def climb(self) -> Float[Tensor, " variant"]:
        """Run every layer from the lowest entry up; the metric of every variant."""
        x = torch.empty(0, self.config.d_model, dtype=self.model.dtype, device=self.device)
        groups: list[Group] = []
        narrow: list[Narrow] = []
        for layer in range(min(self.entries), self.config.n_layers):
            arriving = self.entries.get(layer, [])
            narrow += [self.enter_input(e) for e in arriving if e.site in PRE]
            x, groups = self.spread(layer, x, groups, narrow)
            self.note(Site.RESID_PRE, layer, x, groups)
            middle, narrow = self.enter(layer, arriving)
            if groups or middle:
                x, after = self.layer(layer, x, groups, middle)
                narrow += after
        if groups:
            self.read(x, *self.read_positions(groups))
        for rows in narrow:
            self.read(rows.x, rows.ids, rows.positions)
        return self.values

    def read(
        self,
        x: Float[Tensor, "row d_model"],
        ids: Int[Tensor, " row"],
        positions: Int[Tensor, " row"],
    ) -> None:
        """Store the metric of final rows, each of a variant at a position that is read."""
        assert self.readout is not None
        readings = self.reading[ids] + positions
        found = self.readout(x, readings)
        if self.runs.task.tails.single:
            self.values[ids] = found
        else:
            self.add(ids, readings, found)

    def add(
        self,
        ids: Int[Tensor, " row"],
        readings: Int[Tensor, " row"],
        found: Float[Tensor, " row"],
    ) -> None:
        """Add up variants' readings by weight; those before the patch are the unpatched run's."""
        assert self.runs.read is not None
        tails, weights = self.runs.task.tails, found.new_tensor(self.runs.task.tails.weights)
        base = weights * self.runs.read
        of_prompt = self._column(tails.prompts)
        whole = base.new_zeros(len(tails.counts)).index_add_(0, of_prompt, base)

        def summed(of: Tensor) -> Tensor:
            return torch.zeros_like(self.values).index_add_(0, ids, of)

        sums, computed, count = (
            summed(weights[readings] * found),
            summed(base[readings]),
            summed(torch.ones_like(found)),
        )
        prompt = self._column([v.prompt for v in self.variants])
        partly = count < self._column([v.tail for v in self.variants])
        sums = sums + torch.where(partly, whole[prompt] - computed, 0.0)
        self.values[ids] = sums[ids]

    def note(self, site: Site, layer: int, x: Tensor, groups: list[Group]) -> None:
        """Called with each activation; `SourceClimb` keeps those that cells need."""

    # Entering.

    def enter_input(self, entry: Entry) -> Narrow:
        """Rows of cells that replace a layer's input."""
        return Narrow(entries.at_input(self.runs, entry), entry.ids, entry.positions)

    def enter(self, layer: int, arriving: Sequence[Entry]) -> tuple[list[Narrow], list[Narrow]]:
        """Rows that are added after attention, and rows that are added after the layer."""
        middle, end = [], []
        for entry in arriving:
            rows = entry.changed
            if entry.site in MID | KEYS and mlp_after_attention(self.config):
                x = entries.at_middle(self.runs, layer, entry)
                middle.append(Narrow(x, rows.ids, rows.positions))
            elif entry.site not in PRE:
                x = entries.at_end(self.runs, layer, entry)
                end.append(Narrow(x, rows.ids, rows.positions))
            if entry.site in HEADS | KEYS:
                self.operations.add(len(rows.ids), self.config.d_head * self.config.d_model)
        return middle, end

    # Running.

    def spread(
        self,
        layer: int,
        x: Float[Tensor, "row d_model"],
        groups: list[Group],
        narrow: list[Narrow],
    ) -> tuple[Float[Tensor, "rows d_model"], list[Group]]:
        """Add the variants that spread here: the unpatched suffix with their patched rows."""
        fresh = self.arrivals.get(layer, {})
        if not fresh:
            return x, groups
        base = self.runs.base.values[Site.RESID_PRE, layer]
        local = self._column([self.runs.local[v.prompt] for v in self.variants])
        old = {group.key: group for group in groups}
        starts, start = {}, 0
        for group in groups:
            starts[group.key] = start
            start += group.rows
        pieces, joined, start = [], [], 0
        for key in sorted(old.keys() | fresh.keys()):
            ids, (length, first, reads) = [], key
            if key in old:
                group = old[key]
                at = starts[key]
                pieces.append(x[at : at + group.rows])
                ids.append(group.ids)
            if key in fresh:
                new = self._column(fresh[key])
                pieces.append(base[local[new], first:length].flatten(0, 1))
                ids.append(new)
            members = torch.cat(ids)
            group = Group(length, first, reads, members, local[members])
            steps = torch.arange(group.size, device=self.device) * (length - first)
            self.offset[members] = start + steps
            start += group.rows
            joined.append(group)
        x = torch.cat(pieces)
        for rows in narrow:
            x[self.row_of(rows.ids, rows.positions)] = rows.x
        return x, joined

    def row_of(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The packed row of each variant's position."""
        return self.offset[ids] + positions - self.first[ids]

    def last_rows(self, groups: list[Group]) -> Int[Tensor, " row"]:
        """The packed rows of the positions at which variants are read."""
        return self.row_of(*self.read_positions(groups))

    def read_positions(
        self, groups: list[Group]
    ) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Each variant that is read, with the position: (ids, positions)."""
        ids = [group.ids.repeat_interleave(group.reads) for group in groups]
        tails = [
            torch.arange(group.length - group.reads, group.length, device=self.device)
            for group in groups
        ]
        positions = [tail.repeat(group.size) for tail, group in zip(tails, groups, strict=True)]
        return torch.cat(ids), torch.cat(positions)

    def layer(
        self,
        layer: int,
        x: Float[Tensor, "row d_model"],
        groups: list[Group],
        joining: list[Narrow],
    ) -> tuple[Float[Tensor, "rows d_model"], list[Narrow]]:
        """One layer over the packed rows, and its MLP over the rows added after attention."""
        wide = 0

        def attention(x: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal wide
            out = self.attention(layer, x, groups) if groups else x
            if groups and layer == self.top:
                x = x[self.last_rows(groups)]
            wide = len(x)
            return x, out

        def middle(x: Tensor) -> Tensor:
            self.note(Site.RESID_MID, layer, x, groups)
            return torch.cat([x, *(rows.x for rows in joining)]) if joining else x

        def mlp(x: Tensor) -> Tensor:
            added = self.mlp(layer, x)
            self.note(Site.MLP_OUT, layer, added[:wide], groups)
            return added

        x = through_block(self.config, x, attention, mlp, middle)
        self.note(Site.RESID_POST, layer, x[:wide], groups)
        pieces = x[wide:].split([len(rows.x) for rows in joining])
        after = [
            Narrow(piece, rows.ids, rows.positions)
            for piece, rows in zip(pieces, joining, strict=False)
        ]
        return x[:wide], after

    def attention(
        self, layer: int, x: Float[Tensor, "row d_model"], groups: list[Group]
    ) -> Float[Tensor, "query d_model"]:
        """attn_out of the packed rows; in the last layer only of the rows that are read."""
        config, block = self.config, self.model.weights.blocks[layer]
        maps, last = head_maps(block.attn), layer == self.top
        normed = apply_norm(config, block.attn_norm, x)
        k, v = project(normed, *maps[Site.K]), project(normed, *maps[Site.V])
        self.note(Site.K, layer, k, groups)
        self.note(Site.V, layer, v, groups)
        query_positions = positions = self.positions(groups)
        if last:
            rows = self.last_rows(groups)
            normed, query_positions = normed[rows], positions[rows]
        q = project(normed, *maps[Site.Q])
        self.note(Site.Q, layer, q, groups)
        q, k = position_queries_and_keys(
            config, block.attn, layer, q[None], k[None], query_positions, positions
        )
        size = attention_size(config) // (config.n_heads + config.n_kv_heads)
        self.operations.add(len(x), size * config.n_kv_heads)
        self.operations.add(len(q[0]), size * config.n_heads)
        z = self.attended(layer, groups, q[0], k[0], v)
        self.note(Site.Z, layer, z, groups)
        out = attn_out(config, block, z)
        self.note(Site.ATTN_OUT, layer, out, groups)
        return out

    def positions(self, groups: list[Group]) -> Int[Tensor, " row"]:
        """Each packed row's position in its prompt."""
        return torch.cat(
            [
                torch.arange(group.first, group.length, device=self.device).repeat(group.size)
                for group in groups
            ]
        )

    def attended(
        self,
        layer: int,
        groups: list[Group],
        q: Float[Tensor, "query head d_head"],
        k: Float[Tensor, "row kv_head d_head"],
        v: Float[Tensor, "row kv_head d_head"],
    ) -> Float[Tensor, "query head d_head"]:
        """The heads' outputs, group by group, each over its prefix and its own rows."""
        base = self.runs.base.values
        prefix = base[Site.ROT_K, layer], base[Site.V, layer]
        z = torch.empty_like(q)
        start = query_start = 0
        for group in groups:
            end = start + group.rows
            queries = group.size * group.reads if len(q) < len(k) else group.rows
            query_end = query_start + queries
            z[query_start:query_end] = attend_after(
                self.config,
                layer,
                q[query_start:query_end].unflatten(0, (group.size, -1)),
                k[start:end].unflatten(0, (group.size, -1)),
                v[start:end].unflatten(0, (group.size, -1)),
                group.first,
                prefix,
                group.prompts,
            ).flatten(0, 1)
            start, query_start = end, query_end
        return z

    def mlp(self, layer: int, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """mlp_out of packed rows, in blocks whose hidden layer stays in cache."""
        self.operations.add(len(x), mlp_size(self.model))
        return mlp_in_parts(self.config, self.model.weights.blocks[layer], x)


def final_rows(
    trace: Trace, tails: Tails, prompts: Sequence[int]
) -> Float[Tensor, "reading d_model"]:
    """The final residual stream of a run at every position that is read, prompt by prompt.

    Args:
        trace: of these prompts.
        tails: where all prompts are read.
        prompts: the run's, by number.
    """
    if tails.single:
        return trace.last(Site.FINAL_RESID)
    final, lengths = trace[Site.FINAL_RESID], trace.tokens.lengths.tolist()
    pairs = zip(prompts, lengths, strict=True)
    return torch.cat([final[i, n - tails.counts[b] : n] for i, (b, n) in enumerate(pairs)])


class SourceClimb(Climb):
    """The source run: its embeddings from the first differences on, over the base run's prefix.

    Args:
        embedded: the source prompts' embeddings, all positions.
        kept: the activations to keep, updated where they differ from the base run.
    """

    def __init__(
        self,
        runs: Runs,
        embedded: Float[Tensor, "batch pos d_model"],
        kept: dict[tuple[Site, int | None], Tensor],
        operations: Operations,
    ) -> None:
        task = runs.task
        variants = [
            Variant(0, b, where, where, task.lengths[b], task.tails.counts[b])
            for b in runs.prompts
            for where in [tuple(range(task.differ[b], task.lengths[b]))]
        ]
        cells = [Cell(Site.RESID_PRE, 0, Place("all", (), ()))]
        super().__init__(runs, cells, variants, None, operations)
        self.embedded, self.kept = embedded, kept
        readings = task.tails.of(runs.prompts)
        self.final = final_rows(runs.base, task.tails, runs.prompts).clone()
        self.place = self._column([0] * len(task.tails.weights))
        self.place[readings] = torch.arange(len(readings), device=self.device)

    def enter_input(self, entry: Entry) -> Narrow:
        """The source prompts' embeddings."""
        rows = self.embedded[entry.prompts, entry.positions]
        return Narrow(rows, entry.ids, entry.positions)

    def read(
        self,
        x: Float[Tensor, "row d_model"],
        ids: Int[Tensor, " row"],
        positions: Int[Tensor, " row"],
    ) -> None:
        """Keep the final rows of the block's readings, in order."""
        self.final[self.place[self.reading[ids] + positions]] = x

    def note(self, site: Site, layer: int, x: Tensor, groups: list[Group]) -> None:
        """Keep an activation that a cell needs."""
        if (site, layer) not in self.kept:
            return
        start = 0
        every = len(x) == sum(group.rows for group in groups)
        for group in groups:
            # at the top only the rows that are read
            first = group.first if every else group.length - group.reads
            end = start + group.size * (group.length - first)
            rows = x[start:end].unflatten(0, (group.size, -1))
            self.kept[site, layer][group.prompts, first : group.length] = rows
            start = end
