"""A batch padded on the left is its prompts, each run alone, in the shapes a notebook expects."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from casestudy.compat.transformer_lens import HookedTransformer
from casestudy.compat.transformer_lens.layout import PaddedIds

PROMPTS = ["He said so. He went", "Go.", "The old man saw the house. She went home."]


@pytest.fixture
def model(toy_folder: Callable[..., Path]) -> HookedTransformer:
    model = HookedTransformer.from_pretrained(str(toy_folder()), device="cpu")
    model.tokenizer.padding_side = "left"
    return model


def own(row: Tensor, axes: str, n: int) -> Tensor:
    """A row's part that is the prompt's own: the last n positions."""
    for dim, axis in enumerate(axes.split()[1:]):
        if axis in ("pos", "query_pos", "key_pos"):
            row = row.narrow(dim, row.shape[dim] - n, n)
    return row


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_every_activation_is_that_of_the_prompt_alone(
    model: HookedTransformer, prepend_bos: bool
) -> None:
    for flag in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
        setattr(model.cfg, flag, True)
    tokens = model.to_tokens(PROMPTS, prepend_bos=prepend_bos)
    logits, cache = model.run_with_cache(tokens)
    for i, prompt in enumerate(PROMPTS):
        alone = model.to_tokens(prompt, prepend_bos=prepend_bos)
        n = alone.shape[1]
        assert torch.equal(tokens[i, -n:], alone[0])
        its_logits, its_cache = model.run_with_cache(alone)
        assert torch.allclose(logits[i, -n:], its_logits[0], atol=1e-5)
        for name, x in its_cache.items():
            axes = model.hook_dict[name].row.axes
            assert torch.allclose(own(cache[name][i], axes, n), x[0], atol=1e-5), name
        pattern = cache["pattern", 0][i]
        assert bool((pattern[..., : tokens.shape[1] - n] == 0).all())  # nobody attends to padding
    assert all(bool(x[x.isfinite()].numel()) and not x.isnan().any() for x in cache.values())


def test_rows_keep_their_padding_wherever_they_go(model: HookedTransformer) -> None:
    tokens = model.to_tokens(PROMPTS, prepend_bos=False)
    whole = model(tokens)
    assert torch.allclose(model(tokens[[2, 0]])[1], whole[0], atol=1e-5)
    assert torch.allclose(model(tokens.clone().int())[1], whole[1], atol=1e-5)


def test_a_call_gives_the_same_number_after_other_calls(toy_folder: Callable[..., Path]) -> None:
    model = HookedTransformer.from_pretrained(str(toy_folder()), device="cpu")
    ids = torch.tensor(model.to_tokens(PROMPTS, padding_side="left").tolist())
    fresh = HookedTransformer.of(model.model)(ids)
    model.to_tokens(PROMPTS[1], padding_side="left")
    assert torch.equal(model(ids), fresh)
    # the ids that were made with padding on the left still know of it
    assert not torch.equal(model(model.to_tokens(PROMPTS, padding_side="left")), fresh)


def test_ids_carry_their_padding_while_their_rows_are_whole(model: HookedTransformer) -> None:
    tokens = model.to_tokens(PROMPTS)
    assert repr(tokens).startswith("tensor(")
    whole = (tokens[1], tokens[:2], tokens.long(), torch.cat([tokens, tokens]), deepcopy(tokens))
    assert all(isinstance(ids, PaddedIds) for ids in whole)
    others = (tokens[:, 1:], tokens == 0, tokens.float(), tokens.max(), model(tokens))
    assert not any(isinstance(ids, PaddedIds) for ids in others)
    assert not any(isinstance(x, PaddedIds) for x in model.run_with_cache(tokens)[1].values())
    file = BytesIO()
    torch.save(tokens, file)
    file.seek(0)
    assert torch.equal(torch.load(file), tokens)


def test_ids_from_elsewhere_are_read_by_their_padding(model: HookedTransformer) -> None:
    pad = model.tokenizer.pad_token_id
    alone = model.to_tokens("He said", prepend_bos=True)
    made = torch.cat([torch.full((1, 3), pad), alone], 1)
    assert torch.allclose(model(made)[:, -1], model(alone)[:, -1], atol=1e-5)
    bare = model.to_tokens("He said", prepend_bos=False)
    made = torch.cat([torch.full((1, 4), pad), bare], 1)
    told = model(made, prepend_bos=False)
    assert torch.allclose(told[:, -1], model(bare)[:, -1], atol=1e-5)
    masked = model(made, attention_mask=(torch.arange(made.shape[1]) >= 4).int()[None])
    assert torch.allclose(masked[:, -1], told[:, -1], atol=1e-5)


def test_the_side_can_be_said_with_the_call(toy_folder: Callable[..., Path]) -> None:
    model = HookedTransformer.from_pretrained(str(toy_folder()), device="cpu")
    left = model.to_tokens(PROMPTS, padding_side="left")
    assert model.tokenizer.padding_side == "right"
    right = model.to_tokens(PROMPTS)
    lengths = [model.to_tokens(prompt).shape[1] for prompt in PROMPTS]
    ours = model(left)[:, -1]
    theirs = model(right)[range(3), [n - 1 for n in lengths]]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_what_a_hook_writes_at_padding_reaches_no_prompt(model: HookedTransformer) -> None:
    tokens = model.to_tokens(PROMPTS)
    plain = model(tokens)[:, -1]

    def spoil(x: Tensor, hook: Any) -> Tensor:
        if hook.name.endswith(("pattern", "attn_scores")):
            x[1, :, :5] = torch.nan
            x[1, :, :, :5] = torch.nan
        else:
            x[1, :5] = torch.nan
        return x

    for name in ("hook_embed", "blocks.0.attn.hook_v", "blocks.0.attn.hook_pattern",
                 "blocks.0.attn.hook_attn_scores", "blocks.1.ln1.hook_scale"):  # fmt: skip
        spoilt = model.run_with_hooks(tokens, fwd_hooks=[(name, spoil)])[:, -1]
        assert torch.allclose(spoilt, plain, atol=1e-5), name


def test_hooks_and_gradients_lie_in_the_notebooks_columns(model: HookedTransformer) -> None:
    tokens = model.to_tokens(PROMPTS)
    gradients: dict[str, Tensor] = {}

    def zero_the_last(x: Tensor, hook: Any) -> None:
        x[:, -1] = 0.0

    def keep(gradient: Tensor, hook: Any) -> None:
        gradients[hook.name] = gradient

    hooks = [("blocks.0.hook_attn_out", zero_the_last)]
    with model.hooks(fwd_hooks=hooks, bwd_hooks=[("blocks.1.hook_resid_pre", keep)]):
        logits = model(tokens)
        logits[:, -1, 7].sum().backward()
    for i, prompt in enumerate(PROMPTS):
        alone: dict[str, Tensor] = {}
        remember = lambda g, hook, alone=alone: alone.update({hook.name: g})  # noqa: E731
        with model.hooks(fwd_hooks=hooks, bwd_hooks=[("blocks.1.hook_resid_pre", remember)]):
            its = model(prompt)
            its[:, -1, 7].sum().backward()
        assert torch.allclose(logits[i, -1], its[0, -1], atol=1e-5)
        (gradient,) = alone["blocks.1.hook_resid_pre"]
        n = gradient.shape[0]
        assert torch.allclose(gradients["blocks.1.hook_resid_pre"][i, -n:], gradient, atol=1e-5)
        assert bool((gradients["blocks.1.hook_resid_pre"][i, :-n] == 0).all())
