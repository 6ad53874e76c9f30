"""Is every family's checkpoint read so that the one forward pass computes what its own code does?

Random weights written to disk by transformers, every bias and norm moved off its trivial value, and
matrices ten times their initial size, since those are so small that a block barely writes.
"""

from __future__ import annotations

import atexit
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.cells import Cell, Place
from casestudy.engine.packing import Budget
from casestudy.engine.sweep import sweep
from casestudy.errors import ModelError, RewriteError
from casestudy.measure.ledger import gap_bound, keep_for_ledger, ledger_terms
from casestudy.measure.whole_answers import whole_answers
from casestudy.model.decoder import run
from casestudy.model.folding import REWRITES, rewrite
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.study.study import study
from tests.helpers import copy_tokenizer, perturb_

D_VOCAB = 8200
WINDOW = 4
# 12 tokens: three times past the window
ROWS = [list(range(100, 112)), [7], [50, 3, 8000, 9, 61]]

GPT = {"vocab_size": D_VOCAB, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4}
NEO = {"vocab_size": D_VOCAB, "max_position_embeddings": 32, "hidden_size": 24}
SHAPE = NEO | {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "tie_word_embeddings": False,
}
HEADS = SHAPE | {"head_dim": 8}
NO_GROUPS = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
# original context 8 and prompts of 12: the blend of Llama 3.1 has all three of its parts
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [3.0, 4.0, 5.0],
    "original_max_position_embeddings": 16,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT),
    "gpt_neo": (
        "GPTNeoConfig",
        NEO
        | {"num_layers": 4, "num_heads": 4, "window_size": WINDOW}
        | {"attention_types": [[["global", "local"], 2]]},
    ),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 4, "n_inner": 40}),
    "gpt_neox": ("GPTNeoXConfig", NO_GROUPS | {"rotary_pct": 0.4}),
    "gpt_neox sequential, no biases": (
        "GPTNeoXConfig",
        NO_GROUPS | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
    ),
    "opt": (
        "OPTConfig",
        {k: v for k, v in NO_GROUPS.items() if k != "intermediate_size"}
        | {"ffn_dim": 40, "word_embed_proj_dim": 24, "tie_word_embeddings": True},
    ),
    "llama": ("LlamaConfig", SHAPE | {"rope_theta": 5e4}),
    "llama tied, with biases": (
        "LlamaConfig",
        HEADS | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama llama3": ("LlamaConfig", HEADS | {"rope_parameters": LLAMA3}),
    "llama linear": (
        "LlamaConfig",
        SHAPE | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama dynamic": (
        "LlamaConfig",
        SHAPE | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama yarn": ("LlamaConfig", HEADS | {"rope_parameters": YARN}),
    "mistral": ("MistralConfig", HEADS | {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", SHAPE),
    "qwen2 sliding": (
        "Qwen2Config",
        SHAPE | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", HEADS),
    "olmo2": ("Olmo2Config", SHAPE),
    "gemma2": (
        "Gemma2Config",
        HEADS
        | {"sliding_window": WINDOW, "query_pre_attn_scalar": 9, "tie_word_embeddings": True}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        HEADS
        | {"sliding_window": WINDOW, "query_pre_attn_scalar": 9, "tie_word_embeddings": True}
        | {"layer_types": SLIDING},
    ),
    "gemma3_text scaled": (
        "Gemma3TextConfig",
        HEADS
        | {"sliding_window": WINDOW, "layer_types": SLIDING, "final_logit_softcapping": 5.0}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi3": ("Phi3Config", SHAPE | {"sliding_window": WINDOW, "pad_token_id": 0}),
    "phi3 longrope": (
        "Phi3Config",
        SHAPE | {"rope_scaling": LONG, "original_max_position_embeddings": 16, "pad_token_id": 0},
    ),
    "smollm3": (
        "SmolLM3Config",
        SHAPE | {"no_rope_layers": [1, 0, 1], "pad_token_id": 0, "tie_word_embeddings": True},
    ),
    "stablelm": ("StableLmConfig", SHAPE | {"partial_rotary_factor": 0.7, "use_qkv_bias": True}),
    "stablelm parallel, normed": (
        "StableLmConfig",
        SHAPE | {"use_parallel_residual": True, "qk_layernorm": True, "partial_rotary_factor": 1.0},
    ),
}
# Where transformers' own graph is float64 throughout; elsewhere its softmax, angles or scales are
# float32 whatever the weights are.
EXACT = ("gpt2",)


@dataclass
class Pair:
    theirs: nn.Module
    folder: Path
    exact: bool

    @cache  # noqa: B019, one per case and session
    def ours(self, dtype: str) -> Model:
        return load(self.folder, device="cpu", dtype=dtype)

    __hash__ = object.__hash__


@cache
def pair_of(case: str) -> Pair:
    return build(*CASES[case], exact=case in EXACT)


def build(kind: str, options: dict[str, Any], *, exact: bool = False) -> Pair:
    """A random model of transformers, and the folder it was saved to."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, kind)(**ids | options)
    config._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    perturb_(theirs)
    for parameter in theirs.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter *= 10
    folder = Path(mkdtemp(prefix="casestudy-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    theirs.save_pretrained(folder)
    copy_tokenizer(folder)
    return Pair(theirs, folder, exact)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


def expected(pair: Pair, dtype: torch.dtype) -> list[tuple[list[Tensor], Tensor]]:
    """transformers' hidden states and logits of each row, one by one."""
    theirs = pair.theirs.to(dtype)
    with torch.no_grad():
        out = [theirs(torch.tensor([row]), output_hidden_states=True) for row in ROWS]
    theirs.to(torch.float32)
    return [([h[0] for h in o.hidden_states], o.logits[0]) for o in out]


def test_logits_and_hidden_states(pair: Pair) -> None:
    wide = 1e-9 if pair.exact else 1e-5
    for dtype, tolerance in (("float32", 1e-4), ("float64", wide)):
        ours = pair.ours(dtype)
        keep = ["resid_pre", "resid_post", "final_normed"]
        trace = run(ours, Tokens.of(ROWS), keep=keep, logits="all")
        assert trace.logits is not None
        close = {"rtol": 0, "atol": tolerance}
        for i, (states, logits) in enumerate(expected(pair, getattr(torch, dtype))):
            torch.testing.assert_close(trace.logits[i, : len(ROWS[i])], logits, **close)
            for layer in range(ours.config.n_layers):
                torch.testing.assert_close(
                    trace.of(("resid_pre", layer), i), states[layer], **close
                )
            # transformers replaces the last hidden state by the final norm's output
            torch.testing.assert_close(trace.of("final_normed", i), states[-1], **close)


def test_float32_agrees_with_float64(pair: Pair) -> None:
    """The error's norm over the norm itself, of all logits and of the stream after each layer:
    nothing in our own graph is stuck in float32, and float32 loses nothing but its own rounding.

    1e-6 is sixteen of its roundings (6e-8 each); transformers' float32 is as far from our
    float64. Of 140,000 logits the worst alone is up to 1.5e-6 of the largest, theirs likewise.
    """
    narrow, wide = (
        run(pair.ours(dtype), Tokens.of(ROWS), keep=["resid_post"], logits="all")
        for dtype in ("float32", "float64")
    )
    assert narrow.logits is not None
    assert wide.logits is not None
    mask = narrow.tokens.mask
    layers = range(pair.ours("float32").config.n_layers)
    streams = [(narrow["resid_post", layer], wide["resid_post", layer]) for layer in layers]
    for rounded, exact in [(narrow.logits, wide.logits), *streams]:
        rounded, exact = rounded[mask], exact[mask]
        assert (rounded.double() - exact).norm() < 1e-6 * exact.norm()


def contrast() -> Contrast:
    ids = torch.tensor([[5, 9], [61, 4], [1000, 7]])
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(3, 2)
    names = ("a", "b", "c")
    return Contrast("pair", ids, signs, torch.zeros(3, dtype=torch.float64), names, names)


def test_the_ledger_closes(pair: Pair) -> None:
    for dtype in ("float32", "float64"):
        ours = pair.ours(dtype)
        keep = keep_for_ledger(ours)
        trace = run(ours, Tokens.of(ROWS), keep=keep, logits="last")
        names, terms = ledger_terms(ours, trace, contrast())
        assert trace.logits is not None
        gap = (terms.sum(0) - contrast().value(trace.logits)).abs()
        assert (gap <= gap_bound(ours.dtype, terms)).all(), gap
        has = {
            "pos_embed": ours.weights.W_pos is not None,
            "final norm bias (b_U)": ours.config.norm == "layer",
            "unembedding bias": ours.weights.b_U is not None,
            "soft cap": ours.config.final_softcap is not None,
        }
        assert {name for name in has if name in names} == {
            name for name, is_so in has.items() if is_so
        }


def test_whole_answers_are_transformers_sequence_log_probabilities(pair: Pair) -> None:
    """The sum over steps is the difference of two sums over the answers' tokens."""
    ours, text = pair.ours("float64"), (50, 3, 8000)
    answers = ((9, 61, 5, 100), (9, 7, 100))
    theirs = pair.theirs.to(torch.float64)
    sums = []
    for answer in answers:
        with torch.no_grad():
            log_p = theirs(torch.tensor([[*text, *answer]])).logits[0].log_softmax(-1)
        sums.append(sum(float(log_p[len(text) + i - 1, id]) for i, id in enumerate(answer)))
    theirs.to(torch.float32)
    sides = ("id:" + ",".join(map(str, answer)) for answer in answers)
    found = whole_answers(ours, Prompt("", *sides, ids=text), parts=("ledger",))
    expected = pytest.approx(sums[0] - sums[1], abs=1e-9 if pair.exact else 1e-4)
    assert float(found.value.values[0]) == expected
    assert found.ledger.error["gap"] <= found.ledger.error["bound"]


def test_a_sweep_equals_full_runs(pair: Pair) -> None:
    """The sweep recomputes every one of these cells the plain way, and fails where they differ."""
    ours = pair.ours("float64")
    clean = Tokens.of(ROWS)
    corrupted = Tokens.of([[row[0] + 1, *row[1:]] for row in ROWS])
    places = [Place.at(0, clean), Place.last(clean)]
    sites = [Site.RESID_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.Z]
    cells = [Cell(site, 1, place) for site in sites for place in places]
    found = sweep(ours, clean, corrupted, cells, contrast(), budget=Budget(check=100))
    assert found.error["checked"] > 0
    assert found.error["gap"] <= found.error["bound"]


def refused(pair: Pair) -> set[str]:
    """The rewrites that would not be exact, by what the architecture has."""
    ours = pair.ours("float64")
    config, block = ours.config, ours.weights.blocks[0]
    no_norm_before = block.attn_norm is None or block.mlp_norm is None
    writes_through_norm = block.attn_post_norm is not None
    mixed = bool(config.rotary) or config.qk_norm != "none" or config.n_kv_heads != config.n_heads
    return {
        *(["fold_ln"] if no_norm_before else []),
        *(["center_unembed"] if config.final_softcap is not None else []),
        *(
            ["center_writing_weights"]
            if config.norm != "layer" or no_norm_before or writes_through_norm
            else []
        ),
        *(["refactor_factored_attn_matrices"] if mixed else []),
    }


def test_rewrites_keep_what_is_computed_or_are_refused(pair: Pair) -> None:
    ours = pair.ours("float64")
    logits = run(ours, Tokens.of(ROWS), logits="last").logits
    assert logits is not None
    for name in REWRITES:
        if name in refused(pair):
            with pytest.raises(RewriteError, match=f"{name} would change what"):
                rewrite(ours, name)
            continue
        rewritten = run(rewrite(ours, name), Tokens.of(ROWS), logits="last").logits
        assert rewritten is not None
        # centring the unembedding shifts all logits alike
        gap = rewritten.log_softmax(-1) - logits.log_softmax(-1)
        assert gap.abs().max() < 1e-9, name


def test_a_model_in_memory_is_taken_without_a_copy(pair: Pair) -> None:
    """Only what is stored head by head, and stacked here, is new."""
    theirs, on_disk = pair.theirs.to(torch.float32), pair.ours("float32")
    taken = load(theirs, on_disk.tokenizer)
    assert taken.weight_hash == on_disk.weight_hash
    assert taken.config == on_disk.config
    shared = {p.untyped_storage().data_ptr() for p in theirs.parameters()}
    stacked = taken.config.qk_norm == "head" and taken.config.qk_norm_kind == "layer"
    for name, tensor in taken.weights.named():
        if not (stacked and "_norm" in name):
            assert tensor.untyped_storage().data_ptr() in shared, name


class TestInMemory:
    def test_a_change_to_the_model_is_seen(self) -> None:
        pair = pair_of("gpt2")
        taken = load(pair.theirs, pair.ours("float32").tokenizer)
        before = taken.weights.W_E[5].clone()
        row = pair.theirs.transformer.wte.weight[5]
        row += 1
        assert torch.equal(taken.weights.W_E[5], row)
        row.copy_(before)

    def test_a_tokenizer_of_transformers(self) -> None:
        pair = pair_of("llama")
        path = str(pair.folder / "tokenizer.json")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=path, bos_token="<|endoftext|>")
        taken = load(pair.theirs, fast)
        assert taken.tokenizer.bos_id == 8191
        # Llama leaves BOS to the tokenizer, and this one prepends none
        assert taken.tokenize("It was late.").rows() == [fast("It was late.")["input_ids"]]
        assert run(taken, "It was late.", logits="last").logits is not None

    def test_gpt2s_convention_holds_for_it_too(self) -> None:
        pair = pair_of("gpt2")
        path = str(pair.folder / "tokenizer.json")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=path, bos_token="<|endoftext|>")
        assert load(pair.theirs, fast).tokenize("It").rows()[0][0] == 8191

    def test_what_cannot_be_taken(self) -> None:
        pair = pair_of("llama")
        tokenizer = pair.ours("float32").tokenizer
        with pytest.raises(ModelError, match=r"without its tokenizer.*load\(model, tokenizer\)"):
            load(pair.theirs)
        with pytest.raises(ModelError, match=r"already in memory.*\.to\(device, dtype\)"):
            load(pair.theirs, tokenizer, dtype="bfloat16")
        with pytest.raises(ModelError, match="Linear without a config"):
            load(nn.Linear(2, 2), tokenizer)
        with pytest.raises(ModelError, match="a tokenizer of type str"):
            load(pair.theirs, "gpt2")
        with pytest.raises(ModelError, match="which brings its own"):
            load("tiny", tokenizer)
        with torch.device("meta"):
            absent = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
        with pytest.raises(ModelError, match="spread over meta"):
            load(absent, tokenizer)


@pytest.mark.parametrize("case", ["gpt_neox", "olmo2", "gemma2"])
@pytest.mark.slow
def test_a_whole_study_runs(case: str, tmp_path: Path) -> None:
    """Parallel blocks, norms after each part, and both kinds of norm with soft-caps."""
    texts = ("It was late .", "He left , and she stayed .")
    prompts = tuple(Prompt(text, answer=" He", counterpart=" he") for text in texts)
    behaviour = Behaviour("small", "Does it run?", prompts, answers="given")
    done = study(behaviour, pair_of(case).ours("float32"), out=tmp_path / "study")
    ledger = done.grids["ledger"]
    assert ledger.values.shape[-1] == 2
    assert ledger.error["gap"] <= ledger.error["bound"]
    assert done.report().stat().st_size > 10_000
