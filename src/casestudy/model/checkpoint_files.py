"""What do the files beside a checkpoint's weights say of its tokens?

Its BOS and EOS token, and the tokens that end what it writes: an instruction-tuned model often ends
its turn with another token than its tokenizer's EOS, and generation_config.json lists both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from casestudy.errors import ModelError


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object's entries; none where there is no such file.

    Raises: ModelError for a file that holds anything else.
    """
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return entries


def special_id(folder: Path, kind: str, backend: HFTokenizer) -> int | None:
    """The id of a checkpoint's "bos_token" or "eos_token"; None where it names none.

    A null in the tokenizer's own files means "none", whatever the model's config says.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        entries = json_object(folder / name)
        if kind in entries:
            entry = entries[kind]
            text = entry.get("content") if isinstance(entry, dict) else entry
            return None if text is None else backend.token_to_id(text)
    special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    for name in ("generation_config.json", "config.json"):
        for id in listed_ids(json_object(folder / name), f"{kind}_id"):
            if id in special:
                return id
    return None


def end_ids(folder: Path) -> tuple[int, ...]:
    """The tokens at which a checkpoint stops to write, in the order of its file.

    Those of generation_config.json or, where it names none, of config.json, as in transformers.
    """
    for name in ("generation_config.json", "config.json"):
        found = listed_ids(json_object(folder / name), "eos_token_id")
        if found:
            return found
    return ()


def listed_ids(entries: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """An entry that is an id or a list of ids; () for anything else."""
    given = entries.get(key)
    several = given if isinstance(given, list) else [given]
    return tuple(id for id in several if type(id) is int and 0 <= id < 2**31)
