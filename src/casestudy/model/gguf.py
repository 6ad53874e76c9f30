"""How does a GGUF file write down a decoder's shape and parameters?

Its metadata become the entries of the config.json that the same model has as a checkpoint, and its
tensors get the checkpoint's names and layout, so that the readers in `families` stay the one place
that knows an architecture. What the format changes is undone: rows of queries and keys that its
rotation permutes (Llama), norms stored with 1 added (Gemma), matrices turned round (GPT-2), heads
fused in another order (GPT-NeoX). A key of the architecture's own that nobody read is an error.

What the format leaves to the program that runs it is the family's own here too: activations,
which layers have a window, and Gemma's scale of attention.
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
from casestudy.model.gguf_file import GgufFile, Stored
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
    """Read a GGUF file, tensor by tensor, as the model that it was made from.

    Args:
        path: the file.
        name, source: as in `Model`.
        device: where the parameters go, one after the other.
        dtype: their number format there; None for the file's own where its numbers are not
            quantised, else float32.

    Raises: ModelError for a file that is damaged, of an architecture, type or key that is not
        supported, or does not fit into memory.
    """
    file = GgufFile(path)
    config, layout, change = _read_config(file)
    dtype = dtype or _own_dtype(file)
    need = sum(prod(stored.shape) for stored in file.tensors.values()) * dtype.itemsize
    check_room(need, device, f"the parameters of {name} in {str(dtype).removeprefix('torch.')}")
    tensors: dict[str, Tensor] = {}
    for stored in file.tensors.values():
        if stored.name not in _ROTATION:
            tensors |= _renamed(file, stored, config, layout, change, device, dtype)
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
    """How one architecture is written.

    Attributes:
        entries: the config.json's, from the architecture's own metadata.
        change: what undoes the format's change to the tensor of one of the layout's parts.
        parts: where its names of parts differ from the usual.
    """

    entries: Callable[[Fields, GgufFile], Entries]
    change: Callable[[str, Tensor, ModelConfig], Tensor] = _as_is
    parts: Mapping[str, str] = field(default_factory=lambda: _PARTS)


def _read_config(file: GgufFile) -> tuple[ModelConfig, Layout, _Architecture]:
    """The shape that the metadata describe, and where the same checkpoint keeps its parameters."""
    metadata = file.metadata
    _check_whole(metadata, file.path)
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
    """Compare what the metadata count with what the tensors hold, before anything is built of it.

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


def _check_whole(metadata: Mapping[str, Any], path: Path) -> None:
    """Raises: ModelError for a part of a model, or one whose blocks are read otherwise."""
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
    """Keys that any architecture may have, and that must not ask for something else."""
    fields.ignore("vocab_size")  # the embedding says it
    fields.ignore("rope.scaling.finetuned", "pooling_type")
    # which program the rows of q and k are permuted for: the one layout there is
    fields.ignore("tensor_data_layout")
    fields.only("attention.causal", True)
    fields.only("expert_count", 0)
    fields.only("expert_used_count", 0)


def _shape(fields: Fields, file: GgufFile, kind: str, *, whole: bool = False) -> Entries:
    """What the families of Llama call by the same names.

    Args:
        fields: the architecture's metadata.
        file: whose they are.
        kind: the model_type of the checkpoint.
        whole: heads are rotated as a whole, so that the rotation's size is a head's.
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
    """The rotation's base; every pair turns slower than the one before, so it is more than 1."""
    base = fields.get(key, default=default)
    if base <= 1:
        raise ModelError(f"{fields.where}: {key} is {base}", allowed="more than 1")
    return base


def _common(file: GgufFile) -> Entries:
    """What the tensors themselves say."""
    return {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _share(n_rotated: int, d_head: int) -> float:
    """The share of a head that is rotated, so that rounding down gives the number back."""
    return (n_rotated + 0.5) / d_head


def _scaling(fields: Fields, file: GgufFile) -> Entries | None:
    """The scaling of the rotation for long contexts, as a config.json has it.

    Raises: ModelError for one that casestudy does not have.
    """
    kind = fields.get("rope.scaling.type", default="none")
    factor = fields.get("rope.scaling.factor", "rope.scale_linear", default=1.0)
    original = fields.get("rope.scaling.original_context_length", default=0)
    warmth = fields.get("rope.scaling.attn_factor", default=0.0)
    scaling: Entries = {"original_max_position_embeddings": original} if original else {}
    if _FREQS in file.tensors or _SHORT in file.tensors:
        # Divisors of the frequencies: Llama 3.1's have no more to them, LongRoPE's a magnitude
        # and a second list for long prompts.
        short = file.read(_FREQS if _FREQS in file.tensors else _SHORT).tolist()
        if _FREQS in file.tensors:
            scaling, warmth = {}, 1.0
        scaling |= {"rope_type": "longrope", "short_factor": short}
        return scaling | ({"attention_factor": warmth} if warmth else {})
    if kind == "longrope" or warmth not in (0.0, 1.0):
        raise ModelError(
            f"{fields.where}: rope.scaling.type {kind!r} with attn_factor {warmth:g}, and no "
            f"{_SHORT}",
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


# Each architecture


def _llama(kind: str) -> Callable[[Fields, GgufFile], Entries]:
    def entries(fields: Fields, file: GgufFile) -> Entries:
        """Llama and Mistral, as which the format does not tell apart, and SmolLM3."""
        biases = {
            "attention_bias": _has(file, "attn_q.bias"),
            "mlp_bias": _has(file, "ffn_up.bias"),
        }
        found = _shape(fields, file, kind, whole=True) | _rms(fields) | biases
        if "partial_rotary_factor" in found:
            raise ModelError(
                f"{fields.where}: rope.dimension_count is not a head's {found['head_dim']}",
                allowed="rotation of whole heads",
            )
        return found

    return entries


def _unpermuted(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Rows of q and k with their halves side by side again.

    The format pairs neighbours, (0, 1), (2, 3), …; the checkpoint each row of a head's first half
    with its fellow in the second.
    """
    if part not in ("q", "k"):
        return tensor
    heads = config.n_heads if part == "q" else config.n_kv_heads
    if tensor.shape[0] != heads * config.d_head:  # the reader of the weights says what is wrong
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
    found = _shape(fields, file, "phi3") | _rms(fields) | {"sliding_window": _window(fields)}
    return found | ({"original_max_position_embeddings": original} if original else {})


def _gemma(kind: str, biggest: int) -> Callable[[Fields, GgufFile], Entries]:
    """Gemma 2 and 3.

    Args:
        kind: the checkpoint's name for it.
        biggest: how many layers the family's biggest model has, which alone scales attention by
            d_model / n_heads instead of a head's width. The format does not say.
    """

    def entries(fields: Fields, file: GgufFile) -> Entries:
        found = _shape(fields, file, kind) | _rms(fields)
        own = found["hidden_size"] // found["num_attention_heads"]
        window = 4096 if kind == "gemma2" else 0
        usual = own if found["num_hidden_layers"] == biggest else found["head_dim"]
        scale = fields.get("attention.scale", default=0.0)
        found |= {
            "query_pre_attn_scalar": scale**-2 if scale else float(usual),
            "sliding_window": fields.get("attention.sliding_window", default=window)
            or fields.need("attention.sliding_window"),
            **_caps(fields, found["model_type"]),
            **_sliding(fields, found["num_hidden_layers"]),
        }
        if kind == "gemma3_text":
            found["rope_theta"] = _base(fields, default=1e6)
            found["rope_local_base_freq"] = _base(fields, "rope.freq_base_swa")
        return found

    return entries


def _caps(fields: Fields, kind: str) -> Entries:
    usual = (50.0, 30.0) if kind == "gemma2" else (0.0, 0.0)
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    return {key: fields.get(key, default=cap) or None for key, cap in zip(keys, usual, strict=True)}


def _sliding(fields: Fields, n_layers: int) -> Entries:
    """Which layers have a window, where the file says it: every how many, or each."""
    said = fields.entries.get("attention.sliding_window_pattern")
    fields.ignore("attention.sliding_window_pattern")
    if said is None:
        return {}
    if isinstance(said, int):
        every = [said > 0 and (layer + 1) % said != 0 for layer in range(n_layers)]
    else:
        every = [bool(slides) for slides in said]
    names = {True: "sliding_attention", False: "full_attention"}
    return {"layer_types": [names[slides] for slides in every]}


def _less_one(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Gemma's norms, which the format stores with the 1 added that the checkpoint leaves out."""
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


def _turned(part: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """GPT-2's matrices, (in, out) in the checkpoint."""
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
    """GPT-NeoX's fused rows, each head's q, k and v together; the format has all q first."""
    if part != "qkv" or tensor.shape[0] != 3 * config.n_heads * config.d_head:
        return tensor
    fused: Tensor = tensor.unflatten(0, (3, config.n_heads, config.d_head))
    return fused.transpose(0, 1).reshape(tensor.shape)


def _stablelm(fields: Fields, file: GgufFile) -> Entries:
    fields.ignore("use_parallel_residual")  # often wrong: whether there is a second norm decides
    found = _shape(fields, file, "stablelm")
    d_head = found.pop("head_dim")
    return found | {
        "partial_rotary_factor": found.get("partial_rotary_factor", _share(d_head, d_head)),
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
    "gemma2": _Architecture(_gemma("gemma2", biggest=46), _less_one),
    "gemma3": _Architecture(_gemma("gemma3_text", biggest=62), _less_one),
    "gpt2": _Architecture(_gpt2, _turned),
    "gptneox": _Architecture(_gptneox, _by_head),
    "stablelm": _Architecture(_stablelm),
}


def _renamed(
    file: GgufFile,
    stored: Stored,
    config: ModelConfig,
    layout: Layout,
    architecture: _Architecture,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """One tensor under the checkpoint's name or names, in the checkpoint's layout."""
    part, module, suffix = _place(stored.name, layout, architecture, file.path)
    # the changes in float32, whose rounding is less than that of what is asked for
    tensor = file.read(stored.name, torch.float32 if part.endswith("norm") else dtype)
    tensor = architecture.change(part, tensor, config).to(device, dtype)
    if "{}" in module:  # a norm for each head
        each = enumerate(tensor.unbind() if tensor.ndim == 2 else ())
        return {f"{module.format(head)}.{suffix}": row for head, row in each}
    return {f"{module}.{suffix}": tensor}


def _place(
    name: str, layout: Layout, architecture: _Architecture, path: Path
) -> tuple[str, str, str]:
    """The part that a tensor is, the checkpoint's module for it, and "weight" or "bias".

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
    raise ModelError(f"{path} has a tensor without a place: {name}")
