"""Models from GGUF files.

The metadata are converted to the entries of the same model's config.json, and the tensors to the
checkpoint's names and layout. Then the readers in `families` read them, so that each architecture
is described in one place. Changes made by the format are undone: permuted rows of queries and keys
(Llama), norms stored with 1 added (Gemma), transposed matrices (GPT-2), heads fused in another
order (GPT-NeoX). An unread key of the architecture's metadata is an error.

The format does not store activation functions, which layers have a sliding window, or Gemma's
attention scale. These are the family's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.config import ModelConfig
from casestudy.model.families import read_config, read_weights
from casestudy.model.families.gpt import whole_heads
from casestudy.model.families.layout import Layout
from casestudy.model.families.reading import Fields
from casestudy.model.gguf_file import GgufFile, StoredTensor
from casestudy.model.gguf_tokenizer import read_tokenizer
from casestudy.model.model import Model
from casestudy.model.ram_check import check_room
from casestudy.model.tokens import Tokenizer

Entries = dict[str, Any]

_PARTS = {
    **{f"attn_{part}": part for part in ("q", "k", "v", "qkv", "q_norm", "k_norm")},
    **{"attn_output": "o", "ffn_gate": "gate", "ffn_up": "in", "ffn_down": "out"},
    **{"attn_norm": "attn_norm", "ffn_norm": "mlp_norm"},
    **{"post_attention_norm": "attn_post_norm", "post_ffw_norm": "mlp_post_norm"},
}
# Tensors of the rotation: divisors of its frequencies, read into the configuration.
_FREQS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
_ROTATION = {_FREQS, _SHORT, _LONG}


def read_gguf(
    path: Path, *, name: str, source: str, device: torch.device, dtype: torch.dtype | None
) -> Model:
    """The model in a GGUF file, read tensor by tensor.

    Args:
        path: the file.
        name, source: as in `Model`.
        device: device of the parameters.
        dtype: their dtype; None for the file's dtype if it is not quantised, else float32.

    Raises: ModelError if the file is damaged, has an architecture, type or key that is not
        supported, or does not fit into memory.
    """
    file = GgufFile(path)
    config, layout, architecture = _read_config(file)
    dtype = dtype or _own_dtype(file)
    need = sum(prod(stored.shape) for stored in file.tensors.values()) * dtype.itemsize
    check_room(need, device, f"the parameters of {name} in {str(dtype).removeprefix('torch.')}")
    tensors: dict[str, Tensor] = {}
    for stored in file.tensors.values():
        if stored.name not in _ROTATION:
            tensors |= _renamed(file, stored, config, layout, architecture, device, dtype)
    weights = read_weights(config, layout, tensors)
    tokenizer = _tokenizer(file, config)
    return Model(config, weights, tokenizer, name=name, source=source, file=file.origin)


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, without its weights.

    Raises: ModelError as `read_gguf`.
    """
    file = GgufFile(path)
    return _tokenizer(file, _read_config(file)[0])


def _tokenizer(file: GgufFile, config: ModelConfig) -> Tokenizer:
    return read_tokenizer(
        file.metadata, file.path, prepend_bos=config.prepend_bos, n_ctx=config.n_ctx
    ).fitted(config.d_vocab, f"the tokenizer in {file.path}")


def _own_dtype(file: GgufFile) -> torch.dtype:
    kind = file.origin.types[0][0] if file.tensors else "F32"
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)


def _as_is(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    return tensor


@dataclass(frozen=True)
class _Architecture:
    """How GGUF files store one architecture.

    Attributes:
        entries: returns the entries of config.json, from the architecture's metadata.
        restore: undoes the format's change to a part's tensor.
        parts: the layout's part by the format's name.
    """

    entries: Callable[[Fields, GgufFile], Entries]
    restore: Callable[[str, Tensor, ModelConfig], Tensor] = _as_is
    parts: Mapping[str, str] = field(default_factory=lambda: _PARTS)


def _read_config(file: GgufFile) -> tuple[ModelConfig, Layout, _Architecture]:
    """The configuration, the checkpoint's table of parameter names, and the architecture."""
    metadata = file.metadata
    _check_complete(metadata, file.path)
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{file.path} is of the architecture {name!r}", allowed=", ".join(ARCHITECTURES)
        )
    own = {
        key.removeprefix(f"{name}."): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in metadata.items()
        if key.startswith(f"{name}.")
    }
    fields = Fields(own, f"{file.path.name}: metadata of {name}")
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no token_embd.weight", hint="Is it a language model?")
    _check_sizes(fields, file)
    architecture = ARCHITECTURES[name]
    try:
        entries = architecture.entries(fields, file)
        _check_usual(fields)
        fields.check_all_read()
        config, layout = read_config(entries)
    except (ArithmeticError, ValueError) as error:  # a base of 0, a logarithm of less
        raise ModelError(f"{fields.where}: its numbers do not fit together: {error}") from error
    return config, layout, architecture


def _check_sizes(fields: Fields, file: GgufFile) -> None:
    """Compare the metadata's counts with the tensors' shapes, before anything is built from them.

    Raises: ModelError naming the key.
    """
    width = max(max(stored.shape) for stored in file.tensors.values())
    most = {"block_count": len(file.tensors), "context_length": 1 << 30}
    sized = ("attention.key_length", "rope.dimension_count", "attention.head_count")
    most |= dict.fromkeys((*sized, "attention.head_count_kv"), width)
    for key, value in fields.entries.items():
        if not isinstance(value, (int, float)):
            continue
        if not 0 <= value < math.inf or value > most.get(key, math.inf):
            allowed = f"0 to {most[key]}" if key in most else "a number that is not negative"
            raise ModelError(f"{fields.where}: {key} is {value}", allowed=allowed)


def _check_complete(metadata: Mapping[str, Any], path: Path) -> None:
    """Raises: ModelError for a part of a model, or an unknown version of quantisation."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"{path} holds a {kind}", allowed="a whole model")
    if metadata.get("split.count", 0) not in (0, 1):
        raise ModelError(
            f"{path} is one of {metadata['split.count']} files",
            allowed="one file",
            hint="Join them with llama.cpp's llama-gguf-split --merge",
        )
    if metadata.get("general.quantization_version", 2) != 2:
        version = metadata["general.quantization_version"]
        raise ModelError(f"{path} has quantization_version {version!r}", allowed="2")


def _check_usual(fields: Fields) -> None:
    """Read the keys that any architecture may have; only their usual values are supported."""
    fields.ignore("vocab_size")  # the embedding's rows
    fields.ignore("rope.scaling.finetuned", "pooling_type")
    # the permutation of the rows of q and k: there is only one
    fields.ignore("tensor_data_layout")
    fields.only("attention.causal", True)
    fields.only("expert_count", 0)
    fields.only("expert_used_count", 0)


def _shape(fields: Fields, file: GgufFile, kind: str, *, whole: bool = False) -> Entries:
    """The entries that Llama and architectures like it name alike.

    Args:
        fields: the architecture's metadata.
        file: the file.
        kind: the model_type of the checkpoint.
        whole: whether all dimensions of a head are rotated.
    """
    n_heads, width = fields.need("attention.head_count"), fields.need("embedding_length")
    d_head = fields.get("attention.key_length", default=0)
    if whole:
        d_head = d_head or fields.get("rope.dimension_count", default=0)
    d_head = d_head or whole_heads(width, n_heads, "embedding_length", "attention.head_count")
    fields.only("attention.value_length", d_head)
    n_rotated = fields.get("rope.dimension_count", default=d_head)
    entries: Entries = {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": fields.need("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": fields.get("attention.head_count_kv", default=n_heads),
        "head_dim": d_head,
        "intermediate_size": fields.need("feed_forward_length"),
        "max_position_embeddings": fields.need("context_length"),
        "rope_theta": _base(fields),
        "rope_scaling": _scaling(fields, file),
        **_common(file),
    }
    if n_rotated != d_head:
        entries["partial_rotary_factor"] = _share(n_rotated, d_head)
    return entries


def _base(fields: Fields, key: str = "rope.freq_base", default: float = 10_000.0) -> float:
    """The base of the rotary embeddings, more than 1: frequencies fall from pair to pair."""
    base = fields.get(key, default=default)
    if base <= 1:
        raise ModelError(f"{fields.where}: {key} is {base}", allowed="more than 1")
    return base


def _common(file: GgufFile) -> Entries:
    """The entries that follow from the tensors."""
    return {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _share(n_rotated: int, d_head: int) -> float:
    """The share of rotated dimensions, chosen so that rounding down gives `n_rotated` again."""
    return (n_rotated + 0.5) / d_head


def _scaling(fields: Fields, file: GgufFile) -> Entries | None:
    """The scaling of the rotary embeddings for long contexts, as in config.json.

    Raises: ModelError for a scaling that is not supported.
    """
    kind = fields.get("rope.scaling.type", default="none")
    factor = fields.get("rope.scaling.factor", "rope.scale_linear", default=1.0)
    original = fields.get("rope.scaling.original_context_length", default=0)
    attention_factor = fields.get("rope.scaling.attn_factor", default=0.0)
    scaling: Entries = {"original_max_position_embeddings": original} if original else {}
    if _FREQS in file.tensors or _SHORT in file.tensors:
        # Divisors of the frequencies. LongRoPE has a magnitude and a second list for long prompts
        # beside them, Llama 3.1 has not.
        short = file.read(_FREQS if _FREQS in file.tensors else _SHORT).tolist()
        if _FREQS in file.tensors:
            scaling, attention_factor = {}, 1.0
        scaling |= {"rope_type": "longrope", "short_factor": short}
        return scaling | ({"attention_factor": attention_factor} if attention_factor else {})
    if kind == "longrope" or attention_factor not in (0.0, 1.0):
        raise ModelError(
            f"{fields.where}: rope.scaling.type {kind!r} with attn_factor {attention_factor:g}, "
            f"and no {_SHORT}",
            allowed="a factor other than 1 beside the tensors of longrope",
        )
    if kind == "linear" or (kind == "none" and factor != 1):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        fields.only("rope.scaling.yarn_ext_factor", 1.0)
        fields.only("rope.scaling.yarn_log_multiplier", 0.0)
        fields.only("rope.scaling.yarn_attn_factor", 1.0)
        for ours, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            value = fields.get(f"rope.scaling.{key}", default=0.0)
            scaling |= {ours: value} if value else {}
        return scaling | {"rope_type": "yarn", "factor": factor}
    if kind != "none":
        raise ModelError(
            f"{fields.where} asks for the scaling {kind!r}", allowed="none, linear, yarn, longrope"
        )
    return None


def _rms(fields: Fields) -> Entries:
    return {"rms_norm_eps": fields.get("attention.layer_norm_rms_epsilon", default=1e-6)}


def _has(file: GgufFile, name: str) -> bool:
    return f"blk.0.{name}" in file.tensors


def _window(fields: Fields) -> int | None:
    return fields.get("attention.sliding_window", default=0) or None


# Entries and restored tensors of each architecture


def _llama(kind: str) -> Callable[[Fields, GgufFile], Entries]:
    def entries(fields: Fields, file: GgufFile) -> Entries:
        """Llama, Mistral (the format does not distinguish them) and SmolLM3."""
        biases = {
            "attention_bias": _has(file, "attn_q.bias"),
            "mlp_bias": _has(file, "ffn_up.bias"),
        }
        shape = _shape(fields, file, kind, whole=True)
        if "partial_rotary_factor" in shape:
            raise ModelError(
                f"{fields.where}: rope.dimension_count is not a head's {shape['head_dim']}",
                allowed="rotation of whole heads",
            )
        return shape | _rms(fields) | biases

    return entries


def _unpermuted(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Rows of q and k in the checkpoint's order.

    The format rotates neighbouring rows of a head together, (0, 1), (2, 3), …; the checkpoint
    rotates row i of a head's first half with row i of its second half.
    """
    if part not in ("q", "k"):
        return tensor
    heads = config.n_heads if part == "q" else config.n_kv_heads
    if tensor.shape[0] != heads * config.d_head:  # `read_weights` raises the error
        return tensor
    paired: Tensor = tensor.unflatten(0, (heads, config.d_head // 2, 2))
    return paired.transpose(1, 2).reshape(tensor.shape)


def _qwen2(fields: Fields, file: GgufFile) -> Entries:
    return _shape(fields, file, "qwen2") | _rms(fields)


def _with_attention_bias(kind: str) -> Callable[[Fields, GgufFile], Entries]:
    def entries(fields: Fields, file: GgufFile) -> Entries:
        bias = {"attention_bias": _has(file, "attn_q.bias")}
        return _shape(fields, file, kind) | _rms(fields) | bias

    return entries


def _phi3(fields: Fields, file: GgufFile) -> Entries:
    original = fields.get("rope.scaling.original_context_length", default=0)
    shape = _shape(fields, file, "phi3") | _rms(fields) | {"sliding_window": _window(fields)}
    return shape | ({"original_max_position_embeddings": original} if original else {})


def _gemma(kind: str, biggest: int) -> Callable[[Fields, GgufFile], Entries]:
    """Gemma 2 and 3.

    Args:
        kind: the checkpoint's model_type.
        biggest: number of layers of the family's biggest model. Only that model scales attention
            by d_model / n_heads instead of d_head, and the format does not store the scale.
    """

    def gemma(fields: Fields, file: GgufFile) -> Entries:
        entries = _shape(fields, file, kind) | _rms(fields)
        share = entries["hidden_size"] // entries["num_attention_heads"]
        window = 4096 if kind == "gemma2" else 0
        usual = share if entries["num_hidden_layers"] == biggest else entries["head_dim"]
        scale = fields.get("attention.scale", default=0.0)
        entries |= {
            "query_pre_attn_scalar": scale**-2 if scale else float(usual),
            "sliding_window": fields.get("attention.sliding_window", default=window)
            or fields.need("attention.sliding_window"),
            **_caps(fields, entries["model_type"]),
            **_sliding(fields, entries["num_hidden_layers"]),
        }
        if kind == "gemma3_text":
            entries["rope_theta"] = _base(fields, default=1e6)
            entries["rope_local_base_freq"] = _base(fields, "rope.freq_base_swa")
        return entries

    return gemma


def _caps(fields: Fields, kind: str) -> Entries:
    usual = (50.0, 30.0) if kind == "gemma2" else (0.0, 0.0)
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    return {key: fields.get(key, default=cap) or None for key, cap in zip(keys, usual, strict=True)}


def _sliding(fields: Fields, n_layers: int) -> Entries:
    """Which layers have a sliding window, if the file says so: a period, or a list of layers."""
    pattern = fields.entries.get("attention.sliding_window_pattern")
    fields.ignore("attention.sliding_window_pattern")
    if pattern is None:
        return {}
    if isinstance(pattern, int):
        every = [pattern > 0 and (layer + 1) % pattern != 0 for layer in range(n_layers)]
    else:
        every = [bool(slides) for slides in pattern]
    names = {True: "sliding_attention", False: "full_attention"}
    return {"layer_types": [names[slides] for slides in every]}


def _minus_one(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Gemma's norms: the format stores 1 + weight, the checkpoint the weight."""
    return tensor - 1 if part.endswith("norm") else tensor


def _gpt2(fields: Fields, file: GgufFile) -> Entries:
    fields.only("attention.head_count_kv", fields.need("attention.head_count"))
    return {
        "model_type": "gpt2",
        "n_embd": fields.need("embedding_length"),
        "n_head": fields.need("attention.head_count"),
        "n_layer": fields.need("block_count"),
        "n_inner": fields.need("feed_forward_length"),
        "n_positions": fields.need("context_length"),
        "layer_norm_epsilon": fields.get("attention.layer_norm_epsilon", default=1e-5),
        **_common(file),
    }


def _transposed(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """GPT-2's matrices, which the checkpoint stores as (in, out)."""
    return tensor.T if tensor.ndim == 2 and part in ("qkv", "o", "in", "out") else tensor


def _gptneox(fields: Fields, file: GgufFile) -> Entries:
    n_heads, width = fields.need("attention.head_count"), fields.need("embedding_length")
    d_head = whole_heads(width, n_heads, "embedding_length", "attention.head_count")
    fields.only("attention.head_count_kv", n_heads)
    return {
        "model_type": "gpt_neox",
        "hidden_size": width,
        "num_attention_heads": n_heads,
        "num_hidden_layers": fields.need("block_count"),
        "intermediate_size": fields.need("feed_forward_length"),
        "max_position_embeddings": fields.need("context_length"),
        "layer_norm_eps": fields.get("attention.layer_norm_epsilon", default=1e-5),
        "use_parallel_residual": fields.get("use_parallel_residual", default=True),
        "attention_bias": _has(file, "attn_qkv.bias"),
        "rotary_pct": _share(fields.get("rope.dimension_count", default=d_head), d_head),
        "rope_theta": _base(fields),
        "rope_scaling": _scaling(fields, file),
        **_common(file),
    }


def _by_head(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """GPT-NeoX's fused matrix, by head: q, k and v. The format stores all q first."""
    if part != "qkv" or tensor.shape[0] != 3 * config.n_heads * config.d_head:
        return tensor
    fused: Tensor = tensor.unflatten(0, (3, config.n_heads, config.d_head))
    return fused.transpose(0, 1).reshape(tensor.shape)


def _stablelm(fields: Fields, file: GgufFile) -> Entries:
    fields.ignore("use_parallel_residual")  # often wrong; a second norm means sequential blocks
    shape = _shape(fields, file, "stablelm")
    d_head = shape.pop("head_dim")
    return shape | {
        "partial_rotary_factor": shape.get("partial_rotary_factor", _share(d_head, d_head)),
        "layer_norm_eps": fields.get("attention.layer_norm_epsilon", default=1e-5),
        "use_parallel_residual": not _has(file, "ffn_norm.weight"),
        "use_qkv_bias": _has(file, "attn_q.bias"),
        "qk_layernorm": _has(file, "attn_q_norm.weight"),
    }


ARCHITECTURES: dict[str, _Architecture] = {
    "llama": _Architecture(_llama("llama"), _unpermuted),
    "smollm3": _Architecture(_llama("smollm3"), _unpermuted),
    "qwen2": _Architecture(_qwen2),
    "qwen3": _Architecture(_with_attention_bias("qwen3")),
    "olmo2": _Architecture(_with_attention_bias("olmo2")),
    "phi3": _Architecture(_phi3, parts={**_PARTS, "ffn_up": "gate_up"}),
    "gemma2": _Architecture(_gemma("gemma2", biggest=46), _minus_one),
    "gemma3": _Architecture(_gemma("gemma3_text", biggest=62), _minus_one),
    "gpt2": _Architecture(_gpt2, _transposed),
    "gptneox": _Architecture(_gptneox, _by_head),
    "stablelm": _Architecture(_stablelm),
}


def _renamed(
    file: GgufFile,
    stored: StoredTensor,
    config: ModelConfig,
    layout: Layout,
    architecture: _Architecture,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """A tensor by its name in the checkpoint, in the checkpoint's layout; one per head for some."""
    part, module, suffix = _checkpoint_name(stored.name, layout, architecture, file.path)
    # norms are restored in float32, since subtracting 1 in a smaller dtype would round
    tensor = file.read(stored.name, torch.float32 if part.endswith("norm") else dtype)
    tensor = architecture.restore(part, tensor, config).to(device, dtype)
    if "{}" in module:  # a norm for each head
        each = enumerate(tensor.unbind() if tensor.ndim == 2 else ())
        return {f"{module.format(head)}.{suffix}": row for head, row in each}
    return {f"{module}.{suffix}": tensor}


def _checkpoint_name(
    name: str, layout: Layout, architecture: _Architecture, path: Path
) -> tuple[str, str, str]:
    """A tensor's part in the layout, its module in the checkpoint, and "weight" or "bias".

    Raises: ModelError for a tensor that the architecture does not have.
    """
    module, _, suffix = name.rpartition(".")
    whole = {
        "token_embd": layout.embed,
        "position_embd": layout.positions,
        "output_norm": layout.final_norm,
        "output": layout.unembed[0],
    }
    pieces = module.split(".")
    if whole.get(module):
        return module, str(whole[module]), suffix
    if len(pieces) == 3 and pieces[0] == "blk" and pieces[1].isdecimal():
        part = architecture.parts.get(pieces[2], "")
        if part in layout.parts:
            block = layout.block.format(int(pieces[1]))
            return part, block + layout.parts[part], suffix
    raise ModelError(f"{path} has an unknown tensor: {name}")
