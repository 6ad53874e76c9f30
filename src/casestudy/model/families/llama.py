"""Llama and the architectures that use its module names.

All have rotary position embeddings, a gated MLP, grouped-query attention, and RMSNorm (StableLM:
LayerNorm). They differ in biases, norms of queries and keys, attention windows, and the places of
norms; Phi-3 fuses matrices. Gemma 2 and 3 have soft-caps, norms before and after each part, and
store a norm's weight minus 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from casestudy.errors import ModelError
from casestudy.model.config import ModelConfig
from casestudy.model.families.gpt import whole_heads
from casestudy.model.families.layout import Layout
from casestudy.model.families.reading import Fields, activation
from casestudy.model.families.rope import read_rope, rope_of

_PRE = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_POST = {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_SANDWICH = {"attn_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm", **_POST}
_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_MLP = {"gate": "mlp.gate_proj", "in": "mlp.up_proj", "out": "mlp.down_proj"}
_LINEAR = {**{part: f"self_attn.{part}_proj" for part in "qkvo"}, **_MLP}
_QKV, _QKVO = set("qkv"), set("qkvo")


def _layout(*tables: dict[str, str], biased: set[str] | None = None, tied: bool = False) -> Layout:
    return Layout(
        prefixes=("model.",),
        embed="embed_tokens",
        final_norm="norm",
        block="layers.{}.",
        parts={part: module for table in tables for part, module in table.items()},
        biased=frozenset(biased or ()),
        tied=tied,
    )


def _config(
    family: str,
    fields: Fields,
    *,
    d_head: int | None = None,
    theta: float = 10_000.0,
    partial: float = 1.0,
    **changes: Any,
) -> ModelConfig:
    """The configuration of one of these families.

    Args:
        family: its name.
        fields: the configuration.
        d_head: the family's default, if it is not d_model / n_heads.
        theta: the family's default base of the rotary embeddings.
        partial: the share of a head's dimensions that is rotated.
        changes: the fields of ModelConfig in which this family differs.
    """
    d_model, n_heads = fields.need("hidden_size"), fields.need("num_attention_heads")
    n_layers = fields.need("num_hidden_layers")
    n_kv_heads = fields.get("num_key_value_heads", default=n_heads)
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ModelError(
            f"config.json: {n_heads} attention heads share {n_kv_heads} key/value heads",
            allowed="groups of equal size",
        )
    d_head = fields.get("head_dim", default=d_head or 0)
    d_head = d_head or whole_heads(d_model, n_heads, "hidden_size", "num_attention_heads")
    n_ctx = fields.need("max_position_embeddings")
    if "rotary" not in changes:
        rope = read_rope(fields, d_head, n_ctx, theta=theta, partial=partial)
        n_ctx, changes["rotary"] = rope.n_ctx, (rope.rotary,) * n_layers
    shape = {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_head": d_head,
        "d_mlp": fields.need("intermediate_size"),
        "d_vocab": fields.need("vocab_size"),
        "n_ctx": n_ctx,
        "attn_scale": (d_head**-0.5,) * n_layers,
        "norm": "rms",
        "prepend_bos": None,
    }
    if "norm_eps" not in changes:
        shape["norm_eps"] = fields.get("rms_norm_eps", default=1e-6)
    if "activation" not in changes:
        shape["activation"] = activation(fields, "hidden_act", default="silu")
    return ModelConfig(family=family, **{**shape, **changes})


def _windows(
    fields: Fields, n_layers: int, window: int | None, slides: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """Each layer's attention window, from layer_types, else by the family's rule `slides`.

    Raises: ModelError for a kind of layer that is not supported.
    """
    nothing: list[str] = []
    usual = ["sliding_attention" if slides(i) else "full_attention" for i in range(n_layers)]
    types = fields.get("layer_types", default=nothing) or usual
    if len(types) != n_layers or set(types) - {"sliding_attention", "full_attention"}:
        raise ModelError(
            f"config.json: layer_types names {len(types)} layers as {sorted(set(types))}",
            allowed=f"{n_layers} times sliding_attention or full_attention",
        )
    if window is None and "sliding_attention" in types:
        raise ModelError("config.json: layer_types has sliding layers, but no sliding_window")
    windows = tuple(window if kind == "sliding_attention" else None for kind in types)
    return windows if any(windows) else ()


def _bias(fields: Fields, name: str, parts: set[str]) -> set[str]:
    """These parts if config.json gives them biases, else none."""
    return parts if fields.get(name, default=False) else set()


def llama(fields: Fields) -> tuple[ModelConfig, Layout]:
    """Llama 1 to 3.3 (Touvron et al. 2023; Grattafiori et al. 2024), and SmolLM and SmolLM2."""
    fields.only("rope_interleaved", False)
    attention = _bias(fields, "attention_bias", _QKVO)
    mlp = _bias(fields, "mlp_bias", set(_MLP))
    return _config("llama", fields), _layout(_LINEAR, _PRE, biased=attention | mlp)


def mistral(fields: Fields) -> tuple[ModelConfig, Layout]:
    """Mistral (Jiang et al. 2023): a sliding window in every layer, if it has one."""
    window = fields.nullable("sliding_window", 4096)
    n_layers = fields.need("num_hidden_layers")
    windows = (window,) * n_layers if window else ()
    return _config("mistral", fields, windows=windows), _layout(_LINEAR, _PRE)


def qwen2(fields: Fields) -> tuple[ModelConfig, Layout]:
    """Qwen 2 and 2.5 (Yang et al. 2024): biases on queries, keys and values only."""
    fields.only("use_mrope", False)
    config = _config("qwen2", fields, windows=_qwen_windows(fields))
    return config, _layout(_LINEAR, _PRE, biased=_QKV)


def qwen3(fields: Fields) -> tuple[ModelConfig, Layout]:
    """Qwen 3 (Yang et al. 2025): queries and keys normalised per head."""
    windows = _qwen_windows(fields)
    config = _config("qwen3", fields, d_head=128, qk_norm="head", windows=windows)
    biased = _bias(fields, "attention_bias", _QKVO)
    return config, _layout(_LINEAR, _PRE, _QK_NORMS, biased=biased)


def _qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    on = fields.get("use_sliding_window", default=False)
    window = fields.nullable("sliding_window", 4096) if on else None
    fields.ignore("sliding_window")
    first = fields.get("max_window_layers", default=28)
    n_layers = fields.need("num_hidden_layers")
    return _windows(fields, n_layers, window, lambda layer: window is not None and layer >= first)


def olmo2(fields: Fields) -> tuple[ModelConfig, Layout]:
    """OLMo 2 (OLMo et al. 2024): norms after each part; QK norms over all heads."""
    eps = fields.get("rms_norm_eps", default=1e-5)
    config = _config("olmo2", fields, qk_norm="all", norm_eps=eps)
    biased = _bias(fields, "attention_bias", _QKVO)
    return config, _layout(_LINEAR, _POST, _QK_NORMS, biased=biased)


def phi3(fields: Fields) -> tuple[ModelConfig, Layout]:
    """Phi-3, 3.5 and 4 (Abdin et al. 2024): one matrix for q, k, v and one for gate and input."""
    fields.only("attention_bias", False)
    fields.only("mlp_bias", False)
    window = fields.nullable("sliding_window", None)
    n_layers = fields.need("num_hidden_layers")
    eps = fields.get("rms_norm_eps", default=1e-5)
    windows = (window,) * n_layers if window else ()
    fused = {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"}
    rest = {"o": _LINEAR["o"], "out": _LINEAR["out"]}
    return _config("phi3", fields, windows=windows, norm_eps=eps), _layout(fused, rest, _PRE)


def smollm3(fields: Fields) -> tuple[ModelConfig, Layout]:
    """SmolLM3 (Bakouche et al. 2025): every fourth layer has no position embeddings."""
    n_layers = fields.need("num_hidden_layers")
    interval = fields.get("no_rope_layer_interval", default=4)
    usual = [int((layer + 1) % interval != 0) for layer in range(n_layers)]
    rotated = fields.get("no_rope_layers", default=usual)  # 1 where there *is* a rotation
    if len(rotated) != n_layers:
        raise ModelError(f"config.json: no_rope_layers has {len(rotated)} entries, not {n_layers}")
    on = fields.get("use_sliding_window", default=False)
    window = fields.nullable("sliding_window", None) if on else None
    fields.ignore("sliding_window", "max_window_layers")
    windows = _windows(fields, n_layers, window, lambda layer: on and not rotated[layer])
    attention = _bias(fields, "attention_bias", _QKVO)
    mlp = _bias(fields, "mlp_bias", set(_MLP))
    config = _config("smollm3", fields, theta=2e6, windows=windows)
    pairs = zip(config.rotary, rotated, strict=True)
    config = replace(config, rotary=tuple(rotary if on else None for rotary, on in pairs))
    return config, _layout(_LINEAR, _PRE, biased=attention | mlp, tied=True)


def stablelm(fields: Fields) -> tuple[ModelConfig, Layout]:
    """StableLM (Bellagente et al. 2024): LayerNorm and partial rotary embeddings."""
    parallel = fields.get("use_parallel_residual", default=False)
    normed = fields.get("qk_layernorm", default=False)
    eps = fields.get("layer_norm_eps", default=1e-5)
    changes: dict[str, Any] = {"qk_norm": "head", "qk_norm_kind": "layer"} if normed else {}
    config = _config(
        "stablelm", fields, partial=0.25, norm="layer", norm_eps=eps, parallel=parallel, **changes
    )
    norms = {**_PRE, "mlp_norm": _PRE["attn_norm"]} if parallel else _PRE
    each = {f"{part}_norm": f"self_attn.{part}_layernorm.norms.{{}}" for part in "qk"}
    biased = {"attn_norm", "mlp_norm", "final_norm", *_bias(fields, "use_qkv_bias", _QKV)}
    return config, _layout(_LINEAR, norms, each if normed else {}, biased=biased)


def gemma2(fields: Fields) -> tuple[ModelConfig, Layout]:
    """Gemma 2 (Gemma Team 2024): soft-caps, and sliding windows in every other layer."""
    windows = _gemma_windows(fields, every=2)
    caps = {
        "attn_softcap": fields.nullable("attn_logit_softcapping", 50.0),
        "final_softcap": fields.nullable("final_logit_softcapping", 30.0),
    }
    return _gemma("gemma2", fields, _SANDWICH, windows=windows, **caps)


def gemma3(fields: Fields) -> tuple[ModelConfig, Layout]:
    """Gemma 3's text model (Gemma Team 2025): five layers with a sliding window to one without.

    Layers with a window have a rotary base of their own, which is not scaled.
    """
    every = fields.get("sliding_window_pattern", "_sliding_window_pattern", default=6)
    windows = _gemma_windows(fields, every=every)
    n_layers, d_head = fields.need("num_hidden_layers"), fields.get("head_dim", default=256)
    n_ctx = fields.need("max_position_embeddings")
    whole = fields.get("rope_theta", default=1e6)
    local = fields.get("rope_local_base_freq", default=10_000.0)
    group = fields.group("rope_parameters")
    full = group.group("full_attention") if "rope_parameters" in fields.entries else None
    full = full or fields.group("rope_scaling")
    sliding = group.group("sliding_attention")
    group.check_all_read()
    far = rope_of(full, d_head, n_ctx, theta=whole)
    near = rope_of(sliding, d_head, n_ctx, theta=local)
    slides = windows or (None,) * n_layers
    rotary = tuple(near.rotary if window else far.rotary for window in slides)
    caps = {
        "attn_softcap": fields.nullable("attn_logit_softcapping", None),
        "final_softcap": fields.nullable("final_logit_softcapping", None),
    }
    norms = {**_SANDWICH, **_QK_NORMS}
    return _gemma(
        "gemma3_text", fields, norms, windows=windows, rotary=rotary, qk_norm="head", **caps
    )


def _gemma_windows(fields: Fields, *, every: int) -> tuple[int | None, ...]:
    window = fields.nullable("sliding_window", 4096)
    n_layers = fields.need("num_hidden_layers")
    return _windows(fields, n_layers, window, lambda layer: (layer + 1) % every != 0)


def _gemma(
    family: str, fields: Fields, norms: dict[str, str], **changes: Any
) -> tuple[ModelConfig, Layout]:
    fields.only("use_bidirectional_attention", False, None)
    fields.ignore("hidden_act")  # hidden_activation is what counts
    scale = fields.get("query_pre_attn_scalar", default=256.0) ** -0.5
    config = _config(
        family,
        fields,
        d_head=256,
        norm_weight_offset=1.0,
        attn_scale=(scale,) * fields.need("num_hidden_layers"),
        activation=activation(fields, "hidden_activation", default="gelu_pytorch_tanh"),
        embed_scale=float(fields.need("hidden_size")) ** 0.5,
        **changes,
    )
    biased = _bias(fields, "attention_bias", _QKVO)
    return config, _layout(_LINEAR, norms, biased=biased, tied=True)
