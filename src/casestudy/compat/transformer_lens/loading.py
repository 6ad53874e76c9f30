"""How is the model of a notebook loaded?

By TransformerLens's short names, hub ids, a directory or "tiny", with the weights rewritten as
`from_pretrained` is asked.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import replace
from typing import Any

import torch

from casestudy.compat.transformer_lens.errors import refuse
from casestudy.errors import ModelError, RewriteError, SiteError
from casestudy.model.folding import rewrite
from casestudy.model.loading import DTYPES, available, load
from casestudy.model.model import Model

# TransformerLens's own short names for models on the hub.
_ALIASES = {
    "gpt2-small": "gpt2",
    "distillgpt2": "distilgpt2",
    "distill-gpt2": "distilgpt2",
    "distil-gpt2": "distilgpt2",
    "gpt-neo-125M": "EleutherAI/gpt-neo-125M",
    "gpt-j-6B": "EleutherAI/gpt-j-6B",
    **{
        f"pythia-{size}": f"EleutherAI/pythia-{size}"
        for size in ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
    },
    **{f"opt-{size}": f"facebook/opt-{size}" for size in ("125m", "1.3b", "2.7b", "6.7b")},
}

_ARGUMENTS = {
    "checkpoint_index": "Load the checkpoint by its revision: 'EleutherAI/pythia-70m@step1000'",
    "checkpoint_value": "Load the checkpoint by its revision: 'EleutherAI/pythia-70m@step1000'",
    "n_ctx": "It is the checkpoint's own",
    "n_devices": "A model is on one device",
    "move_to_device": "Say device='cpu'",
}

_TOKENIZER = "It is read from the model's folder, tokenizer.json"
_log = logging.getLogger(__name__)


def check_arguments(**given: Any) -> None:
    """Raises: NotSupported for an argument of `from_pretrained` that is not None."""
    for name, value in given.items():
        if value is not None:
            raise refuse(f"from_pretrained({name}=...)", _ARGUMENTS.get(name, ""))


def load_by_name(
    name: str,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    hf_model: Any = None,
    tokenizer: Any = None,
) -> Model:
    """A model by any of its names, or one of transformers that is in memory.

    Raises: ModelError with the most similar known names.
    """
    kind = str(dtype).removeprefix("torch.")
    if hf_model is not None:
        if kind not in DTYPES:
            raise ModelError(f"dtype {dtype!r}", allowed=", ".join(DTYPES))
        taken = load(hf_model, tokenizer).to(device, DTYPES[kind])
        return replace(taken, name=name)
    if tokenizer is not None:
        raise refuse("from_pretrained(tokenizer=...) without hf_model=", _TOKENIZER)
    place = "auto" if device is None else str(device)
    try:
        return load(_ALIASES.get(name, name), device=place, dtype=kind)
    except ModelError as error:
        known = sorted({*_ALIASES, *(row[0] for row in available())})
        close = difflib.get_close_matches(name, known, n=3)
        if name in known or not close:
            raise
        raise ModelError(
            error.came,
            allowed=error.allowed,
            hint=f"The nearest known names are {', '.join(close)}. {error.hint or ''}".strip(),
        ) from error


def rewritten(model: Model, wanted: dict[str, bool]) -> Model:
    """The model with its weights rewritten; see `casestudy.model.folding`.

    A rewrite that the architecture does not allow is skipped, as in TransformerLens, with a warning
    in the log.
    """
    for name, asked in wanted.items():
        if asked:
            try:
                model = rewrite(model, name)
            except RewriteError as error:
                _log.warning("%s left out: %s", name, error)
    return model


def some_layers(model: Model, first: int, end: int) -> Model:
    """A model of some of the layers, with the same embeddings and unembedding."""
    if not 0 <= first <= end <= model.config.n_layers:
        raise SiteError(
            f"layers {first} to {end}", allowed=f"layers from 0 to {model.config.n_layers}, rising"
        )
    config, part = model.config, slice(first, end)
    config = replace(
        config,
        n_layers=end - first,
        attn_scale=config.attn_scale[part],
        rotary=config.rotary[part],
        windows=config.windows[part],
    )
    return replace(
        model, config=config, weights=replace(model.weights, blocks=model.weights.blocks[part])
    )
