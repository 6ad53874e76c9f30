"""How is a behaviour written to a file?

As `files` reads it: TOML, JSONL, or CSV where a table of prompts holds all there is to hold.
"""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from casestudy.behaviour.chat import chat_entry, unwritten
from casestudy.behaviour.classes import CLASS_SETS
from casestudy.behaviour.files import (
    OPTIONAL,
    PROMPT_KEYS,
    ROLE_COLUMN,
    SEPARATOR,
    SETTINGS,
    SUFFIXES,
    behaviour_of_rows,
)
from casestudy.behaviour.prompts import Behaviour, Prompt, Role
from casestudy.errors import BehaviourError
from casestudy.model.chat import Chat

_TEXTS = ("text", "category", "document", *OPTIONAL)
_DEFAULTS = {f.name: f.default for f in fields(Prompt) if f.default is not MISSING}


def write_behaviour(behaviour: Behaviour, path: str | os.PathLike[str]) -> None:
    """Write a behaviour file that `load_behaviour` reads back as the same behaviour.

    Raises: BehaviourError for an unknown suffix, for a CSV file that cannot store everything
        (naming what would be lost), and for a path that cannot be written.
    """
    path = Path(path)
    writers = {".toml": _write_toml, ".jsonl": _write_jsonl, ".csv": _write_csv}
    if path.suffix not in writers:
        raise BehaviourError(f"{path} is not a behaviour file", allowed=", ".join(SUFFIXES))
    try:
        data = writers[path.suffix](unwritten(behaviour), path).encode("utf-8")
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(data)
        part.replace(path)
    except UnicodeEncodeError as error:
        raise BehaviourError(
            f"a text holds a lone surrogate: {error.object[error.start : error.end]!r}",
            allowed="text that can be written as UTF-8",
        ) from error
    except OSError as error:
        raise BehaviourError(f"{path} cannot be written: {error.strerror}") from error


def _settings(behaviour: Behaviour) -> dict[str, Any]:
    """The settings to write; defaults are left out."""
    classes = behaviour.classes
    known = CLASS_SETS.get(classes.name) == classes
    said: dict[str, Any] = {
        "name": behaviour.name,
        "question": behaviour.question,
        "about": behaviour.about,
        "answers": behaviour.answers,
        "main": list(behaviour.main),
        "classes": classes.name
        if known
        else {
            "name": classes.name,
            "patterns": [asdict(c) for c in classes.classes],
            "end_of_text": classes.end_of_text or False,
            "other": classes.other,
        },
        "class_contrast": behaviour.class_contrast and asdict(behaviour.class_contrast),
        "roles": [asdict(role) for role in behaviour.roles],
        "circuit_prompts": [_entries(prompt) for prompt in behaviour.circuit_prompts],
    }
    if behaviour.parse_special:
        said["parse_special"] = True
    if isinstance(behaviour.chat, Chat):
        said["chat"] = chat_entry(behaviour.chat)
    if behaviour.class_contrast is None:
        said["class_contrast"] = False
    return {key: value for key, value in said.items() if value not in ("", [])}


def _entries(prompt: Prompt) -> dict[str, Any]:
    """A prompt's entries, without absent ones."""
    entries = {name: getattr(prompt, name) for name in PROMPT_KEYS}
    entries["roles"] = {name: list(at) for name, at in prompt.roles.items()}
    entries["groups"] = list(prompt.groups)
    entries["ids"] = None if prompt.ids is None else list(prompt.ids)
    if isinstance(prompt.readout, Role):
        entries["readout"] = prompt.readout.name
    return {
        key: value
        for key, value in entries.items()
        if value != _DEFAULTS.get(key, MISSING) and value not in ([], {})
    }


def _write_jsonl(behaviour: Behaviour, path: Path) -> str:
    rows = [{"behaviour": _settings(behaviour)}, *map(_entries, behaviour.prompts)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_toml(behaviour: Behaviour, path: Path) -> str:
    return behaviour_toml(behaviour)


def behaviour_toml(behaviour: Behaviour) -> str:
    """The text of a behaviour's TOML file."""
    behaviour = unwritten(behaviour)
    parts = [f"{key} = {toml_value(value)}\n" for key, value in _settings(behaviour).items()]
    for prompt in behaviour.prompts:
        parts.append("\n[[prompts]]\n")
        parts += [f"{key} = {toml_value(value)}\n" for key, value in _entries(prompt).items()]
    return "".join(parts)


def toml_value(value: Any) -> str:
    """A text, number, truth value, list or table as TOML writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # A JSON string, number or truth value is valid TOML, except for DEL, which TOML escapes.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write_csv(behaviour: Behaviour, path: Path) -> str:
    plain = behaviour_of_rows(path.stem, {}, behaviour.prompts, ())
    lost = [n for n in SETTINGS if getattr(plain, n) != getattr(behaviour, n)]
    if any(SEPARATOR in name or name != name.strip() for name in behaviour.groups):
        lost.append(f"a group's name with {SEPARATOR!r} or spaces around it")
    if any(getattr(prompt, name) == "" for prompt in behaviour.prompts for name in OPTIONAL):
        lost.append("an entry that is given and empty")
    if any("\r" in (getattr(p, name) or "") for p in behaviour.prompts for name in _TEXTS):
        lost.append("a carriage return")
    if not all(prompt.text.strip() for prompt in behaviour.prompts):
        lost.append("a prompt of white space alone")
    if lost:
        raise BehaviourError(
            f"{path.name} cannot hold {', '.join(lost)}",
            allowed="prompts alone in a CSV file, named after the behaviour",
            hint="Write .jsonl or .toml",
        )
    roles = list(dict.fromkeys(name for p in behaviour.prompts for name in p.roles))
    rows = [_entries(p) for p in behaviour.prompts]
    used = [c for c in PROMPT_KEYS if c != "roles" and any(c in row for row in rows)]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([*used, *(ROLE_COLUMN + name for name in roles)])
    for row in rows:
        cells = [row.get(c, "") for c in used]
        if "ids" in used:
            cells[used.index("ids")] = " ".join(map(str, row.get("ids", [])))
        if "groups" in used:
            cells[used.index("groups")] = SEPARATOR.join(row.get("groups", []))
        places = row.get("roles", {})
        writer.writerow([*cells, *(" ".join(map(str, places.get(n, []))) for n in roles)])
    return buffer.getvalue()
