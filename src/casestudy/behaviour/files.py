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
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from casestudy.behaviour.chat import chat_setting, with_messages
from casestudy.behaviour.classes import (
    CAPITAL_MASS,
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
ROLE_COLUMN = "role:"
SETTINGS = (
    *("name", "question", "about", "answers", "main", "classes", "class_contrast", "roles"),
    *("parse_special", "chat", "circuit_prompts"),
)
"""The settings that a file may have besides its prompts."""
PROMPT_KEYS = tuple(f.name for f in fields(Prompt))
OPTIONAL = ("answer", "counterpart", "corrupted", "next_token", "answer_class",
             "counterpart_class")  # fmt: skip

_NOTHING: tuple[Any, ...] = (None, "", [], {})

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
        rows = with_messages(rows, settings)
        prompts, notes = _prompts(rows, plain_ends=path.suffix == ".csv")
        return behaviour_of_rows(path.stem, settings, prompts, notes)
    except BehaviourError as error:
        came = f"{path.name}: {error.came}"
        raise BehaviourError(came, allowed=error.allowed, hint=error.hint) from error


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
        if not column.startswith(ROLE_COLUMN) and column != "roles":
            _known(column, [c for c in PROMPT_KEYS if c != "roles"], "column")
    if "roles" in header:
        raise BehaviourError("column 'roles'", allowed=f"a column {ROLE_COLUMN}NAME for each role")
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
        if column.startswith(ROLE_COLUMN):
            if cell.strip():
                try:
                    roles[column.removeprefix(ROLE_COLUMN)] = [int(n) for n in cell.split()]
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
        key = (*(getattr(prompt, name) for name in PROMPT_KEYS if name != "roles"), roles)
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
    for key, value in _present(row, PROMPT_KEYS, f"{where} has the key").items():
        if key == "roles":
            entries[key] = _role_places(where, value)
        elif key == "groups":
            entries[key] = _names(f"{where}: groups", value)
        elif key == "readout":
            entries[key] = _readout(where, value)
        elif key == "ids":
            entries[key] = _ids(where, value)
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


def _readout(where: str, value: object) -> int | str:
    """A position, or a role's name; a cell of a CSV file holds either as text."""
    if isinstance(value, str) and value.strip():
        try:
            return int(value)
        except ValueError:
            return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise BehaviourError(
        f"{where}: readout is {value!r}", allowed="a token index, or a role's name"
    )


def _ids(where: str, value: object) -> tuple[int, ...]:
    """Token ids: a list, or numbers with spaces between."""
    ids = value.split() if isinstance(value, str) else value
    try:
        if not isinstance(ids, list) or any(isinstance(i, bool | float) for i in ids):
            raise ValueError
        return tuple(map(int, ids))
    except (TypeError, ValueError) as error:
        raise BehaviourError(f"{where}: ids is {value!r}", allowed="a list of token ids") from error


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


def behaviour_of_rows(
    stem: str, settings: Mapping[str, Any], prompts: tuple[Prompt, ...], notes: tuple[str, ...]
) -> Behaviour:
    """The behaviour of a file's settings and prompts.

    Raises: BehaviourError for a setting that means nothing here, or of a kind it may not have.
    """
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
        chat=chat_setting(settings.get("chat")),
        circuit_prompts=_circuit_prompts(settings.get("circuit_prompts", [])),
    )


def _circuit_prompts(rows: object) -> tuple[Prompt, ...]:
    """The further prompts of a file's settings, each checked as a prompt is.

    Raises: BehaviourError for what is no list of tables, and naming the prompt that is wrong.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BehaviourError(
            f"circuit_prompts is {rows!r}"[:100], allowed="a list of prompts, each a table"
        )
    named = ((f"circuit prompt {i}", row) for i, row in enumerate(rows))
    prompts, _ = _prompts(iter(named))
    return prompts


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
