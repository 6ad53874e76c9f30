"""How is a transformers model that is already in memory read without a copy?

Its parameters are not copied: the `Model` holds views of them, so it changes with them, for
instance during training. Only the tokenizer is copied, because its settings are changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer as HFTokenizer
from torch import Tensor, nn

from casestudy.errors import ModelError
from casestudy.model.chat_template import named_templates
from casestudy.model.checkpoint_files import listed_ids
from casestudy.model.families import read_config, read_weights
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer


def from_module(module: nn.Module, tokenizer: Any) -> Model:
    """A causal language model of transformers as a `Model`, where it is and as it is.

    Args:
        module: with a `config` and the parameters of one of the supported families.
        tokenizer: ours, one of the `tokenizers` package, or a fast one of transformers.

    Raises: ModelError where the architecture is not supported, or parts lie on several devices.
    """
    if not hasattr(getattr(module, "config", None), "to_dict"):
        raise ModelError(
            f"a {type(module).__name__} without a config", allowed="a model of transformers"
        )
    entries: dict[str, Any] = module.config.to_dict()  # type: ignore[operator, union-attr]
    tensors = module.state_dict()
    config, layout = read_config(_unpacked(entries, tensors))
    devices = {str(tensor.device) for tensor in tensors.values()}
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(devices) > 1 or "meta" in devices or len(dtypes) > 1:
        found = ", ".join(sorted(devices | {str(dtype) for dtype in dtypes}))
        raise ModelError(
            f"the model's parameters are spread over {found}",
            allowed="one device and one number format",
        )
    weights = read_weights(config, layout, tensors)
    read_from = (entries.get("quantization_config") or {}).get("gguf_file")
    name = str(read_from or entries.get("_name_or_path") or type(module).__name__)
    generation = getattr(module, "generation_config", None)
    chosen = entries if generation is None else generation.to_dict()
    ends = listed_ids(chosen, "eos_token_id")
    ours = _tokenizer(tokenizer, config.prepend_bos, config.n_ctx, ends)
    ours = ours.fitted(config.d_vocab, "the tokenizer that came")
    return Model(config, weights, ours, name=name)


def _unpacked(entries: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of a model that may have been read from a GGUF file.

    transformers says so in `quantization_config`, also where it has turned every block into
    numbers, which is then a model like any other.

    Raises: ModelError where the blocks are still packed.
    """
    quantised = entries.get("quantization_config")
    if not isinstance(quantised, Mapping) or quantised.get("quant_method") != "gguf":
        return entries
    if any(tensor.dtype == torch.uint8 for tensor in tensors.values()):
        raise ModelError(
            "the model's weights are packed GGUF blocks",
            hint="Load it with quantization_config=GgufConfig(dequantize=True), or give the file "
            "itself: casestudy.load('model.gguf')",
        )
    return {key: value for key, value in entries.items() if key != "quantization_config"}


def _tokenizer(
    tokenizer: Any, prepend_bos: bool | None, n_ctx: int, ends: tuple[int, ...]
) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, HFTokenizer):
        raise ModelError(
            f"a tokenizer of type {type(tokenizer).__name__}",
            allowed="casestudy's, one of the tokenizers package, or a fast one of transformers",
        )
    return Tokenizer.of(
        HFTokenizer.from_str(backend.to_str()),
        bos_id=getattr(tokenizer, "bos_token_id", None),
        eos_id=getattr(tokenizer, "eos_token_id", None),
        family_prepends=prepend_bos,
        declared=getattr(tokenizer, "add_bos_token", None),
        n_ctx=n_ctx,
        templates=named_templates(getattr(tokenizer, "chat_template", None)),
        end_ids=ends,
    )
