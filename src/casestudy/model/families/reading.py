"""Readers of config.json and of a checkpoint's tensors that record what was read.

`Fields` records the keys that were read, `Tensors` the tensors that were used. Whatever is left at
the end is an error: an unread key may mean another forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.config import Activation

T = TypeVar("T")

# Keys that do not affect the forward pass, grouped by the reason.
_HARMLESS = {
    # the program that wrote the file, and names
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version"),
    *("_name_or_path", "_model_name_or_path", "name_or_path", "_commit_hash"),
    *("transformers.js_config", "is_llama_config", "unsloth_fixed", "unsloth_version"),
    # the implementation of the same attention, and what a run returns
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
    *("attn_implementation", "_flash_attn_2_enabled", "cache_implementation", "use_cache"),
    *("output_attentions", "output_hidden_states", "return_dict", "output_past", "torchscript"),
    # the tokenizer, which has files of its own
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
    # generation: how a token is sampled from the logits
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "temperature"),
    *("top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences"),
    *("num_beam_groups", "output_scores", "return_dict_in_generate"),
}


class Fields:
    """A config.json and the keys of it that were read.

    Args:
        entries: the keys and values.
        where: the name of the file in error messages.
    """

    def __init__(self, entries: Mapping[str, Any], where: str = "config.json") -> None:
        self.entries = entries
        self.where = where
        self.read: set[str] = set(_HARMLESS)

    def get(self, *names: str, default: T) -> T:
        """The value of the first of these keys that exists and is not null, else the default.

        Raises: ModelError if the value's type is not the default's.
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
        """The value of a key for which null has a meaning: None if null, the default if absent."""
        self.read.add(name)
        if name in self.entries and self.entries[name] is None:
            return None
        return self.get(name, default=default)

    def group(self, *names: str) -> Fields:
        """A nested object as `Fields`; empty if it is absent."""
        empty: dict[str, Any] = {}
        return Fields(self.get(*names, default=empty), f"{self.where}: {names[0]}")

    def need(self, *names: str) -> int:
        """A required positive integer.

        Raises: ModelError naming the key.
        """
        value = self.get(*names, default=-1)
        if value <= 0:
            came = f"{names[0]} is {value}" if names[0] in self.entries else f"no {names[0]}"
            raise ModelError(f"{self.where} has {came}", allowed="a positive whole number")
        return value

    def only(self, name: str, *allowed: object) -> None:
        """Read a key of which only these values are supported.

        Raises: ModelError if the key has another value.
        """
        self.read.add(name)
        if name in self.entries and self.entries[name] not in allowed:
            raise ModelError(
                f"{self.where} asks for {name} = {self.entries[name]!r}",
                allowed=" or ".join(map(repr, allowed)),
            )

    def ignore(self, *names: str) -> None:
        """Mark keys as read that do not affect the forward pass."""
        self.read.update(names)

    def check_all_read(self) -> None:
        """Raises: ModelError naming the keys that were not read."""
        unknown = sorted(set(self.entries) - self.read)
        if unknown:
            raise ModelError(
                f"{self.where} has keys casestudy does not know: {', '.join(unknown)}",
                hint="If they do not change the forward pass, remove them from a local copy",
            )


class Tensors:
    """A checkpoint's tensors and which of them were used."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self.tensors = tensors
        self.prefix = prefix
        self.taken: set[str] = set()

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A required tensor of this shape.

        Raises: ModelError naming the tensor and both shapes.
        """
        tensor = self.maybe(name, *shape)
        if tensor is None:
            raise ModelError(
                f"the checkpoint has no tensor {self.prefix}{name}",
                hint="Is the checkpoint complete, and does config.json belong to it?",
            )
        return tensor

    def maybe(self, name: str, *shape: int) -> Tensor | None:
        """An optional tensor of this shape; None if it is absent."""
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
        """Raises: ModelError naming the tensors that were not used.

        Args:
            derived: whether the tensor of a name is not learned (masks, rotary tables).
        """
        left = [name for name in self.tensors if name not in self.taken and not derived(name)]
        if left:
            shown = ", ".join(sorted(left)[:5]) + (", …" if len(left) > 5 else "")
            raise ModelError(f"the checkpoint has unknown tensors ({len(left)}): {shown}")


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
    """The MLP's activation function.

    Raises: ModelError naming one that is not supported.
    """
    name = fields.get(*names, default=default)
    if name not in _ACTIVATIONS:
        raise ModelError(f"config.json: activation {name!r}", allowed=", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]
