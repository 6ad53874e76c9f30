"""The supported architectures: how each reads its config.json and its checkpoint.

A `ModelFamily` has a function from config.json to `ModelConfig` and to a `Layout`, the table of the
checkpoint's parameter names. Every key of config.json must be read or known not to affect the
forward pass, and every tensor must be used or known to be derived. Anything else is an error: an
unread key may mean another forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from casestudy.errors import ModelError
from casestudy.model.config import ModelConfig
from casestudy.model.families import gpt, llama
from casestudy.model.families.layout import Layout, read_weights
from casestudy.model.families.reading import Fields

__all__ = ["FAMILIES", "Family", "read_config", "read_weights"]


@dataclass(frozen=True)
class ModelFamily:
    """One supported architecture.

    Attributes:
        name: its name in `casestudy models`.
        read: returns its configuration and its table of parameters, from config.json.
        examples: hub ids of well-known checkpoints.
    """

    name: str
    read: Callable[[Fields], tuple[ModelConfig, Layout]]
    examples: tuple[str, ...]


FAMILIES: dict[str, ModelFamily] = {
    "gpt2": ModelFamily(
        "GPT-2", gpt.gpt2, ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
    ),
    "gpt_neo": ModelFamily("GPT-Neo", gpt.gpt_neo, ("EleutherAI/gpt-neo-125m",)),
    "gptj": ModelFamily("GPT-J", gpt.gptj, ("EleutherAI/gpt-j-6b",)),
    "gpt_neox": ModelFamily("GPT-NeoX", gpt.gpt_neox, ("EleutherAI/pythia-70m",)),
    "opt": ModelFamily("OPT", gpt.opt, ("facebook/opt-125m",)),
    "llama": ModelFamily(
        "Llama", llama.llama, ("meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M")
    ),
    "mistral": ModelFamily("Mistral", llama.mistral, ("mistralai/Mistral-7B-v0.1",)),
    "qwen2": ModelFamily("Qwen2", llama.qwen2, ("Qwen/Qwen2.5-0.5B",)),
    "qwen3": ModelFamily("Qwen3", llama.qwen3, ("Qwen/Qwen3-0.6B",)),
    "olmo2": ModelFamily("OLMo 2", llama.olmo2, ("allenai/OLMo-2-0425-1B",)),
    "gemma2": ModelFamily("Gemma 2", llama.gemma2, ("google/gemma-2-2b",)),
    "gemma3_text": ModelFamily("Gemma 3", llama.gemma3, ("google/gemma-3-1b-pt",)),
    "phi3": ModelFamily("Phi-3", llama.phi3, ("microsoft/Phi-3-mini-4k-instruct",)),
    "smollm3": ModelFamily("SmolLM3", llama.smollm3, ("HuggingFaceTB/SmolLM3-3B",)),
    "stablelm": ModelFamily("StableLM", llama.stablelm, ("stabilityai/stablelm-2-1_6b",)),
}


def read_config(entries: Mapping[str, Any]) -> tuple[ModelConfig, Layout]:
    """The configuration in a config.json, and the table of the checkpoint's parameter names.

    Raises: ModelError for an architecture, key or value that is not supported.
    """
    if "auto_map" in entries:
        raise ModelError(
            "config.json asks for code from the checkpoint (auto_map)",
            hint="casestudy runs no code that comes with a checkpoint. Where the checkpoint also "
            "follows a published architecture, remove auto_map from a local copy",
        )
    kind = entries.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"model_type {kind!r} in config.json" if kind else "config.json has no model_type",
            allowed=", ".join(FAMILIES),
        )
    fields = Fields(entries)
    config, layout = FAMILIES[kind].read(fields)
    tied = fields.get("tie_word_embeddings", default=layout.tied)
    fields.check_all_read()
    return config, replace(layout, tied=tied)
