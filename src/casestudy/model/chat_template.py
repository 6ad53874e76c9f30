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


DEFAULT = "default"
"""The name of the template that is used where none is named."""


def named_templates(given: object) -> dict[str, str]:
    """The templates of a checkpoint by name; one without a name is the default.

    Source: transformers' `get_chat_template`; "tool_use" is for calls with tools.
    """
    if isinstance(given, str):
        return {DEFAULT: given}
    if isinstance(given, list):  # tokenizer_config.json: [{"name": …, "template": …}, …]
        pairs = [one for one in given if isinstance(one, dict)]
        given = {one.get("name"): one.get("template") for one in pairs}
    if not isinstance(given, dict):
        return {}
    return {
        name: template
        for name, template in given.items()
        if isinstance(name, str) and isinstance(template, str)
    }


def templates_in(folder: Path, entries: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a checkpoint's folder: its own files, else what tokenizer_config.json has.

    Raises: ModelError for a file that is not UTF-8.
    """
    files = {file.stem: file for file in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    own = folder / "chat_template.jinja"
    files |= {DEFAULT: own} if own.is_file() else {}
    if not files:
        return named_templates(entries.get("chat_template"))
    return {name: template_file(file) for name, file in files.items()}


def template_file(path: Path) -> str:
    """The text of a template's file.

    Raises: ModelError for one that cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template {path} cannot be read: {error}") from error
