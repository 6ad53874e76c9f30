"""Are rows through a block what the decoder's forward pass gives at those positions?"""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from casestudy.engine.rows import (
    after_attention,
    attend_after,
    attn_out,
    head_maps,
    mlp_out,
    mlp_reads,
    through_block,
)
from casestudy.model.decoder import apply_norm, position_queries_and_keys, project, run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from tests.measure.worlds import D_MLP, D_MODEL, D_VOCAB, N_LAYERS, decoder

VARIANTS = ("gpt2", "llama", "neox", "gemma2")
LENGTH = 11
ROUNDING = {"rtol": 0.0, "atol": 1e-11}
"""Of float64, after sums over up to `LENGTH` keys and a few layers."""


def sharing_a_prefix(first: int, seed: int) -> tuple[Tokens, Tokens, list[int]]:
    """Some prompts, and others that agree with one of them up to a position; and with which."""
    rng = random.Random(seed)
    base = [[rng.randrange(D_VOCAB) for _ in range(LENGTH)] for _ in range(3)]
    which = [rng.randrange(3) for _ in range(5)]
    ends = [[rng.randrange(D_VOCAB) for _ in range(LENGTH - first)] for _ in which]
    others = [base[i][:first] + end for i, end in zip(which, ends, strict=True)]
    return Tokens.of(base), Tokens.of(others), which


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40)
@given(first=st.integers(0, LENGTH - 1), queries=st.integers(1, LENGTH), seed=st.integers(0, 99))
def test_attention_over_a_shared_prefix_is_the_whole_prompt_s(
    variant: str, first: int, queries: int, seed: int
) -> None:
    """Whether the prefix is copied beside each suffix (many queries) or shared by them (few)."""
    queries = min(queries, LENGTH - first)
    model = decoder(variant)
    base, others, which = sharing_a_prefix(first, seed)
    unpatched = run(model, base, keep=[Site.ROT_K, Site.V])
    whole = run(model, others, keep=[Site.ROT_Q, Site.ROT_K, Site.V, Site.Z])
    for layer in range(N_LAYERS):
        found = attend_after(
            model.config,
            layer,
            whole[Site.ROT_Q, layer][:, LENGTH - queries :],
            whole[Site.ROT_K, layer][:, first:],
            whole[Site.V, layer][:, first:],
            first,
            (unpatched[Site.ROT_K, layer], unpatched[Site.V, layer]),
            torch.tensor(which),
        )
        torch.testing.assert_close(found, whole[Site.Z, layer][:, LENGTH - queries :], **ROUNDING)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_mlp_with_its_norms_is_the_decoder_s(variant: str) -> None:
    model = decoder(variant)
    tokens, _, _ = sharing_a_prefix(0, 0)
    read = mlp_reads(model.config)
    trace = run(model, tokens, keep=[read, Site.MLP_IN, Site.MLP_OUT])
    for layer, block in enumerate(model.weights.blocks):
        rows = trace[read, layer].flatten(0, 1)
        torch.testing.assert_close(rows, trace[Site.MLP_IN, layer].flatten(0, 1), **ROUNDING)
        expected = trace[Site.MLP_OUT, layer].flatten(0, 1)
        torch.testing.assert_close(mlp_out(model.config, block, rows), expected, **ROUNDING)


def attended(
    model: Model, layer: int, x: Tensor, first: int, prefix: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The rows, and what a layer's attention adds to them after their prefix."""
    config, block = model.config, model.weights.blocks[layer]
    positions = torch.arange(first, LENGTH)
    normed = apply_norm(config, block.attn_norm, x)
    q, k, v = (project(normed, W, b) for W, b in head_maps(block.attn).values())
    q, k = position_queries_and_keys(config, block.attn, layer, q, k, positions, positions)
    z = attend_after(config, layer, q, k, v, first, prefix, torch.arange(len(x)))
    return x, attn_out(config, block, z)


def noted(seen: list[Tensor], x: Tensor) -> Tensor:
    """The stream as it is, and kept."""
    seen.append(x)
    return x


@pytest.mark.parametrize("variant", VARIANTS)
@given(first=st.integers(0, LENGTH - 1))
def test_a_block_over_a_suffix_is_the_decoder_s(variant: str, first: int) -> None:
    """Projections, attention after the prefix, MLP and their order, sequential or parallel."""
    model = decoder(variant)
    config, tokens = model.config, sharing_a_prefix(first, 1)[0]
    sites = [Site.RESID_PRE, Site.RESID_POST, Site.ATTN_OUT, Site.ROT_K, Site.V]
    parallel = after_attention(config) is Site.RESID_POST
    trace = run(model, tokens, keep=sites if parallel else [*sites, Site.RESID_MID])
    for layer, block in enumerate(model.weights.blocks):
        x = trace[Site.RESID_PRE, layer][:, first:]
        prefix = trace[Site.ROT_K, layer], trace[Site.V, layer]
        _, added = attention = attended(model, layer, x, first, prefix)
        torch.testing.assert_close(added, trace[Site.ATTN_OUT, layer][:, first:], **ROUNDING)
        seen: list[Tensor] = []
        out = through_block(
            config,
            x,
            partial(lambda attention, _: attention, attention),
            partial(mlp_out, config, block),
            partial(noted, seen),
        )
        torch.testing.assert_close(out, trace[Site.RESID_POST, layer][:, first:], **ROUNDING)
        # a parallel block has no place between attention and MLP
        assert len(seen) == (0 if parallel else 1)
        for rows in seen:
            torch.testing.assert_close(rows, trace[Site.RESID_MID, layer][:, first:], **ROUNDING)


def test_the_neurons_of_an_mlp_add_up() -> None:
    model = decoder("llama")
    block, x = model.weights.blocks[0], torch.randn(4, D_MODEL, dtype=torch.float64)
    mlp = block.mlp
    assert mlp.W_gate is not None
    assert mlp.b_in is not None
    assert mlp.b_out is not None
    parts = [
        type(mlp)(mlp.W_in[:, at], mlp.W_out[at], mlp.W_gate[:, at], mlp.b_in[at])
        for at in (slice(0, 5), slice(5, D_MLP))
    ]
    shares = sum(mlp_out(model.config, block, x, weights=part) for part in parts)
    torch.testing.assert_close(shares + mlp.b_out, mlp_out(model.config, block, x), **ROUNDING)
