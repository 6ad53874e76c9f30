"""Which prompts of a stored study does the page offer?

Its prompts, with the answers that the study chose, and the name of its model. Where a study lacks a
table, the page omits what the table holds and says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from casestudy.errors import StudyError
from casestudy.results import names
from casestudy.results.files import read_table
from casestudy.results.result import Table
from casestudy.show.explorer.page_state import MOST_ANSWER, MOST_EDITED, MOST_TEXT, PageState
from casestudy.show.stored import UNEXPECTED
from casestudy.show.text import clean, prompt_excerpt
from casestudy.study.store import FORMAT, Store

if TYPE_CHECKING:
    from casestudy.model.tokens import Tokenizer

MOST = 500
"""Most prompts offered in the page's list."""


@dataclass(frozen=True)
class StudyPrompts:
    """A study's prompts, as the page offers them.

    Attributes:
        name: of the study's behaviour.
        model: the name of its model; "" if unknown.
        dtype: its number format; "" if unknown.
        bos: whether its prompts start with BOS; None if unknown.
        prompts: a label and a query string for each.
        notices: what could not be read, and why.
        strict: whether it refused answers that change the prompt's own tokens.
    """

    name: str
    model: str
    dtype: str
    bos: bool | None
    prompts: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    strict: bool = False

    def written_by(self, tokenizer: Tokenizer) -> StudyPrompts:
        """The same, with each token as text where the text stands for that token only."""
        return replace(self, prompts=[(label, _written(q, tokenizer)) for label, q in self.prompts])


def _written(query: str, tokenizer: Tokenizer) -> str:
    """The query with tokens as texts; a token whose text is ambiguous stays "id:1234"."""
    found = dict(parse_qsl(query, keep_blank_values=True))
    prompt = found.get("prompt", "")
    for side in names.SIDES:
        given = found.get(side, "").removeprefix("id:")
        ids = [int(id) for id in given.split(",") if id.isdecimal() and int(id) < tokenizer.d_vocab]
        if given == found.get(side, "") or ",".join(map(str, ids)) != given:
            continue
        if len(ids) == 1:
            found[side] = tokenizer.written(ids[0], after=prompt)
            continue
        text = "".join(map(tokenizer.label, ids))
        if text and list(tokenizer.continuation(prompt, text).ids) == ids:
            found[side] = text
    return urlencode(found)


def study_prompts_of(folder: str | os.PathLike[str]) -> StudyPrompts:
    """A study's prompts.

    Raises: StudyError where the folder holds no study.
    """
    store = Store.open(folder)
    manifest = store.manifest
    bos = _entry(manifest, "settings", "prepend_bos")
    found = StudyPrompts(
        _text(manifest, "behaviour", "name") or "study",
        _text(manifest, "model", "name"),
        _text(manifest, "model", "dtype"),
        bos if isinstance(bos, bool) else None,
        strict=_entry(manifest, "settings", "strict_tokens") is True,
    )
    if manifest.get("format") != FORMAT:
        found.notices.append(
            f"The study was stored in format {clean(manifest.get('format'))}; this version of "
            f"casestudy writes format {FORMAT}. What it could read is offered."
        )
    prompts = _table(store, "prompts", ("prompt", "text"), "none of its prompts is offered", found)
    answers = _table(
        store, "answers", ("prompt", "form", "token"), "its prompts come without answers", found
    )
    whole = _whole_answers(store, found)
    edit = _edit_of(manifest)
    special = "parsed" if _entry(manifest, "settings", "parse_special") is True else ""
    shortest = 0 if bos is True else 1  # an empty prompt is BOS alone
    pairs: dict[Any, dict[str, str]] = {}
    for row in [] if answers is None else answers.rows():
        pairs.setdefault(row["prompt"], {})[str(row["form"])] = _asked(row)
    for row in [] if prompts is None else prompts.rows():
        text, forms = row["text"], pairs.get(row["prompt"], {})
        if not isinstance(text, str) or not shortest <= len(text) <= MOST_TEXT:
            continue
        other = next((token for form, token in forms.items() if form != "answer"), "")
        answer = forms.get("answer", "")
        if max(len(answer), len(other)) > MOST_ANSWER:
            answer = other = ""
        answer, other = whole.get(row["prompt"], (answer, other))
        page_state = PageState(prompt=text, answer=answer, counterpart=other, special=special)
        if isinstance(row.get("readout"), int):
            page_state = replace(page_state, readout=str(row["readout"]))
        partner = _partner(row.get("corrupted"), text, edit)
        if 0 < len(partner) <= MOST_TEXT:
            page_state = replace(page_state, corrupted=partner)
        label = f"{row['prompt']}: {prompt_excerpt(text, 80)}"
        found.prompts.append((label, page_state.query()))
        if len(found.prompts) == MOST:
            break
    return found


def _whole_answers(store: Store, found: StudyPrompts) -> dict[Any, tuple[str, str]]:
    """The answers of several tokens by prompt, answer and counterpart, as the query names them."""
    if not (store.folder / "tables" / f"{names.ANSWER_TOKENS}.parquet").is_file():
        return {}  # as in a study of single tokens
    columns = ("prompt", "side", "place", "id")
    table = _table(store, names.ANSWER_TOKENS, columns, "whole answers are missing", found)
    ids: dict[Any, dict[str, list[str]]] = {}
    for row in [] if table is None else sorted(table.rows(), key=lambda row: int(row["place"])):
        ids.setdefault(row["prompt"], {}).setdefault(row["side"], []).append(str(row["id"]))
    whole = {
        prompt: tuple(f"id:{','.join(sides[side])}" for side in names.SIDES)
        for prompt, sides in ids.items()
        if len(sides) == 2
    }
    return {p: (a, b) for p, (a, b) in whole.items() if max(len(a), len(b)) <= MOST_ANSWER}


def _asked(row: Mapping[str, Any]) -> str:
    """A stored token as the query names it: by id, since several tokens may share a text."""
    id = row.get("id")
    return f"id:{id}" if isinstance(id, int) else str(row["token"])


def _edit_of(manifest: Mapping[str, Any]) -> Callable[[str], str | None]:
    """The edit that made the study's pairs: that of most of its patch grids."""
    families = manifest.get("patch_families")
    names = [str(v) for v in families.values()] if isinstance(families, Mapping) else []
    if not names:
        return lambda text: None
    from casestudy.behaviour.counterfactual import FAMILIES

    most = max(names, key=names.count)
    return next((family.edit for family in FAMILIES if family.name == most), lambda text: None)


def _partner(given: object, text: str, edit: Callable[[str], str | None]) -> str:
    """A prompt's corrupted partner: its own, else by the study's edit; "" where there is none."""
    if isinstance(given, str) and given:
        return given
    if len(text) > MOST_EDITED:
        return ""
    edited = edit(text)
    return "" if edited is None or edited == text else edited


def _table(
    store: Store, name: str, columns: tuple[str, ...], lost: str, found: StudyPrompts
) -> Table | None:
    path = store.folder / "tables" / f"{name}.parquet"
    try:
        if not path.is_file():
            raise StudyError(f"The study’s folder has no {path.parent.name}/{path.name}")
        table = read_table(path, most=20 * MOST)
        absent = [column for column in columns if column not in table.columns]
        if absent:
            raise StudyError(f"The study’s table “{name}” has no column {', '.join(absent)}")
    except UNEXPECTED as error:
        found.notices.append(f"{clean(error).rstrip('.')}: {lost}.")
        return None
    return table


def _entry(manifest: Mapping[str, Any], *keys: str) -> Any:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(manifest: Mapping[str, Any], *keys: str) -> str:
    value = _entry(manifest, *keys)
    return value if isinstance(value, str) else ""
