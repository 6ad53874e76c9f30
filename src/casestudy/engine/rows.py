"""How does one block (layer) of the model act on rows of the residual stream?

The decoder runs whole prompts. Sweeps, circuits and paths run rows: some positions of many patched
runs in one matrix. This file has the parts of a block and their order for all of these, so that a
new architecture needs one change in `decoder` and one here. (The check that recomputes a sample the
plain way runs the decoder itself and uses nothing from this file.)

Assumes a causal decoder. Cost of `attend_after`: the suffix's queries over prefix and suffix; the
prefix's keys and values are computed once, in the unpatched run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.engine.plan import mlp_rows
from casestudy.model.config import ModelConfig, mlp_after_attention
from casestudy.model.decoder import (
    apply_norm,
    attend,
    attention_scores,
    merge_heads,
    mix_values,
    mlp,
    softmax,
    visible_keys,
)
from casestudy.model.sites import Site
from casestudy.model.weights import MLP, Attention, Block

Map = tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]


def through_block(
    config: ModelConfig,
    x: Float[Tensor, "*rows d_model"],
    attention: Callable[[Tensor], tuple[Tensor, Tensor]],
    mlp: Callable[[Tensor], Tensor],
    middle: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, "*computed d_model"]:
    """The order of a block: attention and then the MLP, or both from one input (parallel).

    Args:
        attention: maps the block's input to the rows that are computed further and their attn_out.
        mlp: maps the MLP's input to mlp_out.
        middle: changes the residual stream between the two; not used by a parallel block.
    """
    x, added = attention(x)
    if not mlp_after_attention(config):
        return x + added + mlp(x)
    x = middle(x + added)
    return x + mlp(x)


def after_attention(config: ModelConfig) -> Site:
    """The first site of the residual stream that includes attention's output."""
    return Site.RESID_MID if mlp_after_attention(config) else Site.RESID_POST


def mlp_reads(config: ModelConfig) -> Site:
    """The site of the residual stream that the MLP reads."""
    return Site.RESID_MID if mlp_after_attention(config) else Site.RESID_PRE


def head_maps(attn: Attention) -> dict[Site, Map]:
    """The weights and biases of the heads' queries, keys and values."""
    return {
        Site.Q: (attn.W_Q, attn.b_Q),
        Site.K: (attn.W_K, attn.b_K),
        Site.V: (attn.W_V, attn.b_V),
    }


def attn_out(
    config: ModelConfig, block: Block, z: Float[Tensor, "*rows head d_head"]
) -> Float[Tensor, "*rows d_model"]:
    """Attention's output to the residual stream, from the heads' outputs z."""
    return apply_norm(config, block.attn_post_norm, merge_heads(z, block.attn))


def mlp_out(
    config: ModelConfig,
    block: Block,
    x: Float[Tensor, "*rows d_model"],
    *,
    weights: MLP | None = None,
) -> Float[Tensor, "*rows d_model"]:
    """The MLP's output to the residual stream, from the rows it reads.

    Args:
        weights: some of the block's neurons as an MLP; all of them by default.
    """
    normed = apply_norm(config, block.mlp_norm, x)
    added = mlp(config, block.mlp if weights is None else weights, normed)
    return apply_norm(config, block.mlp_post_norm, added)


def mlp_in_parts(
    config: ModelConfig,
    block: Block,
    x: Float[Tensor, "row d_model"],
    *,
    weights: MLP | None = None,
) -> Float[Tensor, "row d_model"]:
    """`mlp_out` of many rows, in parts whose hidden layer stays in cache."""
    parts = x.split(mlp_rows(config, x.element_size()))
    out = [mlp_out(config, block, rows, weights=weights) for rows in parts]
    return torch.cat(out) if len(out) > 1 else out[0]


def attend_after(
    config: ModelConfig,
    layer: int,
    q: Float[Tensor, "n query head d_head"],
    k: Float[Tensor, "n suffix kv_head d_head"],
    v: Float[Tensor, "n suffix kv_head d_head"],
    first: int,
    prefix: tuple[Tensor, Tensor],
    prompts: Int[Tensor, " n"],
) -> Float[Tensor, "n query head d_head"]:
    """The heads' outputs z of suffixes that attend to a shared prefix and to themselves.

    Args:
        q, k, v: of positions from `first` on, normalised and rotated; the queries are of the last
            positions, as many as there are.
        first: the length of the prefix.
        prefix: keys (normalised and rotated) and values, (prompt, pos, …), from position 0 on.
        prompts: the prompt whose prefix each suffix follows.
    """
    length = first + k.shape[1]
    key_positions = torch.arange(length, device=q.device)
    visible = visible_keys(config, layer, key_positions[length - q.shape[1] :], key_positions)
    if first == 0:
        return attend(config, layer, q, k, v, visible)
    prefix_k, prefix_v = prefix
    if 4 * q.shape[1] >= length:
        # many queries: copy the prefix to each suffix, so that one fused kernel computes all
        k = torch.cat((prefix_k[prompts, :first], k), 1)
        v = torch.cat((prefix_v[prompts, :first], v), 1)
        return attend(config, layer, q, k, v, visible)

    # Few queries, a long prefix: the suffixes of one prompt share it, as more queries.
    prompts, which = prompts.unique(return_inverse=True)
    slot, most = _slots(which)
    n_queries = q.shape[1]
    shared = q.new_zeros(len(prompts), most, *q.shape[1:])
    shared[which, slot] = q
    scores = attention_scores(
        config,
        layer,
        shared.flatten(1, 2),
        prefix_k[prompts, :first],
        visible[:, :first].repeat(most, 1),
    ).unflatten(2, (most, n_queries))  # prompt head slot query prefix
    own = attention_scores(config, layer, q, k, visible[:, first:])
    pattern = softmax(torch.cat((scores[which, :, slot], own), -1))
    back = torch.zeros_like(scores)
    back[which, :, slot] = pattern[..., :first]
    mixed = mix_values(back.flatten(2, 3), prefix_v[prompts, :first])
    theirs: Tensor = mixed.unflatten(1, (most, n_queries))[which, slot]
    return theirs + mix_values(pattern[..., first:], v)


def _slots(which: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], int]:
    """Each row's number within its prompt, and the largest number of rows of a prompt."""
    counts = which.bincount()
    order = which.argsort(stable=True)
    slot = torch.empty_like(which)
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)
    slot[order] = torch.arange(len(which), device=which.device) - before
    return slot, int(counts.max())
