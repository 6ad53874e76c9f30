"""The names of TransformerLens (up to 3.9.0), for notebooks that use `HookedTransformer`.

    from casestudy.compat.transformer_lens import HookedTransformer, patching, utils

docs/coming-from-transformerlens.md lists the names, and those of casestudy.
"""

from __future__ import annotations

from typing import Any

from casestudy.compat.transformer_lens import hook_points, patching, utils
from casestudy.compat.transformer_lens.activation_cache import ActivationCache
from casestudy.compat.transformer_lens.config import HookedTransformerConfig
from casestudy.compat.transformer_lens.errors import NotSupported, NotSupportedImport, refuse_import
from casestudy.compat.transformer_lens.factored_matrix import FactoredMatrix
from casestudy.compat.transformer_lens.hook_points import HookPoint
from casestudy.compat.transformer_lens.hooked_transformer import HookedTransformer

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedTransformer",
    "HookedTransformerConfig",
    "NotSupported",
    "NotSupportedImport",
    "hook_points",
    "patching",
    "utils",
]

_REASONS = {
    "EasyTransformer": "Use HookedTransformer",
    "HookedEncoder": "casestudy reads decoders",
    "HookedEncoderDecoder": "casestudy reads decoders",
    "HookedRootModule": "Models are casestudy's own: load one, and hook that",
    "HookedTransformerKeyValueCache": "Run the whole prompt; generate() does so by itself",
    "SVDInterpreter": "FactoredMatrix.svd() has the singular vectors",
    "TransformerBridge": "Use HookedTransformer.from_pretrained",
    "components": "model.blocks[l].attn and so on hold the weights",
    "evals": "Prompts of your own go to to_tokens",
    "head_detector": "Compare patterns: cache['pattern', l]",
    "loading": "HookedTransformer.from_pretrained loads",
    "loading_from_pretrained": "HookedTransformer.from_pretrained loads",
    "train": "Nothing is trained here",
    "utilities": "Use utils",
}


def __getattr__(name: str) -> Any:
    if name in _REASONS:
        raise refuse_import("transformer_lens", name, _REASONS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
