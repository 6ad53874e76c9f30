"""Is every key of a configuration read, and every tensor of a checkpoint used?

A config.json and a checkpoint's tensors, each remembering what was asked of it. What is left over
is an error, since a key nobody read may be a different forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.config import Activation

T = TypeVar("T")

# Keys that say nothing about the forward pass, by the reason why.
_HARMLESS = {
    # which code wrote or would read the file, and under which name
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version"),
    *("_name_or_path", "_model_name_or_path", "name_or_path", "_commit_hash"),
    *("transformers.js_config", "is_llama_config", "unsloth_fixed", "unsloth_version"),
    # how fast the same attention is computed, and what a run hands back
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
    *("attn_implementation", "_flash_attn_2_enabled", "cache_implementation", "use_cache"),
    *("output_attentions", "output_hidden_states", "return_dict", "output_past", "torchscript"),
    # tokens and the tokenizer, which brings its own files
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
    *("cls_token_id", "mask_token_id", "decoder_start_token_id", "tokenizer_class", "prefix"),
    # training: initial values, memory, dropout
    *("initializer_range", "init_std", "gradient_checkpointing", "use_bfloat16", "tf_legacy_loss"),
    *("attention_dropout", "hidden_dropout", "classifier_dropout", "dropout", "layerdrop"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "resid_dropout", "embed_dropout"),
    *("activation_dropout", "chunk_size_feed_forward", "pretraining_tp"),
    # heads for other tasks, and encoders
    *("task_specific_params", "is_decoder", "is_encoder_decoder", "cross_attention_hidden_size"),
    *("tie_encoder_decoder", "id2label", "label2id", "_num_labels", "num_labels", "problem_type"),
    *("finetuning_task", "pruned_heads", "summary_type", "summary_use_proj", "summary_activation"),
    *("summary_proj_to_labels", "summary_first_dropout"),
    # generation: which token is drawn from the logits
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "temperature"),
    *("top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences"),
    *("num_beam_groups", "output_scores", "return_dict_in_generate"),
}


class Fields:
    """A config.json being read: remembers which keys were asked for.

    Args:
        entries: the keys and values.
        where: what an error calls them.
    """

    def __init__(self, entries: Mapping[str, Any], where: str = "config.json") -> None:
        self.entries = entries
        self.where = where
        self.read: set[str] = set(_HARMLESS)

    def get(self, *names: str, default: T) -> T:
        """The first of these keys that is there and not null, else the default.

        Raises: ModelError for a value of another type than the default's.
        """
        self.read.update(names)
        for name in names:
            if self.entries.get(name) is not None:
                value = self.entries[name]
                if isinstance(default, float) and type(value) is int:
                    value = float(value)
                if default is not None and type(value) is not type(default):
                    raise ModelError(
                        f"{self.where}: {name} is {value!r}", allowed=type(default).__name__
                    )
                return value  # type: ignore[no-any-return]
        return default

    def nullable(self, name: str, default: T | None) -> T | None:
        """A key for which null is a value of its own, not the same as absence."""
        self.read.add(name)
        if name in self.entries and self.entries[name] is None:
            return None
        return self.get(name, default=default)

    def group(self, *names: str) -> Fields:
        """A nested object, read like the whole; empty where it is absent."""
        empty: dict[str, Any] = {}
        return Fields(self.get(*names, default=empty), f"{self.where}: {names[0]}")

    def need(self, *names: str) -> int:
        """A count that has to be there.

        Raises: ModelError naming the key.
        """
        value = self.get(*names, default=-1)
        if value <= 0:
            came = f"{names[0]} is {value}" if names[0] in self.entries else f"no {names[0]}"
            raise ModelError(f"{self.where} has {came}", allowed="a positive whole number")
        return value

    def only(self, name: str, *allowed: object) -> None:
        """A key whose other values would be a forward pass casestudy does not have.

        Raises: ModelError when it is there with such a value.
        """
        self.read.add(name)
        if name in self.entries and self.entries[name] not in allowed:
            raise ModelError(
                f"{self.where} asks for {name} = {self.entries[name]!r}",
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
                f"{self.where} has keys casestudy does not know: {', '.join(unknown)}",
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

    def check_all_taken(self, derived: Callable[[str], bool]) -> None:
        """Raises: ModelError naming tensors that nobody took.

        Args:
            derived: whether a name's tensor holds nothing learned (masks, rotary tables).
        """
        left = [name for name in self.tensors if name not in self.taken and not derived(name)]
        if left:
            shown = ", ".join(sorted(left)[:5]) + (", …" if len(left) > 5 else "")
            raise ModelError(f"the checkpoint has {len(left)} tensors without a place: {shown}")


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
