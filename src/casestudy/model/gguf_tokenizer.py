"""Tokenizers from the metadata of GGUF files.

The metadata contain the tokens, their types, merges or scores, the ids of special tokens, and the
name of a pre-tokenizer, the rule that splits text into words. The tokenizer is rebuilt with
`tokenizers`: byte-level BPE ("gpt2"), or sentencepiece's BPE ("llama"), whose merges follow from
the scores. An unknown pre-tokenizer is refused, since it gives other tokens. The format does not
store the normalisation of characters (NFC in the tokenizers of Qwen 2 and Pythia), so none is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from casestudy.errors import ModelError
from casestudy.model.chat_template import named_templates
from casestudy.model.tokens import Tokenizer

# Values of `tokenizer.ggml.token_type` that matter here.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_LONGEST = 1000  # characters of a token: `_merges_of` tries every split of a token
_SPACE = "▁"  # sentencepiece's mark of a space

# Pre-tokenizers of published tokenizers, as in their tokenizer.json.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_LLAMA3 = rf"{_SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _REST_OF_CODE = (
    r"[^\r\n\p{L}\p{N}]?",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_OF_CODE}"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_SHORT_FORMS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_SHORT_FORMS}?"
    rf"|\p{{N}}{{1,3}}|{_REST_OF_CODE}"
)
_DIGIT = r"\p{N}"
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken"}
"""Pre-tokenizers whose words are not merged if they are tokens themselves (`ignore_merges`)."""

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone"), (_DIGIT, _GPT2)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    **dict.fromkeys((*_WHOLE_WORDS, "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **{"tekken": (_TEKKEN,), "gpt-4o": (_GPT4O,), "llama4": (_GPT4O,)},
}
# Files of these architectures that are older than the key use GPT-2's pre-tokenizer.
_BEFORE_THE_KEY = {"gpt2", "gptneox"}


def read_tokenizer(
    metadata: Mapping[str, Any], path: Path, *, prepend_bos: bool | None, n_ctx: int
) -> Tokenizer:
    """The tokenizer in a file's metadata.

    Args:
        metadata: the file's, by key.
        path: the file, for errors.
        prepend_bos: the family's convention; if None, the file decides, as in `Tokenizer.of`.
        n_ctx: the longest prompt the model can read.

    Raises: ModelError for an unknown kind of tokenizer or pre-tokenizer, and for inconsistent
        metadata.
    """
    entries = _Entries(metadata, path)
    kind = entries.text("model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"{path} has a tokenizer of the kind {kind!r}",
            allowed="gpt2 (byte-level BPE) or llama (sentencepiece's BPE)",
        )
    entries.only("remove_extra_whitespaces", False)
    vocabulary, types = _vocabulary(entries)
    try:
        if kind == "gpt2":
            backend = _byte_level(entries, vocabulary)
        else:
            backend = _sentencepiece(entries, vocabulary)
        backend.add_tokens(list(_added(entries, vocabulary, types)))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path}: its tokens and merges do not fit together: {error}") from error
    usual = kind == "llama" or entries.get("pre", "") in _WHOLE_WORDS
    return Tokenizer.of(
        backend,
        bos_id=entries.id("bos_token_id"),
        eos_id=entries.id("eos_token_id"),
        family_prepends=prepend_bos,
        declared=entries.get("add_bos_token", usual),
        n_ctx=n_ctx,
        templates=_templates(metadata),
        end_ids=[id for id in map(entries.id, _ENDS) if id is not None],
    )


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name: the default one, and each tokenizer.chat_template.NAME."""
    key = "tokenizer.chat_template"
    named = {
        name.removeprefix(f"{key}."): value
        for name, value in metadata.items()
        if name.startswith(f"{key}.")
    }
    return named_templates(named) | named_templates(metadata.get(key))


_ENDS = ("eot_token_id", "eom_token_id")
"""Keys of the tokens that end a turn or a message, at which llama.cpp stops."""


class _Entries:
    """Metadata under tokenizer.ggml."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata, self.path = metadata, path

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, which must have the default's type; the default if it is absent."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default
        if type(value) is not type(default):
            raise self.wrong(key, value, type(default).__name__)
        return value

    def wrong(self, key: str, value: Any, allowed: str) -> ModelError:
        shown = f"{str(value)[:60]!r}"
        return ModelError(f"{self.path}: tokenizer.ggml.{key} is {shown}", allowed=allowed)

    def text(self, key: str) -> str:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list) or not value:
            raise self.wrong(key, value, "a list of texts")
        return value

    def numbers(self, key: str, n: int) -> list[Any]:
        """A list of n numbers; empty if the key is absent."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return []
        if isinstance(value, (str, list)) or not hasattr(value, "tolist") or len(value) != n:
            raise self.wrong(key, value, f"{n} numbers, one per token")
        numbers: list[Any] = value.tolist()
        return numbers

    def id(self, key: str) -> int | None:
        """The id of a special token, which must be in the vocabulary; None if the key is absent."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        n = len(self.texts("tokens"))
        if value is not None and (type(value) is not int or not 0 <= value < n):
            raise self.wrong(key, value, f"an id below {n}")
        return value

    def only(self, key: str, allowed: object) -> None:
        value = self.metadata.get(f"tokenizer.ggml.{key}", allowed)
        if value != allowed:
            raise self.wrong(key, value, repr(allowed))


def _vocabulary(entries: _Entries) -> tuple[dict[str, int], list[int]]:
    """Ids by token, and each token's type, without unused tokens at the end."""
    tokens = entries.texts("tokens")
    n = len(tokens)
    longest = max(map(len, tokens))
    if longest > _LONGEST:
        raise entries.wrong("tokens", f"{longest} characters in one", f"at most {_LONGEST}")
    types = entries.numbers("token_type", n)
    while types and n and types[n - 1] == _UNUSED:
        n -= 1
    return {token: id for id, token in enumerate(tokens[:n])}, types[:n]


def _added(entries: _Entries, vocabulary: dict[str, int], types: list[int]) -> Iterator[AddedToken]:
    """Tokens that are recognised before text is split into words, in the file's order."""
    for token, kind in zip(entries.texts("tokens"), types, strict=False):
        if kind in (_CONTROL, _USER_DEFINED) and token:
            yield AddedToken(token, special=kind == _CONTROL, normalized=False)


def _byte_level(entries: _Entries, vocabulary: dict[str, int]) -> HFTokenizer:
    """Byte-level BPE with the file's pre-tokenizer."""
    pre = entries.get("pre", "")
    if not pre and entries.metadata.get("general.architecture") in _BEFORE_THE_KEY:
        pre = "gpt-2"
    if pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"{entries.path}: tokenizer.ggml.pre is {pre!r}, a pre-tokenizer that "
            "casestudy does not know",
            allowed=", ".join(sorted(PRE_TOKENIZERS)),
        )
    backend = HFTokenizer(
        models.BPE(vocabulary, _merges(entries), ignore_merges=pre in _WHOLE_WORDS)
    )
    prefix = entries.get("add_space_prefix", False)
    # Digits are split off before the words, as `pre_tokenizers.Digits` does.
    splits = [pre_tokenizers.Split(Regex(r), "isolated") for r in PRE_TOKENIZERS[pre]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _merges(entries: _Entries) -> list[tuple[str, str]]:
    pairs = [tuple(merge.split(" ", 1)) for merge in entries.texts("merges")]
    odd = next((pair for pair in pairs if len(pair) != 2), None)
    if odd is not None:
        raise entries.wrong("merges", odd, "two tokens with a space between them")
    return [(one, other) for one, other in pairs]


def _sentencepiece(entries: _Entries, vocabulary: dict[str, int]) -> HFTokenizer:
    """Sentencepiece's BPE: byte tokens for unknown characters, "▁" for each space."""
    tokens = entries.texts("tokens")
    unknown = entries.id("unknown_token_id")
    if "merges" in {key.removeprefix("tokenizer.ggml.") for key in entries.metadata}:
        merges = _merges(entries)
    else:
        merges = _merges_of(vocabulary, _ranks(entries, tokens))
    backend = HFTokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = entries.get("add_space_prefix", True)
    marks = normalizers.Replace(" ", _SPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), marks]) if prefix else marks
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def _ranks(entries: _Entries, tokens: Sequence[str]) -> dict[str, float]:
    """Each token's rank; tokens of a higher rank are merged first.

    The rank is the token's score. In Gemma's files, where many scores are equal, it is the token's
    place in the list.
    """
    scores = entries.numbers("scores", len(tokens))
    if not scores:
        raise entries.wrong("scores", None, "scores or merges")
    if str(entries.metadata.get("general.architecture")).startswith("gemma"):
        scores = [float(-id) for id in range(len(tokens))]
    return dict(zip(tokens, scores, strict=True))


def _merges_of(vocabulary: Mapping[str, int], ranks: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges of all tokens, in the order in which sentencepiece applies them.

    Sentencepiece merges the neighbours whose merged token has the highest rank. So merges are
    sorted by the rank of the merged token, and merges to the same token by their ids.
    """
    merges = [
        (-ranks[token], vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
        for token in vocabulary
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [(one, other) for *_, one, other in sorted(merges)]
