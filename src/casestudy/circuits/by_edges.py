"""What is the metric of many circuits, each with its own edges?

Let a_s be the ablated output of sender s. A receiver reads Σ_s a_s + Σ over its edges in the
circuit of (out_s - a_s). So only senders with an edge into the circuit are computed, and only as
often as they differ: two circuits whose edges into a node carry the same values have one output of
it. A circuit without one node equals the whole circuit in all that this node does not reach.

All different values are rows of one table. What a receiver reads is a sum of some of them, and each
head's and MLP's weights are read once for all circuits. After the last layer's attention only the
rows at which the metric is read are computed.

Assumes pruned circuits. Cost: per different value, its node's share of a layer for each row; per
different input, d_model additions for each edge and row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from casestudy.circuits.block import PromptBlock
from casestudy.circuits.contributions import attention_bias
from casestudy.circuits.graph import Mask
from casestudy.circuits.plain import neurons_as_mlp
from casestudy.engine.rows import head_maps, mlp_in_parts, through_block
from casestudy.model.decoder import apply_norm, merge_heads, norm_scale, project
from casestudy.model.linear import norm_at_scale
from casestudy.model.weights import MLP
from casestudy.model.weights import Block as Layer

Table = NDArray[np.int64]


_PART = 8 << 20
"""Bytes of the inputs that are computed together: they stay in cache until they are used."""


@dataclass(frozen=True)
class _Inputs:
    """The different inputs of some receivers: which changes each is a sum of.

    Attributes:
        entered: (circuit, receiver) the input's number; -1 without an edge.
        receivers: (input,) ascending.
        bags: of each input, the changes' places in the table.
    """

    entered: Table
    receivers: Table
    bags: Sequence[Table]

    def of(self, receiver: int) -> range:
        """The inputs of one receiver."""
        ends = np.searchsorted(self.receivers, (receiver, receiver + 1)).tolist()
        return range(*ends)


class ByEdges:
    """Circuits on a block, layer by layer.

    Args:
        block: of prompts.
        masks: of the circuits.
    """

    def __init__(self, block: PromptBlock, masks: Bool[Mask, "circuit sender receiver"]) -> None:
        self.block, self.graph, self.config = block, block.graph, block.config
        self.live: Mask = np.asarray(masks.any(2))
        # every edge, receiver by receiver and circuit by circuit, and where each receiver's begin
        receiver, self.circuit, self.sender = masks.transpose(2, 0, 1).nonzero()
        self.begin = np.searchsorted(receiver, np.arange(masks.shape[2] + 1)).tolist()
        self.ablated = block.ablated
        # where each circuit has a sender's change; row 0 of the table is the ablated stream
        self.slot: Table = np.full(self.live.shape, -1)
        size = 2 + int(self.live[:, 1:].sum())
        self.table = block.embed.new_empty(size, *block.embed.shape)
        torch.sub(block.embed, self.ablated[0], out=self.table[1])
        self.slot[self.live[:, 0], 0] = 1
        self.filled = 2

    def climb(self) -> Float[Tensor, "circuit batch"]:
        """From the embeddings to the metric."""
        config = self.config
        x = self.ablated[0]  # the stream with everything ablated
        for layer, weights in enumerate(self.block.model.weights.blocks):
            first = self.graph.first_sender(layer)
            middle, end = first + config.n_heads, self.graph.first_sender(layer + 1)

            def attention(
                x: Tensor,
                layer: int = layer,
                weights: Layer = weights,
                first: int = first,
                middle: int = middle,
            ) -> tuple[Tensor, Tensor]:
                x = self.heads(layer, x)
                bias = attention_bias(config, weights)
                out = self.ablated[first:middle].sum(0)
                return x, out if bias is None else out + bias

            def mlp(x: Tensor, layer: int = layer, middle: int = middle, end: int = end) -> Tensor:
                self.mlps(layer, x)
                return self.ablated[middle:end].sum(0)

            x = through_block(config, x, attention, mlp)
        return self.metric(x)

    # What receivers read.

    def inputs(self, start: int, end: int, x: Float[Tensor, "row d_model"]) -> _Inputs:
        """The different inputs of some receivers, which read the ablated stream x."""
        self.table[0] = x
        entered: Table = np.full((len(self.live), end - start), -1)
        known: dict[tuple[int, bytes], int] = {}
        receivers: list[int] = []
        bags: list[Table] = []
        for i in range(end - start):
            edges = slice(self.begin[start + i], self.begin[start + i + 1])
            circuits = self.circuit[edges]
            if not len(circuits):
                continue
            slots = self.slot[circuits, self.sender[edges]]
            there, begin = np.unique(circuits, return_index=True)
            ends = [*begin[1:].tolist(), len(slots)]
            for c, first, last in zip(there.tolist(), begin.tolist(), ends, strict=True):
                bag = slots[first:last]
                key = i, bag.tobytes()
                if key not in known:
                    known[key] = len(bags)
                    receivers.append(i)
                    bags.append(bag)
                entered[c, i] = known[key]
        return _Inputs(entered, np.array(receivers, dtype=np.int64), bags)

    def read(
        self, inputs: _Inputs, some: range
    ) -> Iterator[tuple[slice, Float[Tensor, "input row d_model"]]]:
        """The residual streams of some inputs, part by part."""
        flat = self.table.flatten(1)
        most = max(1, _PART // (flat.shape[1] * flat.element_size()))
        for start in range(some.start, some.stop, most):
            part = slice(start, min(start + most, some.stop))
            bags = inputs.bags[part]
            # each begins with the ablated stream, which is row 0
            sizes = np.array([0, *(1 + len(bag) for bag in bags[:-1])])
            zero = np.zeros(1, dtype=np.int64)
            members = np.concatenate([piece for bag in bags for piece in (zero, bag)])
            index = torch.tensor(members, device=flat.device)
            offsets = torch.tensor(sizes.cumsum(), device=flat.device)
            found = F.embedding_bag(index, flat, offsets, mode="sum")
            yield part, found.view(-1, *self.table.shape[1:])

    def new(self, n: int) -> slice:
        """Room for n values in the table."""
        self.filled += n
        return slice(self.filled - n, self.filled)

    # Heads.

    @property
    def mixes(self) -> bool:
        """Whether a norm mixes a layer's heads, or has weights for each of them."""
        config, layers = self.config, self.block.model.weights.blocks
        apart = config.qk_norm == "none" or (
            config.qk_norm == "head" and config.qk_norm_kind == "rms"
        )
        return not apart or any(layer.attn_post_norm is not None for layer in layers)

    def heads(
        self, layer: int, x: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "computed d_model"]:
        """Every live head of a layer; the rows of the stream that are computed further."""
        graph, config, last = self.graph, self.config, layer == self.config.n_layers - 1
        start, first = graph.first_receiver(layer), graph.first_sender(layer)
        there = self.live[:, first : first + config.n_heads]
        units, unit_of, z = self.units(layer, start, there, x)
        if last:
            x = self.narrow(x)
            z = z[:, self.block.ends]
        self.write(layer, first, units, unit_of, z)
        return x

    def units(
        self, layer: int, start: int, there: Mask, x: Float[Tensor, "row d_model"]
    ) -> tuple[int, Table, Float[Tensor, "unit row head d_head"]]:
        """What attends on its own, one head or a layer's heads that a norm mixes: the number of
        heads in each, (circuit, head) the unit of each live head, and the units' z."""
        config, device = self.config, x.device
        n_q, n_kv = config.n_heads, config.n_kv_heads
        unit_of: Table = np.full(there.shape, -1)
        size = n_q if self.mixes else 1
        if not there.any():
            return size, unit_of, x.new_empty(0, len(x), size, config.d_head)
        inputs = self.inputs(start, start + n_q + 2 * n_kv, x)
        # a receiver without an edge reads the ablated stream, whose projections come first
        place = np.where(
            inputs.entered < 0, np.arange(n_q + 2 * n_kv), inputs.entered + n_q + 2 * n_kv
        )
        bank = self.projected(layer, inputs, x)
        known: dict[tuple[int, ...], int] = {}
        for head, c in zip(*(axis.tolist() for axis in there.T.nonzero()), strict=True):
            kv = n_q + head * n_kv // n_q
            key = (
                tuple(place[c]) if size > 1 else (place[c, head], place[c, kv], place[c, kv + n_kv])
            )
            unit_of[c, head] = known.setdefault(key, len(known))
        table = torch.tensor(np.array(list(known)), device=device)
        if size > 1:
            q, k, v = (
                bank[part].transpose(1, 2) for part in table.split([n_q, n_kv, n_kv], 1)
            )  # unit row head d_head
            return size, unit_of, self.block.attend(layer, q, k, v)
        q, k, v = (bank[column][:, :, None] for column in table.T)
        of = np.zeros(len(known), dtype=np.int64)
        for head in range(n_q):
            of[unit_of[there[:, head], head]] = head * n_kv // n_q
        return size, unit_of, self.block.attend(layer, q, k, v, torch.tensor(of, device=device))

    def projected(
        self, layer: int, inputs: _Inputs, x: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "projection row d_head"]:
        """Queries, keys and values: of the ablated stream, receiver by receiver, then of inputs."""
        config, weights = self.config, self.block.model.weights.blocks[layer]
        base = apply_norm(config, weights.attn_norm, x)
        maps = head_maps(weights.attn).values()
        n = sum(len(W) for W, _ in maps)
        bank = x.new_empty(n + len(inputs.bags), len(x), config.d_head)
        place = 0
        for W, b in maps:
            bank[place : place + len(W)] = project(base, W, b).transpose(0, 1)
            for head in range(len(W)):
                bias = None if b is None else b[head : head + 1]
                for part, read in self.read(inputs, inputs.of(place + head)):
                    normed = apply_norm(config, weights.attn_norm, read)
                    rows = project(normed, W[head : head + 1], bias)[..., 0, :]
                    bank[n + part.start : n + part.stop] = rows
            place += len(W)
        return bank

    def narrow(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "end d_model"]:
        """From here on, compute only the rows that are read."""
        block, ends = self.block, self.block.ends
        if block.only_ends:
            return x
        table = self.table.new_empty(len(self.table), len(ends), self.config.d_model)
        torch.index_select(self.table[: self.filled], 1, ends, out=table[: self.filled])
        self.table, self.ablated = table, block.ablated_at_ends
        return x[ends]

    def write(
        self,
        layer: int,
        first: int,
        size: int,
        unit_of: Table,
        z: Float[Tensor, "unit row head d_head"],
    ) -> None:
        """The heads' changes of the stream, once for each unit in which a head is live."""
        weights = self.block.model.weights.blocks[layer]
        post, scale = weights.attn_post_norm, None
        if post is not None and len(z):
            scale = norm_scale(self.config, merge_heads(z, weights.attn)).to(z)
        for head in range(self.config.n_heads):
            mine = unit_of[:, head]
            units, which = np.unique(mine[mine >= 0], return_inverse=True)
            if not len(units):
                continue
            index = torch.tensor(units, device=z.device)
            out = z[index, :, head % size] @ weights.attn.W_O[head]
            if scale is not None and post is not None:
                out = norm_at_scale(self.config, post, out, scale[index])
            slots = self.new(len(units))
            torch.sub(out, self.ablated[first + head], out=self.table[slots])
            self.slot[mine >= 0, first + head] = slots.start + which

    # MLPs and the metric.

    def mlps(self, layer: int, x: Float[Tensor, "row d_model"]) -> None:
        """The live nodes of a layer's MLP: chosen neurons one by one, and the rest of the MLP."""
        graph, weights = self.graph, self.block.model.weights.blocks[layer]
        end = graph.first_receiver(layer + 1)
        chosen = graph.neurons.get(layer, ())
        start = end - 1 - len(chosen)
        inputs = self.inputs(start, end, x)
        first = graph.first_sender(layer) + self.config.n_heads
        for i in range(end - start):
            neuron = None if i == len(chosen) else chosen[i]
            own = _mlp_part(weights.mlp, neuron, chosen)
            mine = inputs.of(i)
            slots = self.new(len(mine))
            for part, read in self.read(inputs, mine):
                rows = read.flatten(0, 1)
                out = mlp_in_parts(self.config, weights, rows, weights=own).view_as(read)
                at = slots.start - mine.start
                place = slice(part.start + at, part.stop + at)
                torch.sub(out, self.ablated[first + i], out=self.table[place])
            entered = inputs.entered[:, i]
            there = entered >= 0
            self.slot[there, first + i] = slots.start + entered[there] - mine.start

    def metric(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "circuit batch"]:
        """Of each circuit, once for circuits whose logits read the same."""
        end = len(self.graph.receivers)
        inputs = self.inputs(end - 1, end, x)
        parts = [read for _, read in self.read(inputs, inputs.of(0))]
        found = self.block.read(torch.cat([x[None], *parts]))
        return found[torch.tensor(inputs.entered[:, 0] + 1, device=found.device)]


def _mlp_part(weights: MLP, neuron: int | None, chosen: Sequence[int]) -> MLP:
    """One neuron as an MLP, or (None) all neurons that are not chosen, with the bias."""
    if neuron is not None:
        return neurons_as_mlp(weights, [neuron])
    if not chosen:
        return weights
    rest = [i for i in range(weights.W_in.shape[1]) if i not in set(chosen)]
    return replace(neurons_as_mlp(weights, rest), b_out=weights.b_out)
