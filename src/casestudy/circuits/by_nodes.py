"""What is the metric of the whole model without some nodes?

Nodes are knocked out by giving them their ablated outputs. Runs without different sets of nodes are
one run up to the first layer in which their sets differ. So each layer computes only the different
states: the stream for each different set of nodes that is gone so far.

Assumes no node is the embeddings or a single neuron, and no norm mixes heads: a head that is gone
would otherwise change the others' shares. Cost: per state, a layer for each row; after
the last layer's attention only the rows at which the metric is read.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.circuits.block import PromptBlock
from casestudy.engine.rows import head_maps, mlp_in_parts, through_block
from casestudy.model.decoder import apply_norm, merge_heads, project
from casestudy.model.sites import Site

Gone = tuple[tuple[int, ...], bool]
"""A layer's heads without their own output, and whether its MLP is."""


class ByNodes:
    """The whole model without sets of nodes, on a block.

    Args:
        block: of prompts.
        sets: of senders.
    """

    def __init__(self, block: PromptBlock, sets: Sequence[Sequence[int]]) -> None:
        self.block, self.graph, self.config = block, block.graph, block.config
        self.sets, self.weights = sets, block.model.weights.blocks
        self.ablated = block.ablated

    def climb(self) -> Float[Tensor, "set batch"]:
        """From the embeddings to the metric."""
        x = self.block.embed[None]
        state_of = [0] * len(self.sets)
        for layer in range(self.config.n_layers):
            gone = [self.gone(layer, some) for some in self.sets]
            known: dict[Hashable, int] = {}
            state_of = [
                known.setdefault(key, len(known)) for key in zip(state_of, gone, strict=True)
            ]
            children: list[tuple[int, Gone]] = list(known)  # type: ignore[arg-type]
            x = self.layer(layer, x, children)
        last = torch.tensor(state_of, device=x.device)
        return self.block.read(x)[last]

    def gone(self, layer: int, some: Sequence[int]) -> Gone:
        """What of a layer a set of senders takes."""
        first = self.graph.first_sender(layer)
        mlp = first + self.config.n_heads
        return tuple(i - first for i in some if first <= i < mlp), mlp in some

    def layer(
        self, layer: int, x: Float[Tensor, "state row d_model"], children: list[tuple[int, Gone]]
    ) -> Float[Tensor, "child computed d_model"]:
        """A layer, each state with each set of the layer's nodes gone that follows it."""
        config, weights = self.config, self.weights[layer]
        first = self.graph.first_sender(layer)
        heads = [head for _, (head, _) in children]
        without = [mlp for _, (_, mlp) in children]

        def attention(x: Tensor) -> tuple[Tensor, Tensor]:
            normed = apply_norm(config, weights.attn_norm, x)
            maps = head_maps(weights.attn)
            q, k, v = (project(normed, *maps[site]) for site in (Site.Q, Site.K, Site.V))
            z = self.block.attend(layer, q, k, v)
            if layer == config.n_layers - 1:
                ends, self.ablated = self.block.ends, self.block.ablated_at_ends
                x, z = x[:, ends], z[:, ends]
            parents = [parent for parent, _ in children]
            if parents != list(range(len(x))):
                which = torch.tensor(parents, device=x.device)
                x, z = x[which], z[which]
            return x, self.attention(layer, z, heads)

        def mlp(x: Tensor) -> Tensor:
            there = [i for i, gone in enumerate(without) if not gone]
            if len(there) == len(without):
                return mlp_in_parts(config, weights, x.flatten(0, 1)).view_as(x)
            out = self.ablated[first + config.n_heads].expand_as(x).clone()
            if there:
                rows = mlp_in_parts(config, weights, x[there].flatten(0, 1))
                out[there] = rows.view(len(there), *x.shape[1:])
            return out

        return through_block(config, x, attention, mlp)

    def attention(
        self,
        layer: int,
        z: Float[Tensor, "child row head d_head"],
        gone: Sequence[tuple[int, ...]],
    ) -> Float[Tensor, "child row d_model"]:
        """What a layer's heads write, some of them their ablated output."""
        first = self.graph.first_sender(layer)
        if any(gone):
            z = z.clone()
            for child, some in enumerate(gone):
                z[child, :, list(some)] = 0
        out = merge_heads(z, self.weights[layer].attn)
        for child, some in enumerate(gone):
            for head in some:
                out[child] += self.ablated[first + head]
        return out
