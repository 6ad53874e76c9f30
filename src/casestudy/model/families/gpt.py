"""GPT-2 and architectures like it: GPT-Neo, GPT-J, GPT-NeoX, OPT.

All use LayerNorm with biases and an MLP without a gate. They differ in position embeddings,
attention windows, parallel blocks, and in how matrices are stored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from casestudy.errors import ModelError
from casestudy.model.config import ModelConfig, Rotary
from casestudy.model.families.layout import Layout
from casestudy.model.families.reading import Fields, activation
from casestudy.model.families.rope import read_rope

_NORMS = {"attn_norm", "mlp_norm", "final_norm"}
_MLP = {"in", "out"}

_GPT2 = Layout(
    prefixes=("transformer.",),
    embed="wte",
    positions="wpe",
    final_norm="ln_f",
    block="h.{}.",
    parts={
        "qkv": "attn.c_attn",
        "o": "attn.c_proj",
        "in": "mlp.c_fc",
        "out": "mlp.c_proj",
        "attn_norm": "ln_1",
        "mlp_norm": "ln_2",
    },
    biased=frozenset({"qkv", "o", *_MLP, *_NORMS}),
    tied=True,
    transposed=True,
    derived=r"h\.\d+\.attn\.(masked_)?bias",
)
_GPT_NEO = replace(
    _GPT2,
    parts={
        **{part: f"attn.attention.{part}_proj" for part in "qkv"},
        "o": "attn.attention.out_proj",
        **{part: _GPT2.parts[part] for part in ("in", "out", "attn_norm", "mlp_norm")},
    },
    biased=frozenset({"o", *_MLP, *_NORMS}),
    transposed=False,
    derived=r"h\.\d+\.attn\.attention\.(masked_)?bias",
)
_GPTJ = replace(
    _GPT2,
    positions=None,
    parts={
        **{part: f"attn.{part}_proj" for part in "qkv"},
        "o": "attn.out_proj",
        "in": "mlp.fc_in",
        "out": "mlp.fc_out",
        "attn_norm": "ln_1",
        "mlp_norm": "ln_1",
    },
    biased=frozenset({*_MLP, *_NORMS, "unembed"}),
    tied=False,
    transposed=False,
    derived=r"h\.\d+\.attn\.((masked_)?bias|embed_positions)",
)
_NEOX = Layout(
    prefixes=("gpt_neox.",),
    embed="embed_in",
    final_norm="final_layer_norm",
    unembed=("embed_out", "lm_head"),
    block="layers.{}.",
    parts={
        "qkv": "attention.query_key_value",
        "o": "attention.dense",
        "in": "mlp.dense_h_to_4h",
        "out": "mlp.dense_4h_to_h",
        "attn_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    },
    qkv_by_head=True,
    derived=r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq",
)
_OPT = Layout(
    prefixes=("model.decoder.", "decoder."),
    tied=True,
    embed="embed_tokens",
    positions="embed_positions",
    final_norm="final_layer_norm",
    block="layers.{}.",
    parts={
        **{part: f"self_attn.{part}_proj" for part in "qkv"},
        "o": "self_attn.out_proj",
        "in": "fc1",
        "out": "fc2",
        "attn_norm": "self_attn_layer_norm",
        "mlp_norm": "final_layer_norm",
    },
)


def gpt2(fields: Fields) -> tuple[ModelConfig, Layout]:
    """GPT-2 (Radford et al. 2019)."""
    shape = _early_shape(fields)
    fields.only("add_cross_attention", False)
    fields.ignore("reorder_and_upcast_attn")  # changes rounding only
    fields.ignore("n_special", "predict_special_tokens")  # read by no released code
    fields.ignore("n_ctx")
    scale = shape["d_head"] ** -0.5 if fields.get("scale_attn_weights", default=True) else 1.0
    by_layer = fields.get("scale_attn_by_inverse_layer_idx", default=False)
    scales = (scale / (layer + 1 if by_layer else 1) for layer in range(shape["n_layers"]))
    return ModelConfig(family="gpt2", **shape, attn_scale=tuple(scales)), _GPT2


def gptj(fields: Fields) -> tuple[ModelConfig, Layout]:
    """GPT-J (Wang and Komatsuzaki 2021): rotary; attention and MLP share one norm."""
    shape = _early_shape(fields)
    fields.only("rotary", True)
    fields.only("scale_attn_weights", True)
    dim = fields.need("rotary_dim")
    frequencies = tuple(10_000.0 ** (-2 * i / dim) for i in range(dim // 2))
    config = ModelConfig(
        family="gptj",
        **shape,
        attn_scale=(shape["d_head"] ** -0.5,) * shape["n_layers"],
        parallel=True,
        rotary=(Rotary(frequencies, interleaved=True),) * shape["n_layers"],
    )
    return config, _GPTJ


def gpt_neo(fields: Fields) -> tuple[ModelConfig, Layout]:
    """GPT-Neo (Black et al. 2021): sliding windows in every other layer, unscaled attention."""
    d_model, n_heads = fields.need("hidden_size"), fields.need("num_heads")
    n_layers = fields.need("num_layers")
    nothing: list[Any] = []
    usual: list[Any] = [[["global", "local"], 12]]
    types = fields.get("attention_types", default=usual)
    kinds = [kind for group, times in types for _ in range(times) for kind in group]
    kinds = fields.get("attention_layers", default=nothing) or kinds
    if len(kinds) != n_layers or set(kinds) - {"global", "local"}:
        raise ModelError(
            f"config.json: attention_layers names {len(kinds)} layers as {sorted(set(kinds))}",
            allowed=f"{n_layers} times global or local",
        )
    window = fields.get("window_size", default=256)
    config = ModelConfig(
        family="gpt_neo",
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=whole_heads(d_model, n_heads, "hidden_size", "num_heads"),
        d_mlp=fields.get("intermediate_size", default=4 * d_model),
        d_vocab=fields.need("vocab_size"),
        n_ctx=fields.need("max_position_embeddings"),
        attn_scale=(1.0,) * n_layers,
        norm_eps=fields.get("layer_norm_epsilon", default=1e-5),
        activation=activation(fields, "activation_function", default="gelu_new"),
        windows=tuple(window if kind == "local" else None for kind in kinds),
    )
    return config, _GPT_NEO


def gpt_neox(fields: Fields) -> tuple[ModelConfig, Layout]:
    """GPT-NeoX and Pythia (Biderman et al. 2023): partial rotary embeddings, parallel blocks."""
    d_model, n_heads = fields.need("hidden_size"), fields.need("num_attention_heads")
    n_layers = fields.need("num_hidden_layers")
    d_head = whole_heads(d_model, n_heads, "hidden_size", "num_attention_heads")
    rope = read_rope(fields, d_head, fields.need("max_position_embeddings"), partial=0.25)
    attention = {"qkv", "o"} if fields.get("attention_bias", default=True) else set()
    config = ModelConfig(
        family="gpt_neox",
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_mlp=fields.need("intermediate_size"),
        d_vocab=fields.need("vocab_size"),
        n_ctx=rope.n_ctx,
        attn_scale=(d_head**-0.5,) * n_layers,
        norm_eps=fields.get("layer_norm_eps", default=1e-5),
        activation=activation(fields, "hidden_act", default="gelu"),
        parallel=fields.get("use_parallel_residual", default=True),
        rotary=(rope.rotary,) * n_layers,
    )
    return config, replace(_NEOX, biased=frozenset({*attention, *_MLP, *_NORMS}))


def opt(fields: Fields) -> tuple[ModelConfig, Layout]:
    """OPT (Zhang et al. 2022), except opt-350m, which has its norms after each part."""
    d_model, n_heads = fields.need("hidden_size"), fields.need("num_attention_heads")
    n_layers = fields.need("num_hidden_layers")
    fields.only("do_layer_norm_before", True)
    fields.only("_remove_final_layer_norm", False)
    fields.only("layer_norm_elementwise_affine", True)
    fields.only("word_embed_proj_dim", d_model, None)
    d_head = whole_heads(d_model, n_heads, "hidden_size", "num_attention_heads")
    linears = {*"qkvo", *_MLP} if fields.get("enable_bias", default=True) else set()
    config = ModelConfig(
        family="opt",
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_mlp=fields.need("ffn_dim"),
        d_vocab=fields.need("vocab_size"),
        n_ctx=fields.need("max_position_embeddings"),
        attn_scale=(d_head**-0.5,) * n_layers,
        activation=activation(fields, "activation_function", default="relu"),
        position_offset=2,
        prepend_bos=None,
    )
    return config, replace(_OPT, biased=frozenset({*linears, *_NORMS}))


def whole_heads(d_model: int, n_heads: int, width: str, count: str) -> int:
    """d_head = d_model / n_heads.

    Raises: ModelError if that is not a whole number.
    """
    if d_model % n_heads:
        raise ModelError(f"config.json: {width} {d_model} is not a multiple of {count} {n_heads}")
    return d_model // n_heads


def _early_shape(fields: Fields) -> dict[str, Any]:
    """The entries that GPT-2 and GPT-J name alike."""
    d_model, n_heads = fields.need("n_embd"), fields.need("n_head")
    return {
        "n_layers": fields.need("n_layer"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_head": whole_heads(d_model, n_heads, "n_embd", "n_head"),
        "d_mlp": fields.get("n_inner", default=4 * d_model),
        "d_vocab": fields.need("vocab_size"),
        "n_ctx": fields.need("n_positions", "n_ctx"),
        "norm_eps": fields.get("layer_norm_epsilon", default=1e-5),
        "activation": activation(fields, "activation_function", default="gelu_new"),
    }
