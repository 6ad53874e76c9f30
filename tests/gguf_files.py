"""GGUF files made on the spot from models of transformers, by the `gguf` package's own writer.

What converters do to a checkpoint is written here a second time, the other way round, so that the
reader is tested against the format and not against itself. Names of tensors are the package's.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from tests.helpers import TOKENIZER

Writer = Callable[[gguf.GGUFWriter], None]
# model_type of a checkpoint: what the format calls it, and whether its rows are permuted
KINDS = {
    **{"llama": "llama", "smollm3": "smollm3", "qwen2": "qwen2", "qwen3": "qwen3"},
    **{"olmo2": "olmo2", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3"},
    **{"gpt2": "gpt2", "gpt_neox": "gptneox", "stablelm": "stablelm"},
}


def write(
    folder: Path,
    model: nn.Module,
    *more: Writer,
    tokenizer: Writer | None = None,
    quantised: gguf.GGMLQuantizationType | None = None,
    **factors: Tensor,
) -> Path:
    """Write a model as a converter would.

    Args:
        folder: where model.gguf goes.
        model: of transformers, of one of `KINDS`.
        more: what else is written, such as a scaling.
        tokenizer: writes the tokenizer; by default the bundled model's.
        quantised: how matrices are stored, where not in float32.
        factors: tensors of the rotation, by name.
    """
    config: Any = model.config
    kind = KINDS[config.model_type]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("made for a test")
    _metadata(writer, config, kind)
    (tokenizer or bundled_tokenizer(config.vocab_size))(writer)
    for step in more:
        step(writer)
    for name, tensor in _tensors(model, kind).items():
        _add(writer, name, tensor, quantised)
    for name, tensor in factors.items():
        _add(writer, f"{name}.weight", tensor, None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    tensor: Tensor,
    kind: gguf.GGMLQuantizationType | None,
) -> None:
    values = np.ascontiguousarray(tensor.detach().float().numpy())
    if kind is None or values.ndim < 2 or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _metadata(writer: gguf.GGUFWriter, config: Any, kind: str) -> None:
    n_heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    writer.add_feed_forward_length(inner or 4 * config.hidden_size)
    writer.add_head_count(n_heads)
    if kind in ("gpt2", "gptneox", "stablelm"):
        eps = getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon
        writer.add_layer_norm_eps(eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind == "gpt2":
        return
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", n_heads))
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(int(d_head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind != "gptneox" and d_head * n_heads != config.hidden_size:
        writer.add_key_length(d_head)
        writer.add_value_length(d_head)
    if kind == "gptneox":
        writer.add_parallel_residual(config.use_parallel_residual)
    if kind.startswith("gemma") or kind == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)


def _tensors(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """Every parameter under the format's name, as the format stores it."""
    config: Any = model.config
    names = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(names[kind], config.num_hidden_layers)
    stored: dict[str, Tensor] = {}
    tied = config.tie_word_embeddings
    each: dict[str, list[Tensor]] = {}
    for name, tensor in model.state_dict().items():
        module, _, suffix = name.rpartition(".")
        if name.endswith((".attn.bias", "masked_bias", "inv_freq")) or (
            tied and module in ("lm_head", "embed_out")
        ):
            continue
        if ".norms." in module:  # StableLM's norm of each head, stacked
            module = module.partition(".norms.")[0]
            each.setdefault(module, []).append(tensor)
            continue
        found = table.get_name(module)
        assert found is not None, name
        stored[f"{found}.{suffix}"] = _changed(found, suffix, tensor, config, kind)
    for module, rows in each.items():
        found = table.get_name(module)
        assert found is not None, module
        stored[f"{found}.weight"] = torch.stack(rows)
    return stored


def _changed(name: str, suffix: str, tensor: Tensor, config: Any, kind: str) -> Tensor:
    n_heads = config.num_attention_heads
    if kind in ("llama", "smollm3") and name.endswith(("attn_q", "attn_k")):
        heads = n_heads if name.endswith("attn_q") else config.num_key_value_heads
        halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
        return torch.stack([halves[:, 0], halves[:, 1]], 2).reshape(tensor.shape)
    if kind.startswith("gemma") and name.endswith("norm"):
        return tensor + 1
    if (
        kind == "gpt2"
        and suffix == "weight"
        and name.endswith(("attn_qkv", "output", "up", "down"))
    ):
        return tensor if name == "output" else tensor.T
    if kind == "gptneox" and name.endswith("attn_qkv"):
        d_head = config.hidden_size // n_heads
        by_head = tensor.view(n_heads, 3, d_head, *tensor.shape[1:])
        return torch.cat([by_head[:, i] for i in range(3)]).reshape(tensor.shape)
    return tensor


def bundled_tokenizer(d_vocab: int, pre: str = "gpt-2") -> Writer:
    """The bundled model's tokenizer, filled up with unused tokens to the embedding's rows."""
    parts = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(parts["model"]["vocab"], key=parts["model"]["vocab"].get)
    for added in parts["added_tokens"]:
        if added["id"] == len(tokens):
            tokens.append(added["content"])
    types = [3 if t in {a["content"] for a in parts["added_tokens"]} else 1 for t in tokens]
    unused = [f"[PAD{id}]" for id in range(len(tokens), d_vocab)]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([*tokens, *unused])
        writer.add_token_types([*types, *[5] * len(unused)])
        writer.add_token_merges([" ".join(merge) for merge in parts["model"]["merges"]])
        writer.add_bos_token_id(8191)
        writer.add_eos_token_id(8191)
        writer.add_add_bos_token(False)

    return add


def few_tokens(writer: gguf.GGUFWriter) -> None:
    """A tokenizer of five tokens, for files that are made by the hundred."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", "Ġ", "<|end|>"])
    writer.add_token_types([1, 1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(4)


def as_transformers_reads_it(path: Path) -> Any:
    """The model of a file, as transformers reads it, float32.

    It reads the header twice, and makes the package's map of names anew for every module of the
    model: most of 20 seconds for SmolLM2. Each is made once here, with the same content.
    """
    once = {
        name: functools.cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")
    }
    with patch.multiple(gguf, **once):
        found = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    return found.eval()
