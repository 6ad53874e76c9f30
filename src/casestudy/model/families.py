"""How does each family of checkpoints write down its shape and its parameters?

One `Family` per architecture: a function from config.json to `ModelConfig`, and one from the
checkpoint's tensors to `Weights`. Every key of the configuration is either read or known not to
matter, and every tensor is either used or known to be derived: what is left over is an error, since
a key nobody read may be a different forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.config import Activation, ModelConfig
from casestudy.model.weights import MLP, Attention, Block, Norm, Weights

T = TypeVar("T")

# Keys that say nothing about the forward pass: bookkeeping, training, generation, other heads.
_HARMLESS = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version"),
    *("_name_or_path", "_commit_hash", "_attn_implementation_autoset", "name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
    *("use_cache", "initializer_range", "gradient_checkpointing", "task_specific_params"),
    *("output_attentions", "output_hidden_states", "return_dict", "is_decoder"),
    *(
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "_num_labels",
        "problem_type",
        "finetuning_task",
    ),
    *("chunk_size_feed_forward", "prefix", "tokenizer_class", "cross_attention_hidden_size"),
    *("tie_encoder_decoder", "pruned_heads", "torchscript", "use_bfloat16", "tf_legacy_loss"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "temperature"),
    *("top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences"),
    *("num_beam_groups", "output_scores", "return_dict_in_generate", "output_past"),
    *("num_labels", "_num_labels"),
}


class Fields:
    """A config.json being read: remembers which keys were asked for."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries = entries
        self.read: set[str] = set(_HARMLESS)

    def get(self, *names: str, default: T) -> T:
        """The first of these keys that is there and not null, else the default."""
        self.read.update(names)
        for name in names:
            if self.entries.get(name) is not None:
                value = self.entries[name]
                if isinstance(default, float) and isinstance(value, int):
                    value = float(value)
                if default is not None and type(value) is not type(default):
                    raise ModelError(
                        f"config.json: {name} is {value!r}",
                        allowed=type(default).__name__,
                    )
                return value  # type: ignore[no-any-return]
        return default

    def need(self, *names: str) -> int:
        """A count that has to be there.

        Raises: ModelError naming the key.
        """
        value = self.get(*names, default=-1)
        if value <= 0:
            came = f"{names[0]} is {value}" if names[0] in self.entries else f"no {names[0]}"
            raise ModelError(f"config.json has {came}", allowed="a positive whole number")
        return value

    def only(self, name: str, *allowed: object) -> None:
        """A key whose other values would be a forward pass casestudy does not have.

        Raises: ModelError when it is there with such a value.
        """
        self.read.add(name)
        if name in self.entries and self.entries[name] not in allowed:
            raise ModelError(
                f"config.json asks for {name} = {self.entries[name]!r}",
                allowed=" or ".join(map(repr, allowed)),
            )

    def ignore(self, *names: str) -> None:
        """Keys of this family that do not touch inference."""
        self.read.update(names)

    def check_all_read(self) -> None:
        """Raises: ModelError naming keys that nobody asked for."""
        unknown = sorted(set(self.entries) - self.read)
        if unknown:
            raise ModelError(
                f"config.json has keys casestudy does not know: {', '.join(unknown)}",
                hint="If they do not change the forward pass, remove them from a local copy",
            )


class Tensors:
    """A checkpoint's tensors being read: remembers which were taken."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self.tensors = tensors
        self.prefix = prefix
        self.taken: set[str] = set()

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor that has to be there, of this shape.

        Raises: ModelError naming the tensor and both shapes.
        """
        tensor = self.maybe(name, *shape)
        if tensor is None:
            raise ModelError(
                f"the checkpoint has no tensor {self.prefix}{name}",
                hint="Is it a whole checkpoint, and does its config.json belong to it?",
            )
        return tensor

    def maybe(self, name: str, *shape: int) -> Tensor | None:
        """A tensor that may be absent."""
        full = self.prefix + name
        if full not in self.tensors:
            return None
        tensor = self.tensors[full]
        self.taken.add(full)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"tensor {full} has shape {tuple(tensor.shape)}",
                allowed=f"{shape}, as config.json says",
            )
        return tensor

    def norm(self, name: str, d: int, *, bias: bool) -> Norm:
        """`name`.weight and, where the family has one, `name`.bias."""
        return Norm(self(f"{name}.weight", d), self(f"{name}.bias", d) if bias else None)

    def check_all_taken(self, derived: str) -> None:
        """Raises: ModelError naming tensors that nobody took.

        Args:
            derived: pattern of names that hold nothing learned (masks, rotary tables).
        """
        left = [n for n in self.tensors if n not in self.taken and not re.fullmatch(derived, n)]
        if left:
            shown = ", ".join(sorted(left)[:5]) + (", …" if len(left) > 5 else "")
            raise ModelError(f"the checkpoint has {len(left)} tensors without a place: {shown}")


@dataclass(frozen=True)
class Family:
    """How one architecture is read.

    Attributes:
        name: what `casestudy models` calls it.
        config: from config.json.
        weights: from the checkpoint's tensors, by name.
        examples: hub ids people know it by.
    """

    name: str
    config: Callable[[Fields], ModelConfig]
    weights: Callable[[ModelConfig, Mapping[str, Tensor]], Weights]
    examples: tuple[str, ...]


_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(fields: Fields, *names: str, default: str) -> Activation:
    """The MLP's nonlinearity.

    Raises: ModelError naming one casestudy does not have.
    """
    name = fields.get(*names, default=default)
    if name not in _ACTIVATIONS:
        raise ModelError(f"config.json: activation {name!r}", allowed=", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def read_config(entries: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and shape a config.json describes.

    Raises: ModelError for an architecture, key or value that is not supported.
    """
    if "auto_map" in entries:
        raise ModelError(
            "config.json asks for code of its own (auto_map)",
            hint="casestudy runs no code that comes with a checkpoint",
        )
    kind = entries.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"model_type {kind!r} in config.json" if kind else "config.json has no model_type",
            allowed=", ".join(FAMILIES),
        )
    family = FAMILIES[kind]
    fields = Fields(entries)
    config = family.config(fields)
    fields.check_all_read()
    return family, config


def unembedding(
    tensors: Mapping[str, Tensor],
    name: str,
    config: ModelConfig,
    W_E: Float[Tensor, "d_vocab d_model"],
) -> Float[Tensor, "d_model d_vocab"]:
    """W_U: the embedding's transpose where the two are tied, else the transpose of `name`.

    Raises: ModelError where the configuration ties them and the checkpoint holds two.
    """
    take = Tensors(tensors)
    if not config.tied_unembedding:
        return take(name, *W_E.shape).T
    own = take.maybe(name, *W_E.shape)
    if own is not None and not torch.equal(own, W_E):
        raise ModelError(
            f"config.json ties the unembedding to the embedding, but {name} differs from it",
            hint="If the checkpoint is right, set tie_word_embeddings to false in a local copy",
        )
    return W_E.T


def _gpt2_config(fields: Fields) -> ModelConfig:
    d_model, n_heads = fields.need("n_embd"), fields.need("n_head")
    n_layers = fields.need("n_layer")
    if d_model % n_heads:
        raise ModelError(f"config.json: n_embd {d_model} is not a multiple of n_head {n_heads}")
    fields.only("add_cross_attention", False)
    fields.ignore("reorder_and_upcast_attn")  # the same numbers, rounded otherwise
    fields.ignore("n_special", "predict_special_tokens")  # read by no released code
    fields.ignore("embd_pdrop", "attn_pdrop", "resid_pdrop", "n_ctx", "n_positions")
    fields.ignore(*(f"summary_{k}" for k in ("type", "use_proj", "activation")))
    fields.ignore("summary_proj_to_labels", "summary_first_dropout")
    d_head = d_model // n_heads
    scale = d_head**-0.5 if fields.get("scale_attn_weights", default=True) else 1.0
    by_layer = fields.get("scale_attn_by_inverse_layer_idx", default=False)
    return ModelConfig(
        family="gpt2",
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_mlp=fields.get("n_inner", default=4 * d_model),
        d_vocab=fields.need("vocab_size"),
        n_ctx=fields.need("n_positions", "n_ctx"),
        attn_scale=tuple(scale / (layer + 1 if by_layer else 1) for layer in range(n_layers)),
        norm_eps=fields.get("layer_norm_epsilon", default=1e-5),
        activation=activation(fields, "activation_function", default="gelu_new"),
        tied_unembedding=fields.get("tie_word_embeddings", default=True),
    )


def _gpt2_weights(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Weights:
    prefix = "transformer." if "transformer.wte.weight" in tensors else ""
    take = Tensors(tensors, prefix)
    d, heads, d_head = config.d_model, config.n_heads, config.d_head

    def blocks() -> Iterator[Block]:
        for layer in range(config.n_layers):
            h = f"h.{layer}"
            # Conv1D stores (in, out); the three thirds of `out` are queries, keys and values
            qkv = take(f"{h}.attn.c_attn.weight", d, 3 * d).view(d, 3, heads, d_head)
            W_Q, W_K, W_V = qkv.permute(1, 2, 0, 3)
            b_Q, b_K, b_V = take(f"{h}.attn.c_attn.bias", 3 * d).view(3, heads, d_head)
            yield Block(
                attn_norm=take.norm(f"{h}.ln_1", d, bias=True),
                attn=Attention(
                    W_Q=W_Q,
                    W_K=W_K,
                    W_V=W_V,
                    W_O=take(f"{h}.attn.c_proj.weight", d, d).view(heads, d_head, d),
                    b_Q=b_Q,
                    b_K=b_K,
                    b_V=b_V,
                    b_O=take(f"{h}.attn.c_proj.bias", d),
                ),
                mlp_norm=take.norm(f"{h}.ln_2", d, bias=True),
                mlp=MLP(
                    W_in=take(f"{h}.mlp.c_fc.weight", d, config.d_mlp),
                    b_in=take(f"{h}.mlp.c_fc.bias", config.d_mlp),
                    W_out=take(f"{h}.mlp.c_proj.weight", config.d_mlp, d),
                    b_out=take(f"{h}.mlp.c_proj.bias", d),
                ),
            )

    W_E = take("wte.weight", config.d_vocab, d)
    W_U = unembedding(tensors, "lm_head.weight", config, W_E)
    weights = Weights(
        W_E=W_E,
        W_pos=take("wpe.weight", config.n_ctx, d),
        blocks=tuple(blocks()),
        final_norm=take.norm("ln_f", d, bias=True),
        W_U=W_U,
    )
    take.check_all_taken(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|lm_head\.weight")
    return weights


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT-2",
        _gpt2_config,
        _gpt2_weights,
        ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"),
    ),
}
