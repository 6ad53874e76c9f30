"""How is a behaviour stored in a file?

As TOML (settings and prompts), JSONL (one prompt per line, settings in an optional first line) or
CSV (a table of prompts); docs/behaviour-files.md is the schema. Unknown keys are errors, because a
typo would otherwise change the study silently; `null` means absent for every key. Blank rows are
skipped and exact repetitions are kept once; the behaviour's notes count both. Cost: one or two
seconds for 100,000 prompts in CSV or JSONL. TOML is slower, and meant for files written by hand.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, get_args

from casestudy.behaviour.classes import (
    CAPITAL_MASS,
    CLASS_SETS,
    ClassContrast,
    ClassSet,
    TokenClass,
    class_set,
)
from casestudy.behaviour.presets import preset, preset_names
from casestudy.behaviour.prompts import QUESTION, AnswerRule, Behaviour, Prompt, Role, Take, Which
from casestudy.errors import BehaviourError, unknown

SUFFIXES = (".toml", ".jsonl", ".csv")
SEPARATOR = ";"
"""Separates the groups in a cell of a CSV file."""
_ROLE = "role:"
SETTINGS = (
    *("name", "question", "about", "answers", "main", "classes", "class_contrast", "roles"),
    "parse_special",
)
"""The settings that a file may have besides its prompts."""
_PROMPT = tuple(f.name for f in fields(Prompt))
_OPTIONAL = ("answer", "counterpart", "corrupted", "next_token", "answer_class",
             "counterpart_class")  # fmt: skip

_TEXTS = ("text", "category", "document", *_OPTIONAL)

_NOTHING: tuple[Any, ...] = (None, "", [], {})
_DEFAULTS = {f.name: f.default for f in fields(Prompt) if f.default is not MISSING}

_Row = tuple[str, dict[str, Any]]
"""The place of a prompt, for messages ("line 7"), and its entries as read."""


def find_behaviour(name: str | os.PathLike[str]) -> Behaviour:
    """A behaviour by its file's path, or a preset by its name.

    Raises: BehaviourError if it is neither, or the file is not well formed.
    """
    path = Path(name)
    if path.is_file() or path.suffix in SUFFIXES or path.name != os.fspath(name):
        return load_behaviour(path)
    return preset(str(name))


def names_behaviour(name: str) -> bool:
    """Whether this is a preset's name or looks like the path of a behaviour file."""
    return name in preset_names() or Path(name).suffix in SUFFIXES


def load_behaviour(path: str | os.PathLike[str]) -> Behaviour:
    """Read a behaviour file.

    The result's `notes` list what was left out (blank rows, repetitions).

    Raises: BehaviourError naming the file, the line or prompt, and what is allowed there.
    """
    path = Path(path)
    readers = {".toml": _read_toml, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        raise BehaviourError(f"{path} is not a behaviour file", allowed=", ".join(SUFFIXES))
    try:
        settings, rows = readers[path.suffix](_decode(path))
        prompts, notes = _prompts(rows, plain_ends=path.suffix == ".csv")
        return _behaviour(path.stem, settings, prompts, notes)
    except BehaviourError as error:
        came = f"{path.name}: {error.came}"
        raise BehaviourError(came, allowed=error.allowed, hint=error.hint) from error


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
        data = writers[path.suffix](behaviour, path).encode("utf-8")
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


def _decode(path: Path) -> str:
    """A file's text; UTF-8, with or without a byte-order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BehaviourError(f"it cannot be read: {error.strerror}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BehaviourError("it is UTF-16", allowed="UTF-8", hint="Save it again as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `utf-8-sig` counts from after the mark
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        raise BehaviourError(
            f"line {line} is not UTF-8: byte 0x{data[start]:02x} at byte {start} of the file",
            allowed="UTF-8 throughout",
            hint="Lines before it are; was it put together from files in another encoding, such as "
            "Latin-1 or Windows-1252?",
        ) from error


def _read_toml(text: str) -> tuple[dict[str, Any], Iterator[_Row]]:
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BehaviourError(f"it is not TOML: {error}") from error
    except RecursionError as error:
        raise BehaviourError("it is nested too deeply") from error
    prompts = settings.pop("prompts", [])
    if not isinstance(prompts, list) or not all(isinstance(p, dict) for p in prompts):
        raise BehaviourError("`prompts` is not a list of tables", allowed="[[prompts]] tables")
    return settings, ((f"prompt {i}", row) for i, row in enumerate(prompts))


def _read_jsonl(text: str) -> tuple[dict[str, Any], Iterator[_Row]]:
    # Only "\n" ends a line: a JSON string may contain U+2028 and similar characters.
    lines = text.removesuffix("\n").split("\n") if text else []
    first = next((n for n, line in enumerate(lines) if line.strip()), len(lines))
    settings: dict[str, Any] = {}
    header = -1
    if first < len(lines):
        row = _json_line(first + 1, lines[first])
        if set(row) == {"behaviour"}:
            settings, header = row["behaviour"] or {}, first
            if not isinstance(settings, dict):
                raise BehaviourError(f"line {first + 1}: behaviour is {settings!r}")

    def rows() -> Iterator[_Row]:
        for n, line in enumerate(lines):
            if n != header:
                yield f"line {n + 1}", _json_line(n + 1, line) if line.strip() else {}

    return settings, rows()


def _json_line(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BehaviourError(f"line {number} is not JSON: {error}") from error
    except RecursionError as error:
        raise BehaviourError(f"line {number} is nested too deeply") from error
    if not isinstance(row, dict):
        raise BehaviourError(f"line {number} is not a JSON object", allowed='{"text": "…", …}')
    return row


def _read_csv(text: str) -> tuple[dict[str, Any], Iterator[_Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(_csv_rows(reader), ("", []))[1]
    for column in header:
        if not column.startswith(_ROLE) and column != "roles":
            _known(column, [c for c in _PROMPT if c != "roles"], "column")
    if "roles" in header:
        raise BehaviourError("column 'roles'", allowed=f"a column {_ROLE}NAME for each role")
    repeated = [column for column in header if header.count(column) > 1]
    if repeated:
        raise BehaviourError(f"column {repeated[0]!r} occurs twice")

    def rows() -> Iterator[_Row]:
        for where, cells in _csv_rows(reader):
            if not any(cell.strip() for cell in cells):
                yield where, {}
                continue
            if len(cells) != len(header):
                raise BehaviourError(
                    f"{where} has {len(cells)} cells", allowed=f"{len(header)}, as the header has"
                )
            yield where, _from_cells(where, header, cells)

    return {}, rows()


def _csv_rows(reader: Any) -> Iterator[tuple[str, list[str]]]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BehaviourError(
                f"the row that starts on line {line} is not CSV: {error}"
            ) from error
        yield f"line {line}", cells


def _from_cells(where: str, header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """A row's entries; an empty cell gives no entry."""
    row: dict[str, Any] = {}
    roles: dict[str, list[int]] = {}
    for column, cell in zip(header, cells, strict=True):
        if column.startswith(_ROLE):
            if cell.strip():
                try:
                    roles[column.removeprefix(_ROLE)] = [int(n) for n in cell.split()]
                except ValueError as error:
                    raise BehaviourError(
                        f"{where} has {cell!r} in column {column!r}",
                        allowed="token indices with spaces between",
                    ) from error
        elif column == "groups":
            row[column] = [name.strip() for name in cell.split(SEPARATOR) if name.strip()]
        elif cell:
            row[column] = cell
    return row | ({"roles": roles} if roles else {})


def _plain_ends(value: Any) -> Any:
    """A text with all line ends replaced by newlines."""
    return value.replace("\r\n", "\n").replace("\r", "\n") if isinstance(value, str) else value


def _prompts(
    rows: Iterator[_Row], *, plain_ends: bool = False
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """The prompts, and notes on what was left out or changed.

    Args:
        rows: as read.
        plain_ends: whether to read a carriage return as a line end, as in CSV, which has no escape
            for the character.
    """
    changed: list[str] = []
    prompts: list[Prompt] = []
    blank: list[str] = []
    repeated: list[str] = []
    seen: set[tuple[Any, ...]] = set()
    for where, row in rows:
        if _is_blank(row):
            blank.append(where)
            continue
        if plain_ends:
            plain = {key: _plain_ends(value) for key, value in row.items()}
            changed += [where] if plain != row else []
            row = plain
        prompt = _prompt(where, row)
        roles = tuple(sorted(prompt.roles.items()))
        key = (*(getattr(prompt, name) for name in _PROMPT if name != "roles"), roles)
        if key in seen:
            repeated.append(where)
            continue
        seen.add(key)
        prompts.append(prompt)
    notes = []
    if changed:
        notes.append(f"line ends in {len(changed)} rows read as newlines ({_places(changed)})")
    if blank:
        notes.append(f"{len(blank)} blank rows skipped ({_places(blank)})")
    if repeated:
        notes.append(
            f"{len(repeated)} rows repeat an earlier one exactly and were left out "
            f"({_places(repeated)})"
        )
    return tuple(prompts), tuple(notes)


def _is_blank(row: Mapping[str, Any]) -> bool:
    """Whether a row is empty; a given empty text is not: it is the prompt BOS alone."""
    return row.get("text") is None and all(value in _NOTHING for value in row.values())


def _places(where: Sequence[str]) -> str:
    return ", ".join(where[:5]) + (", …" if len(where) > 5 else "")


def _prompt(where: str, row: Mapping[str, Any]) -> Prompt:
    """One prompt, checked.

    Raises: BehaviourError naming its place in the file.
    """
    entries: dict[str, Any] = {}
    for key, value in _present(row, _PROMPT, f"{where} has the key").items():
        if key == "roles":
            entries[key] = _role_places(where, value)
        elif key == "groups":
            entries[key] = _names(f"{where}: groups", value)
        elif isinstance(value, str):
            _utf8(where, key, value)
            entries[key] = value
        else:
            raise BehaviourError(f"{where}: {key} is {value!r}", allowed="text")
    if "text" not in entries:
        raise BehaviourError(
            f"{where} has no text",
            allowed="a row with text, or a blank one",
            hint='For BOS alone, write text = "" in a .toml or .jsonl file',
        )
    answer = entries.get("answer")
    if answer is not None and answer == entries.get("counterpart"):
        raise BehaviourError(
            f"{where}: answer and counterpart are both {answer!r}", allowed="two different tokens"
        )
    try:
        return Prompt(**entries)
    except BehaviourError as error:
        raise BehaviourError(f"{where}: {error.came}", allowed=error.allowed) from error


def _role_places(where: str, value: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict):
        raise BehaviourError(f"{where}: roles is {value!r}", allowed="a table of token indices")
    places = {}
    for name, at in value.items():
        if at is None:
            continue
        at = at if isinstance(at, list) else [at]
        # bool is a subclass of int, but not an index
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in at):
            raise BehaviourError(f"{where}: role {name!r} is at {at!r}", allowed="token indices")
        places[name] = tuple(at)
    return places


def _names(where: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise BehaviourError(f"{where} is {value!r}", allowed="a name or a list of names")
    return tuple(names)


def _utf8(where: str, key: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BehaviourError(
            f"{where}: {key} holds a lone surrogate at character {error.start}",
            allowed="text that can be written as UTF-8",
        ) from error


def _present(table: Mapping[str, Any], allowed: Sequence[str], what: str) -> dict[str, Any]:
    """A table's entries without those that are null, which means absent for every key.

    Raises: BehaviourError for a key that is not allowed, null or not.
    """
    for key in table:
        _known(key, allowed, what)
    return {key: value for key, value in table.items() if value is not None}


def _known(key: str, allowed: Sequence[str], what: str) -> None:
    """Raises: BehaviourError for a key that is not allowed, with the nearest that is."""
    if key in allowed:
        return
    raise unknown(BehaviourError, f"{what} {key!r}, which means nothing here", key, allowed)


def _behaviour(
    stem: str, settings: Mapping[str, Any], prompts: tuple[Prompt, ...], notes: tuple[str, ...]
) -> Behaviour:
    settings = _present(settings, (*SETTINGS, "prompts"), "setting")
    answers = _one_of(settings.get("answers", _rule(prompts)), get_args(AnswerRule), "answers")
    classes = _class_set(settings.get("classes", "standard"))
    contrast = _class_contrast(settings.get("class_contrast"), answers, classes)
    return Behaviour(
        name=_text(settings, "name", stem),
        question=_text(settings, "question", QUESTION),
        prompts=prompts,
        answers=answers,
        about=_text(settings, "about", ""),
        classes=classes,
        class_contrast=contrast,
        roles=tuple(_roles(settings.get("roles", []))),
        main=_names("main", settings.get("main", [])),
        notes=notes,
        parse_special=_truth(settings, "parse_special"),
    )


def _rule(prompts: Sequence[Prompt]) -> AnswerRule:
    """The rule for answers of a file without one: it follows from the prompts."""
    if prompts and all(p.answer is not None and p.counterpart is not None for p in prompts):
        return "given"
    if prompts and all(p.answer_class is not None for p in prompts):
        return "classes"
    return "space-capital"


def _class_contrast(value: object, answers: str, classes: ClassSet) -> ClassContrast | None:
    """The file's class contrast; by default capital mass if answers are capitals, else none."""
    if value is False:
        return None
    if value is None:
        there = CAPITAL_MASS.answer in classes.names and CAPITAL_MASS.counterpart in classes.names
        return CAPITAL_MASS if answers == "space-capital" and there else None
    contrast: ClassContrast = _table(ClassContrast, value, "class_contrast")
    return contrast


def _class_set(value: object) -> ClassSet:
    if isinstance(value, str):
        return class_set(value)
    if not isinstance(value, dict):
        raise BehaviourError(f"classes is {value!r}", allowed="a set's name or a table")
    keys = ("name", "extends", "patterns", "end_of_text", "other")
    value = _present(value, keys, "classes has the key")
    patterns = value.get("patterns", [])
    if not isinstance(patterns, list):
        raise BehaviourError("classes.patterns is not a list", allowed="a list of tables")
    own = tuple(_table(TokenClass, one, "classes.patterns") for one in patterns)
    name = _text(value, "name", "own")
    if "extends" in value:
        extended = class_set(_text(value, "extends", ""))
        return extended.extend(*own, name=name if "name" in value else None)
    end = value.get("end_of_text", "end of text")
    if end is not False and not isinstance(end, str):
        raise BehaviourError(f"classes.end_of_text is {end!r}", allowed="text, or false")
    return ClassSet(name, own, None if end is False else end, _text(value, "other", "other"))


def _roles(value: object) -> Iterator[Role]:
    if not isinstance(value, list):
        raise BehaviourError("roles is not a list", allowed="[[roles]] tables")
    for one in value:
        for key, allowed in (("which", get_args(Which)), ("take", get_args(Take))):
            if isinstance(one, dict) and one.get(key) is not None:
                _one_of(one[key], allowed, f"{key} of role {one.get('name')!r}")
        yield _table(Role, one, "roles")


def _table(kind: Callable[..., Any], value: object, what: str) -> Any:
    """One dataclass from a table with its fields as keys, all texts but `required`."""
    if not isinstance(value, dict):
        raise BehaviourError(f"{what}: {value!r} is not a table")
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    value = _present(value, names, f"{what} has the key")
    for key, entry in value.items():
        wanted = bool if key == "required" else str
        if not isinstance(entry, wanted):
            allowed = "true or false" if wanted is bool else "text"
            raise BehaviourError(f"{what}: {key} is {entry!r}", allowed=allowed)
    optional = {"required", "which", "take"}
    missing = [name for name in names if name not in value and name not in optional]
    if missing:
        raise BehaviourError(f"{what} lacks {missing[0]!r}", allowed=", ".join(names))
    return kind(**value)


def _text(settings: Mapping[str, Any], key: str, default: str) -> str:
    value = settings.get(key, default)
    if not isinstance(value, str):
        raise BehaviourError(f"{key} is {value!r}", allowed="text")
    return value


def _truth(settings: Mapping[str, Any], key: str) -> bool:
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise BehaviourError(f"{key} is {value!r}", allowed="true or false")
    return value


def _one_of(value: Any, allowed: Sequence[str], what: str) -> Any:
    if value not in allowed:
        raise unknown(BehaviourError, f"{what} is {value!r}", value, allowed)
    return value


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
    }
    if behaviour.parse_special:
        said["parse_special"] = True
    if behaviour.class_contrast is None:
        said["class_contrast"] = False
    return {key: value for key, value in said.items() if value not in ("", [])}


def _entries(prompt: Prompt) -> dict[str, Any]:
    """A prompt's entries, without absent ones."""
    entries = {name: getattr(prompt, name) for name in _PROMPT}
    entries["roles"] = {name: list(at) for name, at in prompt.roles.items()}
    entries["groups"] = list(prompt.groups)
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
    plain = _behaviour(path.stem, {}, behaviour.prompts, ())
    lost = [n for n in SETTINGS if getattr(plain, n) != getattr(behaviour, n)]
    if any(SEPARATOR in name or name != name.strip() for name in behaviour.groups):
        lost.append(f"a group's name with {SEPARATOR!r} or spaces around it")
    if any(getattr(prompt, name) == "" for prompt in behaviour.prompts for name in _OPTIONAL):
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
    used = [c for c in _PROMPT if c != "roles" and any(c in row for row in rows)]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([*used, *(_ROLE + name for name in roles)])
    for row in rows:
        cells = [row.get(c, "") for c in used]
        if "groups" in used:
            cells[used.index("groups")] = SEPARATOR.join(row.get("groups", []))
        places = row.get("roles", {})
        writer.writerow([*cells, *(" ".join(map(str, places.get(n, []))) for n in roles)])
    return buffer.getvalue()
