"""What is not supported says so, by name, with what there is; nothing is silently ignored."""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from casestudy.compat import transformer_lens
from casestudy.compat.transformer_lens import HookedTransformer, docs, patching, utils
from casestudy.compat.transformer_lens.errors import NotSupported, NotSupportedImport
from casestudy.compat.transformer_lens.names import REFUSED, TABLE, names_of
from casestudy.errors import EditError, ModelError, PromptError, SiteError, SiteNotKept, TokenError
from tests.forks import forked

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from-transformerlens.md"
TEXT = "He said so."


@pytest.fixture
def model(toy_folder: Callable[..., Path]) -> HookedTransformer:
    return HookedTransformer.from_pretrained(str(toy_folder()), device="cpu")


def look(x: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blocks.0.attn.hook_zz", "Did you mean 'blocks.0.attn.hook_z'"),
        ("blocks.9.hook_resid_pre", "{l} from 0 to 1"),
        ("blocks.0.hook_resid", "blocks.0.hook_resid_pre"),
        ("blocks.0.attn.hook_rot_q", "blocks.{l}.attn.hook_q"),  # no rotation in this model
        ("hook_tokens", "Change the tokens themselves"),
        ("blocks.1.ln1_post.hook_scale", "attn_post_scale"),
        ("unembed.hook_out", "The logits are what the model returns"),
    ],
)
def test_a_hook_on_a_name_that_does_not_exist_is_an_error(
    model: HookedTransformer, name: str, says: str
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: model.add_hook(name, look),
        lambda: model.run_with_hooks(TEXT, fwd_hooks=[(name, look)]),
        lambda: model.run_with_cache(TEXT, names_filter=name),
        lambda: model.run_with_cache(TEXT, names_filter=["hook_embed", name]),
        lambda: model.run_with_cache(TEXT)[1][name],
    ]
    for call in calls:
        with pytest.raises(SiteError, match="in this model") as raised:
            call()
        assert says in str(raised.value)
        assert "coming-from-transformerlens.md" in str(raised.value)
    assert not any(point.has_hooks() for point in model.hook_points())


def test_a_filter_that_accepts_nothing_is_an_error_for_hooks(model: HookedTransformer) -> None:
    with pytest.raises(SiteError, match="accepts none"):
        model.add_hook(lambda name: name.endswith("hook_nothing"), look)
    assert len(model.run_with_cache(TEXT, names_filter=lambda name: False)[1]) == 0


def test_a_hook_that_returns_a_wrong_shape_names_the_site_and_both_shapes(
    model: HookedTransformer,
) -> None:
    hooks = [("blocks.1.hook_mlp_out", lambda x, hook: x[:, 1:])]
    with pytest.raises(EditError) as raised:
        model.run_with_hooks(TEXT, fwd_hooks=hooks)
    for part in ("blocks.1.hook_mlp_out", "site mlp_out", "(1, 4, 32)", "(1, 5, 32)"):
        assert part in str(raised.value)
    with pytest.raises(EditError, match="returned a str"):
        model.run_with_hooks(TEXT, fwd_hooks=[("hook_embed", lambda x, hook: "x")])
    with (
        pytest.raises(EditError, match=r"blocks\.0\.hook_mlp_out"),
        model.hooks(bwd_hooks=[("blocks.0.hook_mlp_out", lambda g, hook: g[:, 1:])]),
    ):
        model(TEXT)[0, -1, 0].backward()


def test_a_text_that_is_not_one_token_says_how_many_and_which(model: HookedTransformer) -> None:
    with pytest.raises(TokenError, match="' go go' is 2 tokens: ' go', ' go'"):
        model.to_single_token(" go go")


def test_an_unknown_model_lists_the_nearest_known_ones() -> None:
    with pytest.raises(ModelError) as raised:
        HookedTransformer.from_pretrained("gpt2-smal")
    assert "gpt2-small" in str(raised.value)
    with pytest.raises(ModelError) as raised:
        HookedTransformer.from_pretrained("pythia-70n")
    assert "pythia-70m" in str(raised.value)


def test_gpt2_and_gpt2_small_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from casestudy.compat.transformer_lens import loading

    asked: list[str] = []

    def remember(name: str, **options: Any) -> None:
        asked.append(name)
        raise ModelError("stop here")

    monkeypatch.setattr(loading, "load", remember)
    for name in ("gpt2", "gpt2-small", "pythia-70m", "distillgpt2", "some/folder"):
        with pytest.raises(ModelError, match="stop here"):
            HookedTransformer.from_pretrained(name)
    assert asked == ["gpt2", "gpt2", "EleutherAI/pythia-70m", "distilgpt2", "some/folder"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokenizer": object()},
        {"checkpoint_index": 3},
        {"n_devices": 2},
        {"n_ctx": 12},
        {"move_to_device": False},
        {"load_in_4bit": True},
        {"torch_dtype": torch.float16},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_of_from_pretrained_that_are_refused(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(NotSupported, match=name):
        HookedTransformer.from_pretrained("tiny", **arguments)


def test_arguments_of_a_run_that_are_refused(model: HookedTransformer) -> None:
    tokens = model.to_tokens(TEXT)
    with pytest.raises(NotSupported, match="past_kv_cache"):
        model(tokens, past_kv_cache=object())
    with pytest.raises(NotSupported, match="shortformer_pos_embed"):
        model(tokens, shortformer_pos_embed=torch.zeros(1))
    with pytest.raises(NotSupported, match="return_type='logit'"):
        model(tokens, return_type="logit")
    with pytest.raises(NotSupported, match="bwd_hooks"):
        model.run_with_hooks(tokens, bwd_hooks=[("hook_embed", look)])
    with pytest.raises(PromptError, match="attention_mask"):
        model(tokens, attention_mask=torch.tensor([[1, 1, 0, 1, 1]]))
    with pytest.raises(SiteError, match="is not run"):
        model.run_with_cache(tokens, stop_at_layer=1, names_filter="blocks.1.hook_mlp_out")
    with pytest.raises(PromptError, match="residual stream"):
        model(tokens, start_at_layer=1)
    with pytest.raises(SiteError, match="a batch of one"):
        model.run_with_cache([TEXT, TEXT], remove_batch_dim=True)
    with pytest.raises(PromptError, match="at most 64"):
        model.to_tokens("He said so. " * 40)
    assert model.to_tokens("He said so. " * 40, truncate=True).shape == (1, 64)
    with pytest.raises(NotSupported, match="direction"):
        model.add_hook("hook_embed", look, dir="forward")


def test_attributes_that_are_refused(model: HookedTransformer) -> None:
    for name in ("process_weights_", "load_state_dict", "no_such_thing"):
        with pytest.raises(NotSupported, match=name):
            getattr(model, name)
        assert not hasattr(model, name)
    with pytest.raises(NotSupported, match="Did you mean 'run_with_cache'"):
        _ = model.run_with_cach
    with pytest.raises(NotSupported, match=r"blocks\.0\.attn\.W_X"):
        _ = model.blocks[0].attn.W_X
    with pytest.raises(NotSupported, match="forward"):
        model.blocks[0](torch.zeros(1))
    with pytest.raises(NotSupported, match="n_layer "):
        _ = model.cfg.n_layer
    with pytest.raises(NotSupported, match=r"setting cfg\.n_ctx"):
        model.cfg.n_ctx = 12
    with pytest.raises(NotSupported, match="apply_chat_template"):
        model.tokenizer.apply_chat_template([])
    with pytest.raises(PromptError, match="left, right"):
        model.tokenizer.padding_side = "both"
    with pytest.raises(NotSupported, match="train"):
        model.train()
    with pytest.raises(NotSupported, match=r"HookedTransformer\(cfg\)"):
        HookedTransformer(model.cfg)
    with pytest.raises(NotSupported, match="HookedTransformerConfig"):
        transformer_lens.HookedTransformerConfig(n_layers=1)
    cache = model.run_with_cache(TEXT, names_filter="hook_embed")[1]
    with pytest.raises(SiteNotKept, match="hook_z"):
        _ = cache["z", 0]
    with pytest.raises(NotSupported, match="ssm_layers"):
        cache.ssm_layers()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("", "HookedEncoder"),
        ("", "TransformerBridge"),
        (".hook_points", "HookedRootModule"),
        (".utils", "tokenize_and_concatenate"),
        (".patching", "get_act_patch_everything"),
    ],
)
def test_imports_that_are_refused(module: str, name: str) -> None:
    where = importlib.import_module(f"casestudy.compat.transformer_lens{module}")
    with pytest.raises(NotSupportedImport, match=name):
        getattr(where, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from casestudy.compat.transformer_lens{module} import {name}")


def test_the_page_says_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == docs.page(), (
        "run python -m casestudy.compat.transformer_lens.docs > docs/coming-from-transformerlens.md"
    )


@pytest.mark.slow
def test_the_module_prints_the_page() -> None:
    with forked(runpy.run_module, docs.__name__, None, "__main__") as process:
        assert process.ended() == docs.page()


def test_every_call_on_the_page_exists(model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(TEXT)
    owners = {
        "HookedTransformer": HookedTransformer,
        "model": model,
        "cache": cache,
        "utils": utils,
        "patching": patching,
        "FactoredMatrix": transformer_lens.FactoredMatrix,
    }
    for call in docs.CALLS:
        path = call.theirs.partition("(")[0].split(".")
        at: Any = owners[path[0]]
        for step in path[1:]:
            at = getattr(at, step)


def test_every_site_is_on_the_page_once_or_says_why_not(model: HookedTransformer) -> None:
    import casestudy as cs

    met = {row.site for row in TABLE}
    without_a_name = {
        cs.Site.ATTN_IN,  # hook_attn_in: split by heads
        cs.Site.ATTN_POST_SCALE,  # refused, with what to do
        cs.Site.MLP_POST_SCALE,
        cs.Site.FINAL_RESID,  # the last layer's hook_resid_post
    }
    assert met | without_a_name == set(cs.Site)
    assert not met & without_a_name
    assert set(names_of(model.model)) == set(model.hook_dict)
    assert not set(REFUSED) & {row.pattern for row in TABLE}


@pytest.mark.parametrize("made", [list, tuple, np.array, torch.tensor, lambda row: [row]])
def test_ids_are_taken_in_every_form(
    model: HookedTransformer, made: Callable[[list[int]], Any]
) -> None:
    row = model.to_tokens(TEXT)[0].tolist()
    given, expected = made(row), model(TEXT)
    torch.testing.assert_close(model(given), expected)
    torch.testing.assert_close(model.run_with_cache(given)[0], expected)
    new = model.generate(given, max_new_tokens=2, do_sample=False, stop_at_eos=False)
    assert new.tolist()[0][: len(row)] == row
    tokens = model.to_str_tokens(TEXT)
    assert model.to_str_tokens(given) in (tokens, [tokens])
    assert model.get_token_position(row[-1], given, mode="last") == len(row) - 1


@pytest.mark.parametrize(
    "given", [[[1, 2], [3]], [1.5, 2.0], torch.ones(3), np.ones((1, 1, 2)), []]
)
def test_what_is_no_ids_is_refused_by_name(model: HookedTransformer, given: Any) -> None:
    with pytest.raises((TokenError, PromptError)):
        model(given)


def test_to_tokens_refuses_ids_by_name(model: HookedTransformer) -> None:
    for given in ([3, 4], torch.tensor([3, 4])):
        with pytest.raises(PromptError, match=r"to_tokens of .*Allowed: a text or texts"):
            model.to_tokens(given)
