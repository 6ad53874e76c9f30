"""Where does a checkpoint keep its chat template?

In a file of its own, in tokenizer_config.json, or in a GGUF file's metadata. This module
reads it as text and never runs it (see `chat`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casestudy.errors import ModelError


def template_hash(source: str) -> str:
    """SHA-256 of a template's text."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def default_template(given: object) -> str | None:
    """The template among what a checkpoint has: a text, or several by name, of which "default".

    Source: transformers' `get_chat_template`; "tool_use" is for calls with tools.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, list):  # tokenizer_config.json: [{"name": …, "template": …}, …]
        pairs = [one for one in given if isinstance(one, dict)]
        given = {one.get("name"): one.get("template") for one in pairs}
    found = given.get("default") if isinstance(given, dict) else None
    return found if isinstance(found, str) else None


def template_in(folder: Path, entries: Mapping[str, Any]) -> str | None:
    """The template of a checkpoint's folder: its own file, else what tokenizer_config.json has.

    Raises: ModelError for a file that is not UTF-8.
    """
    file = folder / "chat_template.jinja"
    if not file.is_file():
        return default_template(entries.get("chat_template"))
    return template_file(file)


def template_file(path: Path) -> str:
    """The text of a template's file.

    Raises: ModelError for one that cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template {path} cannot be read: {error}") from error
