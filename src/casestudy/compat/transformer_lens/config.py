"""The fields of `model.cfg`.

The shape of a loaded model under TransformerLens's field names. Two kinds of fields can be set:
which activations are computed by default, and whether prompts start with BOS. All others describe
the weights.
"""

from __future__ import annotations

from typing import Any

from casestudy.compat.transformer_lens.errors import refuse, refuse_name
from casestudy.model.model import Model

FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in")
_REQUESTS = (*FLAGS, "default_prepend_bos")

# What is the same in every model that casestudy reads.
_CONSTANT: dict[str, Any] = {
    "attention_dir": "causal",
    "attn_only": False,
    "final_rms": False,
    "from_checkpoint": False,
    "init_weights": False,
    "n_devices": 1,
    "post_embedding_ln": False,
    "seed": None,
    "tokenizer_prepends_bos": False,
    "ungroup_grouped_query_attention": False,
    "use_attn_scale": True,
    "use_hook_tokens": False,
}


class HookedTransformerConfig:
    """The configuration of a loaded model; users do not construct it."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        raise refuse(
            "HookedTransformerConfig(...)",
            "Toy models are not built here; load one from a folder in Hugging Face layout",
        )

    @classmethod
    def _of(cls, model: Model, name: str, prepend_bos: bool) -> HookedTransformerConfig:
        self = object.__new__(cls)
        fields = {**_CONSTANT, **_described(model, name), **dict.fromkeys(FLAGS, False)}
        object.__setattr__(self, "_fields", {**fields, "default_prepend_bos": prepend_bos})
        return self

    def __getattr__(self, name: str) -> Any:
        fields = object.__getattribute__(self, "__dict__").get("_fields", {})
        if name in fields:
            return fields[name]
        if name.startswith("__"):
            raise AttributeError(name)
        raise refuse_name("cfg", name, fields, {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _REQUESTS:
            raise refuse(
                f"setting cfg.{name}",
                "It describes weights that are what they are",
                allowed=", ".join(_REQUESTS),
            )
        if name == "use_attn_in" and value and self._fields["n_key_value_heads"]:
            raise refuse(
                "use_attn_in of heads that share keys and values", "Set use_split_qkv_input"
            )
        self._fields[name] = bool(value)

    def to_dict(self) -> dict[str, Any]:
        """Every field."""
        return dict(self._fields)

    def __repr__(self) -> str:
        lines = [f"  {name}: {value!r}" for name, value in sorted(self._fields.items())]
        return "\n".join(["HookedTransformerConfig:", *lines])


def _described(model: Model, name: str) -> dict[str, Any]:
    config = model.config
    rotary = next((r for r in config.rotary if r is not None), None)
    grouped = config.n_kv_heads != config.n_heads
    post = any(b.attn_post_norm or b.mlp_post_norm for b in model.weights.blocks)
    return {
        "act_fn": config.activation,
        # TransformerLens divides by it, casestudy multiplies
        "attn_scale": 1.0 / config.attn_scale[0],
        "attn_scores_soft_cap": _cap(config.attn_softcap),
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "d_model": config.d_model,
        "d_vocab": config.d_vocab,
        "d_vocab_out": model.weights.W_U.shape[1],
        "device": str(model.device),
        "dtype": model.dtype,
        "eps": config.norm_eps,
        "gated_mlp": model.weights.gated,
        "model_name": name,
        "n_ctx": config.n_ctx,
        "n_heads": config.n_heads,
        "n_key_value_heads": config.n_kv_heads if grouped else None,
        "n_layers": config.n_layers,
        "n_params": _n_params(model),
        "normalization_type": normalization_type(model),
        "original_architecture": config.family,
        "output_logits_soft_cap": _cap(config.final_softcap),
        "parallel_attn_mlp": config.parallel,
        "positional_embedding_type": "rotary" if rotary else "standard",
        "rotary_adjacent_pairs": bool(rotary and rotary.interleaved),
        "rotary_dim": rotary.dim if rotary else None,
        "scale_attn_by_inverse_layer_idx": len(set(config.attn_scale)) > 1,
        "tie_word_embeddings": model.weights.tied,
        "tokenizer_name": name,
        "use_local_attn": bool(config.windows),
        "use_normalization_before_and_after": post,
        "use_qk_norm": config.qk_norm != "none",
        "uses_rms_norm": config.norm == "rms",
        "window_size": next((w for w in config.windows if w is not None), None),
    }


def _cap(value: float | None) -> float:
    """TransformerLens writes -1.0 for "none"."""
    return -1.0 if value is None else value


def _n_params(model: Model) -> int:
    """As TransformerLens counts them: the matrices of attention and MLP."""
    config = model.config
    attention = 2 * config.d_model * config.d_head * (config.n_heads + config.n_kv_heads)
    mlp = config.d_model * config.d_mlp * (3 if model.weights.gated else 2)
    return config.n_layers * (attention + mlp)


def normalization_type(model: Model) -> str | None:
    """ "LN" and "RMS", or "LNPre" and "RMSPre" once their weights are folded away."""
    if model.weights.final_norm is None:
        return None
    kind = {"layer": "LN", "rms": "RMS"}[model.config.norm]
    return f"{kind}Pre" if "fold_ln" in model.rewrites else kind
