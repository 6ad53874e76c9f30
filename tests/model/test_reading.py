"""Are configurations and checkpoints of every family read whole, or refused by name?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.decoder import run
from casestudy.model.families import FAMILIES, read_config
from casestudy.model.loading import available, load
from casestudy.model.ram_check import available as memory_available
from tests.model.test_families import CASES, pair_of

WEIGHTS = "model.safetensors"

# As published on the hub, without what only names them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "EleutherAI/pythia-70m": {
        **{"model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512},
        **{"intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048},
        **{"num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000},
        **{"rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16"},
        **{"use_cache": True, "use_parallel_residual": True, "vocab_size": 50304},
        **{"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.02},
    },
    "EleutherAI/gpt-neo-125m": {
        **{"model_type": "gpt_neo", "activation_function": "gelu_new", "attention_dropout": 0},
        **{"attention_layers": ["global", "local"] * 6, "embed_dropout": 0, "num_layers": 12},
        **{"attention_types": [[["global", "local"], 6]], "gradient_checkpointing": False},
        **{"hidden_size": 768, "intermediate_size": None, "layer_norm_epsilon": 1e-05},
        **{"max_position_embeddings": 2048, "num_heads": 12, "resid_dropout": 0},
        **{"summary_activation": None, "summary_first_dropout": 0.1, "summary_type": "cls_index"},
        **{"summary_proj_to_labels": True, "summary_use_proj": True, "vocab_size": 50257},
        **{"window_size": 256},
    },
    "EleutherAI/gpt-j-6b": {
        **{"model_type": "gptj", "activation_function": "gelu_new", "attn_pdrop": 0.0},
        **{"embd_pdrop": 0.0, "gradient_checkpointing": False, "layer_norm_epsilon": 1e-05},
        **{"n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28, "n_positions": 2048},
        **{"resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True},
        **{"task_specific_params": {}, "tie_word_embeddings": False, "vocab_size": 50400},
        **{"tokenizer_class": "GPT2Tokenizer"},
    },
    "facebook/opt-125m": {
        **{"model_type": "opt", "_remove_final_layer_norm": False, "dropout": 0.1},
        **{"activation_dropout": 0.0, "activation_function": "relu", "attention_dropout": 0.0},
        **{"do_layer_norm_before": True, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02},
        **{"layerdrop": 0.0, "max_position_embeddings": 2048, "num_attention_heads": 12},
        **{"num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272},
        **{"word_embed_proj_dim": 768, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1},
    },
    "meta-llama/Llama-2-7b-hf": {
        **{"model_type": "llama", "hidden_act": "silu", "hidden_size": 4096},
        **{"intermediate_size": 11008, "max_position_embeddings": 4096},
        **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32},
        **{"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None},
        **{"tie_word_embeddings": False, "vocab_size": 32000},
    },
    "meta-llama/Llama-3.2-1B": {
        **{"model_type": "llama", "attention_bias": False, "attention_dropout": 0.0},
        **{"head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192},
        **{"max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32},
        **{"num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1},
        **{"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True},
        "rope_scaling": {
            **{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0},
            **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
        },
        "vocab_size": 128256,
    },
    "HuggingFaceTB/SmolLM2-135M": {
        **{"model_type": "llama", "attention_bias": False, "attention_dropout": 0.0},
        **{"hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536},
        **{"is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False},
        **{"num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3},
        **{"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False},
        **{"rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True},
        **{"vocab_size": 49152, "transformers.js_config": {"kv_cache_dtype": {}}},
    },
    "mistralai/Mistral-7B-v0.1": {
        **{"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096},
        **{"intermediate_size": 14336, "max_position_embeddings": 32768},
        **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
        **{"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096},
        **{"tie_word_embeddings": False, "vocab_size": 32000},
    },
    "Qwen/Qwen2.5-0.5B": {
        **{"model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu"},
        **{"hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768},
        **{"max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24},
        **{"num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0},
        **{"sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False},
        **{"use_sliding_window": False, "vocab_size": 151936},
    },
    "Qwen/Qwen3-0.6B": {
        **{"model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0},
        **{"head_dim": 128, "hidden_act": "silu", "hidden_size": 1024},
        **{"intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28},
        **{"num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8},
        **{"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000},
        **{"sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False},
        "vocab_size": 151936,
    },
    "allenai/OLMo-2-0425-1B": {
        **{"model_type": "olmo2", "attention_bias": False, "attention_dropout": 0.0},
        **{"hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192},
        **{"max_position_embeddings": 4096, "num_attention_heads": 16, "num_hidden_layers": 16},
        **{"num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_scaling": None},
        **{"rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352},
    },
    "google/gemma-2-2b": {
        **{"model_type": "gemma2", "attention_bias": False, "attention_dropout": 0.0},
        **{"attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "head_dim": 256},
        **{"final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh"},
        **{"hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304},
        **{"intermediate_size": 9216, "max_position_embeddings": 8192},
        **{"num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4},
        **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0},
        **{"sliding_window": 4096, "vocab_size": 256000},
    },
    "google/gemma-3-1b-pt": {
        **{"model_type": "gemma3_text", "attention_bias": False, "attention_dropout": 0.0},
        **{"attn_logit_softcapping": None, "cache_implementation": "hybrid", "head_dim": 256},
        **{"final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh"},
        **{"hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768},
        **{"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1},
        **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_scaling": None},
        **{"rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512},
        **{"sliding_window_pattern": 6, "vocab_size": 262144},
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        **{"model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0},
        **{"embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072},
        **{"intermediate_size": 8192, "max_position_embeddings": 4096},
        **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32},
        **{"original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05},
        **{"rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047},
        **{"tie_word_embeddings": False, "vocab_size": 32064},
    },
    "HuggingFaceTB/SmolLM3-3B": {
        **{"model_type": "smollm3", "attention_bias": False, "attention_dropout": 0.0},
        **{"hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008},
        **{"layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536},
        **{"max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4},
        **{"no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16},
        **{"num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2},
        **{"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0},
        **{"sliding_window": None, "use_sliding_window": False, "vocab_size": 128256},
    },
    "stabilityai/stablelm-2-1_6b": {
        **{"model_type": "stablelm", "hidden_act": "silu", "hidden_size": 2048},
        **{"intermediate_size": 5632, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096},
        **{"num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 32},
        **{"partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False},
        **{"use_qkv_bias": True, "vocab_size": 100352},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read(name: str) -> None:
    config, _ = read_config(PUBLISHED[name])
    assert config.family == PUBLISHED[name]["model_type"]
    assert len(config.attn_scale) == config.n_layers


def test_what_the_published_ones_say() -> None:
    def read(name: str) -> Any:
        return read_config(PUBLISHED[name])[0]

    assert read("EleutherAI/pythia-70m").rotary[0].dim == 16
    assert read("EleutherAI/gpt-neo-125m").windows == (None, 256) * 6
    assert read("EleutherAI/gpt-neo-125m").d_mlp == 3072
    llama3 = read("meta-llama/Llama-3.2-1B").rotary[0].inverse_frequencies
    assert llama3[0] == 1.0  # short wavelengths are kept,
    assert llama3[-1] == pytest.approx(500000 ** (-62 / 64) / 32)  # long ones stretched
    assert read("mistralai/Mistral-7B-v0.1").windows == (4096,) * 32
    assert read("Qwen/Qwen2.5-0.5B").windows == ()
    assert read("google/gemma-3-1b-pt").windows[:6] == (512,) * 5 + (None,)
    assert read("google/gemma-3-1b-pt").final_softcap is None
    assert read("google/gemma-2-2b").final_softcap == 30.0
    assert read_config(PUBLISHED["google/gemma-2-2b"])[1].tied
    assert not read_config(PUBLISHED["EleutherAI/pythia-70m"])[1].tied
    smol = read("HuggingFaceTB/SmolLM3-3B").rotary
    assert [rotary is None for rotary in smol[:8]] == [False, False, False, True] * 2
    assert read("stabilityai/stablelm-2-1_6b").rotary[0].dim == 16


LLAMA = PUBLISHED["meta-llama/Llama-2-7b-hf"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("meta-llama/Llama-2-7b-hf", {"model_type": "mamba"}, "'mamba'.*gpt_neox.*stablelm"),
        ("meta-llama/Llama-2-7b-hf", {"auto_map": {}}, "runs no code.*remove auto_map"),
        ("meta-llama/Llama-2-7b-hf", {"zebra": 1}, "does not know: zebra"),
        ("meta-llama/Llama-2-7b-hf", {"quantization_config": {}}, "know: quantization_config"),
        ("meta-llama/Llama-2-7b-hf", {"hidden_act": "xielu"}, "activation 'xielu'"),
        ("meta-llama/Llama-2-7b-hf", {"num_key_value_heads": 5}, "32 attention heads share 5"),
        (
            "meta-llama/Llama-2-7b-hf",
            {"num_attention_heads": 30, "num_key_value_heads": 30},
            "4096 is not a multiple",
        ),
        ("meta-llama/Llama-2-7b-hf", {"rope_interleaved": True}, "rope_interleaved = True"),
        ("meta-llama/Llama-2-7b-hf", {"rope_scaling": {"type": "ntk"}}, "scaling 'ntk'.*llama3"),
        (
            "meta-llama/Llama-2-7b-hf",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "zebra": 1}},
            "rope_parameters has keys casestudy does not know: zebra",
        ),
        ("meta-llama/Llama-2-7b-hf", {"rope_scaling": {"type": "linear"}}, "factor 0"),
        ("meta-llama/Llama-2-7b-hf", {"partial_rotary_factor": 0.01}, "rotates 1 dimensions"),
        (
            "microsoft/Phi-3-mini-4k-instruct",
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}},
            "1 short factors.*48, one per pair",
        ),
        ("facebook/opt-125m", {"do_layer_norm_before": False}, "do_layer_norm_before = False"),
        ("facebook/opt-125m", {"word_embed_proj_dim": 512}, "word_embed_proj_dim = 512"),
        ("EleutherAI/gpt-neo-125m", {"attention_layers": ["global"]}, "1 layers.*12 times"),
        ("HuggingFaceTB/SmolLM3-3B", {"no_rope_layers": [1]}, "1 entries, not 36"),
        ("Qwen/Qwen3-0.6B", {"layer_types": ["chunked_attention"] * 28}, "chunked_attention"),
        ("Qwen/Qwen3-0.6B", {"layer_types": ["sliding_attention"] * 28}, "no sliding_window"),
        ("Qwen/Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope = True"),
        ("google/gemma-3-1b-pt", {"use_bidirectional_attention": True}, "bidirectional"),
        ("google/gemma-3-1b-pt", {"model_type": "gemma3"}, "'gemma3'.*gemma3_text"),
    ],
)
def test_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_config(PUBLISHED[name] | changes)


def test_both_ways_of_writing_a_rotation_are_one() -> None:
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}
    rope = {"rope_type": "linear", "type": "linear", "factor": 4.0, "rope_theta": 5e5}
    new = {**{k: v for k, v in LLAMA.items() if k != "rope_scaling"}, "rope_parameters": rope}
    assert read_config(old)[0] == read_config(new)[0]


def test_longrope_reads_no_further_than_its_short_factors_hold() -> None:
    scaling = {"type": "longrope", "short_factor": [1.1] * 48, "long_factor": [9.0] * 48}
    changes = {"rope_scaling": scaling, "max_position_embeddings": 131072}
    config, _ = read_config(PUBLISHED["microsoft/Phi-3-mini-4k-instruct"] | changes)
    assert config.n_ctx == 4096
    # sqrt(1 + ln 32 / ln 4096)
    assert config.rotary[0].magnitude == pytest.approx(1.19024, abs=1e-5)


def test_every_family_is_listed_with_an_example() -> None:
    names = {family for _, family, _ in available()}
    assert names >= {family.name for family in FAMILIES.values()}
    assert {case.split()[0] for case in CASES} == set(FAMILIES)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A family's tiny checkpoint that a test may damage."""

    def copy(case: str) -> Path:
        return Path(shutil.copytree(pair_of(case).folder, tmp_path / "copy"))

    return copy


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("case", ["gpt_neox", "llama", "opt", "gemma2"])
def test_missing_and_unmapped_tensors_are_named(case: str, copied: Callable[[str], Path]) -> None:
    folder = copied(case)
    names = sorted(load_file(folder / WEIGHTS))
    gone = names[len(names) // 2]
    change(folder, lambda tensors: tensors.pop(gone))
    with pytest.raises(ModelError, match=f"no tensor {gone}"):
        load(folder, device="cpu")
    whole = load_file(pair_of(case).folder / WEIGHTS)
    extra = {gone: whole[gone], "spare.weight": torch.zeros(3)}
    change(folder, lambda tensors: tensors.update(extra))
    with pytest.raises(ModelError, match=r"unknown tensors \(1\): spare\.weight"):
        load(folder, device="cpu")


def test_masks_and_rotary_tables_are_passed_over_unread(copied: Callable[[str], Path]) -> None:
    """Pythia's half-precision files hold -inf as masked_bias; it is no parameter."""
    folder = copied("gpt_neox")
    extra = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9).half(),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
    }
    assert extra["gpt_neox.layers.0.attention.masked_bias"].isinf()
    change(folder, lambda tensors: tensors.update(extra))
    same = load(pair_of("gpt_neox").folder, device="cpu")
    assert load(folder, device="cpu").weight_hash == same.weight_hash


def test_a_base_model_without_prefix(copied: Callable[[str], Path]) -> None:
    folder = copied("llama tied, with biases")

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    change(folder, rename)
    same = load(pair_of("llama tied, with biases").folder, device="cpu")
    assert load(folder, device="cpu").weight_hash == same.weight_hash


@pytest.mark.parametrize("case", ["gpt_neox", "phi3", "mistral"])
def test_fused_matrices_stay_one(case: str) -> None:
    """In the checkpoint's own format every parameter is a view of the mapped file."""
    pair = pair_of(case)
    weights = load(pair.folder, device="cpu", dtype="auto").weights
    stored = sum(t.numel() for t in load_file(pair.folder / WEIGHTS).values())
    sizes = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in weights.named()
    }
    assert sum(sizes.values()) == 4 * stored


class TestFormats:
    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
    def test_half_precision_runs_as_it_is_or_upcast(
        self, stored: torch.dtype, copied: Callable[[str], Path]
    ) -> None:
        folder = copied("llama")
        change(folder, lambda ts: ts.update({name: t.to(stored) for name, t in ts.items()}))
        kept, wide = load(folder, device="cpu", dtype="auto"), load(folder, device="cpu")
        assert kept.dtype == stored
        assert wide.dtype == torch.float32
        assert torch.equal(kept.weights.W_E.float(), wide.weights.W_E)
        logits = [run(model, "It was late.", logits="last").logits for model in (kept, wide)]
        assert logits[0] is not None
        assert logits[1] is not None
        assert logits[0].dtype == stored
        # that it runs and is near is all that is promised
        assert (logits[0].float() - logits[1]).abs().max() < 0.1 * logits[1].abs().max()

    def test_integers_are_no_parameters(self, copied: Callable[[str], Path]) -> None:
        folder = copied("llama")
        change(folder, lambda ts: ts.update({n: t.to(torch.int8) for n, t in ts.items()}))
        with pytest.raises(ModelError, match=r"stores parameters as I8.*Quantised"):
            load(folder, device="cpu")

    def test_no_room(self, monkeypatch: pytest.MonkeyPatch, copied: Callable[[str], Path]) -> None:
        folder = copied("llama")
        read: list[str] = []
        monkeypatch.setattr("casestudy.model.ram_check.available", lambda device: 2**20)
        monkeypatch.setattr(
            "casestudy.model.loading._check_finite", lambda path, key, tensor: read.append(key)
        )
        with pytest.raises(ModelError, match=r"need 1\.6 MiB, and cpu has 1\.0 MiB of memory"):
            load(folder, device="cpu")
        assert not read
        monkeypatch.setattr("casestudy.model.ram_check.available", lambda device: None)
        load(folder, device="cpu")
        assert read

    def test_there_is_some_room_here(self) -> None:
        free = memory_available(torch.device("cpu"))
        assert free is None or 2**20 < free < 2**50


def test_config_is_the_checkpoints_own(copied: Callable[[str], Path]) -> None:
    """A shape that does not fit is named with the tensor."""
    folder = copied("qwen2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    with pytest.raises(ModelError, match=r"k_proj\.weight has shape \(12, 24\)"):
        load(folder, device="cpu")


class TestUnembedding:
    """Where a checkpoint keeps one matrix of the two, or names neither."""

    def change(self, folder: Path, tied: bool, *dropped: str) -> Path:
        shutil.copytree(pair_of("llama").folder, folder)
        entries = json.loads((folder / "config.json").read_text())
        entries |= {"tie_word_embeddings": tied, "unk_token_id": 0, "_model_name_or_path": "x"}
        (folder / "config.json").write_text(json.dumps(entries))
        tensors = load_file(folder / WEIGHTS)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file({k: v for k, v in tensors.items() if k not in dropped}, folder / WEIGHTS)
        return folder

    def test_without_one_the_error_names_the_key(self, tmp_path: Path) -> None:
        folder = self.change(tmp_path / "m", False, "lm_head.weight")
        with pytest.raises(ModelError, match=r"no tensor lm_head\.weight.*tie_word_embeddings"):
            load(folder, device="cpu")

    def test_tied_it_may_be_there_alone(self, tmp_path: Path) -> None:
        usual = self.change(tmp_path / "usual", True, "lm_head.weight")
        alone = self.change(tmp_path / "alone", True, "model.embed_tokens.weight")
        model = load(alone, device="cpu")
        assert model.weight_hash == load(usual, device="cpu").weight_hash
        assert model.weights.tied
