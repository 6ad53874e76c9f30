"""Vocabularies in which a text is no token's name: several ids share it, or its place decides."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers

from casestudy.model.token_labels import _BYTE_OF
from casestudy.model.tokens import Tokenizer

PARTS = ["ð", "ðŁ", "ðŁĺ", "Ġð", "ï", "ï¿", "é"]
"""Parts of characters: F0, F0 9F, F0 9F 98, a space and F0, EF, EF BF, E9."""
REPLACEMENT = "ï¿½"
"""U+FFFD itself, a whole character."""
WORDS = ["ĠHe", "Ġhe", "He", "he", "ld", "Ġw", "or", "ĠIt", "Ġit", "It"]


def byte_level() -> HFTokenizer:
    """A byte-level vocabulary with parts of characters, and a token for U+FFFD of its own.

    Few of its longer tokens come out of a text: most have no merges that lead to them.
    """
    pieces = dict.fromkeys([*_BYTE_OF, *PARTS, REPLACEMENT, *WORDS])
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges = [("Ġ", "H"), ("ĠH", "e"), ("l", "d"), ("o", "r"), ("ï", "¿"), ("ï¿", "½")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = HFTokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    return tokenizer


def tokenizer_of(
    make: Callable[[], HFTokenizer], *, bos: str = "<|endoftext|>", eos: str = "<|endoftext|>"
) -> Tokenizer:
    """A tokenizer in memory, as a checkpoint's would be read."""
    backend = make()
    return Tokenizer.of(
        HFTokenizer.from_str(backend.to_str()),
        bos_id=backend.token_to_id(bos),
        eos_id=backend.token_to_id(eos),
        family_prepends=None,
        declared=False,
        n_ctx=64,
    )
