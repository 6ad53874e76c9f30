"""Rotary, gated, grouped, parallel and post-normed models under the same names."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from casestudy.compat.transformer_lens import HookedTransformer, patching
from casestudy.compat.transformer_lens.config import FLAGS
from casestudy.compat.transformer_lens.errors import NotSupported
from tests.model.test_families import Pair, pair_of

KINDS = ("gpt_neox", "gptj", "opt", "llama", "qwen3", "gemma2", "olmo2")
PROMPTS = ["He said so. He", "Go."]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


@pytest.fixture
def model(pair: Pair, caplog: pytest.LogCaptureFixture) -> HookedTransformer:
    with caplog.at_level(logging.ERROR):
        model = HookedTransformer.from_pretrained(str(pair.folder), device="cpu")
    for flag in FLAGS:
        if flag == "use_attn_in" and model.cfg.n_key_value_heads:
            with pytest.raises(NotSupported, match="share keys and values"):
                model.set_use_attn_in(True)
        else:
            setattr(model.cfg, flag, True)
    model.tokenizer.padding_side = "left"
    return model


def test_log_probabilities_are_those_of_transformers(pair: Pair, model: HookedTransformer) -> None:
    tokens = model.to_tokens(PROMPTS[0])
    with torch.no_grad():
        theirs = pair.theirs(tokens).logits.log_softmax(-1)
    # a random model's scores are large, and the rewrites round once more
    assert torch.allclose(model(tokens).log_softmax(-1), theirs, atol=1e-3)


def test_every_name_is_cached_hooked_and_as_if_run_alone(model: HookedTransformer) -> None:
    torch.set_grad_enabled(True)
    tokens = model.to_tokens(PROMPTS)
    logits, cache = model.run_with_cache(tokens)
    assert set(cache) == set(model.hook_dict)
    _, alone = model.run_with_cache(PROMPTS[1])
    n = alone["resid_pre", 0].shape[1]
    sizes = {
        "batch": 2,
        "head": model.cfg.n_heads,
        "kv_head": model.cfg.n_key_value_heads or model.cfg.n_heads,
        "d_model": model.cfg.d_model,
        "d_head": model.cfg.d_head,
        "d_mlp": model.cfg.d_mlp,
        "1": 1,
    }
    for name, x in cache.items():
        axes = model.hook_dict[name].row.axes.split()
        assert tuple(x.shape) == tuple(sizes.get(axis, tokens.shape[1]) for axis in axes), name
        if axes[1] == "pos":
            assert torch.allclose(x[1, -n:], alone[name][0], atol=1e-4), name

    def same(x: Tensor, hook: Any) -> Tensor:
        return x + 0.0

    for name in (n for n in model.hook_dict if ".1." not in n and ".2." not in n):
        hooked = model.run_with_hooks(tokens, fwd_hooks=[(name, same)])
        assert torch.allclose(hooked, logits, atol=1e-3), name
    found: dict[str, Tensor] = {}
    model.add_hook(lambda name: True, lambda g, hook: found.update({hook.name: g}), "bwd")
    model(tokens)[0, -1, 5].backward()
    model.reset_hooks()
    assert set(found) == set(model.hook_dict)
    assert all(bool(g.isfinite().all()) for g in found.values())


def test_the_parts_sum_to_the_stream(model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(PROMPTS[0])
    stream = cache["resid_post", -1]
    assert torch.allclose(cache.decompose_resid().sum(0), stream, atol=1e-3)
    if not model.cfg.use_normalization_before_and_after:
        whole = cache.get_full_resid_decomposition(expand_neurons=False)
        assert torch.allclose(whole.sum(0), stream, atol=1e-3)


def test_patches_equal_full_runs(model: HookedTransformer) -> None:
    torch.set_grad_enabled(False)
    clean, corrupted = (
        model.to_tokens(["He said so.", "Go."]),
        model.to_tokens(["He went so.", "No."]),
    )
    _, cache = model.run_with_cache(clean)

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, 5] + 2.0 * logits[1, -1, 6]

    every = patching.get_act_patch_attn_head_all_pos_every(model, corrupted, cache, metric)
    for kind, name in enumerate(("z", "q", "k", "v")):
        n = model.cfg.n_heads if name in ("z", "q") else sizes_of_kv(model)
        full = f"blocks.1.attn.hook_{name}"

        def put(x: Tensor, hook: Any, clean: Tensor = cache[full], head: int = n - 1) -> Tensor:
            x[:, :, head] = clean[:, :, head]
            return x

        plain = metric(model.run_with_hooks(corrupted, fwd_hooks=[(full, put)]))
        assert float(every[kind, 1, n - 1]) == pytest.approx(float(plain), abs=1e-3)
        assert bool(every[kind, :, n:].isnan().all())


def sizes_of_kv(model: HookedTransformer) -> int:
    """How many key/value heads there are."""
    return int(model.cfg.n_key_value_heads or model.cfg.n_heads)
