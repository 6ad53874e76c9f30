"""What does a request ask for?

The address determines everything that the page shows: the page, its panels and the saved study use
the same query string, so an address can be shared and reloaded. This module limits sizes and
refuses unknown names before the model runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import urlencode

from casestudy.results.components import read_component

MOST_QUERY = 48_000
"""Bytes of a query string: a prompt of a thousand tokens fits in any script, a book does not."""
MOST_TEXT = 16_000
"""Characters of a prompt."""
MOST_EDITED = 1000
"""Characters of the longest prompt that edits are offered for: each edit is another prompt."""
MOST_ANSWER = 2000
"""Characters of an answer or counterpart: room for the 256 tokens that one may have."""
MOST_READOUT = 100
"""Characters of a readout: a position, or the name of a role."""
MOST_PART = 40
"""Characters of a part's name."""

TEXTS = {
    "prompt": MOST_TEXT,
    "corrupted": MOST_TEXT,
    "prefix": MOST_TEXT,
    "answer": MOST_ANSWER,
    "counterpart": MOST_ANSWER,
    "readout": MOST_READOUT,
}
"""What is typed, with the most characters of each."""

SITES = {
    "resid_pre": "residual stream (resid_pre)",
    "attn_out": "attention layers (attn_out)",
    "mlp_out": "MLP layers (mlp_out)",
    "z": "heads (z)",
    "pattern": "heads’ patterns",
    "q": "heads’ queries (q)",
    "k": "heads’ keys (k)",
    "v": "heads’ values (v)",
}
"""The sites that a patch grid can patch, with their names on the page."""
PLACES = {
    "": "as suits the site",
    "position": "position by position",
    "role": "role by role",
    "all": "all positions together",
    "last": "the last token alone",
}
DIRECTIONS = {
    "denoising": "clean into the corrupted run",
    "noising": "corrupted into the clean run",
}
VIEWS = {"clean": "the clean prompt", "corrupted": "the corrupted prompt"}
SPECIAL = {"": "as plain text", "parsed": "as those tokens"}
"""How the text of a special token ("<|endoftext|>") in a prompt is read."""

CHAT = {"": "the text that is continued", "messages": "what a user says, or messages"}
"""Whether the model's chat template writes the prompts."""

_CHOICES: Mapping[str, Iterable[str]] = {
    "view": VIEWS,
    "site": SITES,
    "by": PLACES,
    "direction": DIRECTIONS,
    "special": SPECIAL,
    "chat": CHAT,
}
_HEAD = re.compile(r"\d{1,4}\.\d{1,4}", re.ASCII)


class Refusal(Exception):
    """A request that is refused, with the HTTP status and the reason."""

    def __init__(self, status: int, why: str, *, retry_after: int | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}


@dataclass(frozen=True)
class PageState:
    """The page's state.

    Attributes:
        prompt: the text that is continued; "" for BOS alone.
        corrupted: a partner to patch with; "" for none.
        answer, counterpart: what is compared, each of one token or of several; "" to let the model
            choose a token.
        readout: the position or role after which the next token is read; "" for the last token.
        view: which of the two prompts the panels are about.
        site, by, direction: of the patch grid.
        head: "layer.head" whose pattern is open; "" for none.
        part: whose card is open, as `results.components` spells it: "head 0.2", "neuron 4.312" or
            "mlp 4"; "" for none.
        special: "parsed" where the texts of special tokens are read as those tokens.
        chat: "messages" where prompts are conversations that the chat template writes.
        prefix: then, the start of the assistant's turn.
    """

    prompt: str = "This is a sentence."
    corrupted: str = ""
    answer: str = ""
    counterpart: str = ""
    view: str = "clean"
    site: str = "resid_pre"
    by: str = ""
    direction: str = "denoising"
    head: str = ""
    part: str = ""
    special: str = ""
    chat: str = ""
    prefix: str = ""
    readout: str = ""

    @property
    def texts(self) -> list[str]:
        """The prompts to run."""
        return [self.prompt, self.corrupted] if self.corrupted else [self.prompt]

    @property
    def row(self) -> int:
        """Which of them the panels are about."""
        return 1 if self.corrupted and self.view == "corrupted" else 0

    def query(self, **changes: str) -> str:
        """The query string that asks for this: the prompt, and what is not as usual."""
        page_state, usual = replace(self, **changes), PageState()
        said = {
            f.name: getattr(page_state, f.name)
            for f in fields(PageState)
            if f.name == "prompt" or getattr(page_state, f.name) != getattr(usual, f.name)
        }
        return urlencode(said)


def readable(entries: Iterable[tuple[str, str]]) -> PageState:
    """The valid part of a refused request, so that the page keeps what the user typed."""
    given = dict(entries)
    found = {name: given[name].replace("\r\n", "\n") for name in TEXTS if name in given}
    found |= {n: given[n] for n, choices in _CHOICES.items() if given.get(n, "?") in choices}
    return PageState(**found)


def read(entries: Iterable[tuple[str, str]]) -> PageState:
    """The state that a query's entries describe. Of several entries with one name the last counts:
    it is a pressed button's.

    Raises: Refusal for an unknown name, a word that is no choice, a text that is too long.
    """
    found: dict[str, str] = {}
    names = [f.name for f in fields(PageState)]
    for name, value in entries:
        if name not in names:
            raise Refusal(400, f"“{name[:40]}” means nothing here. Allowed: {', '.join(names)}.")
        # a form sends a line's end as two characters, a script as one
        found[name] = value.replace("\r\n", "\n")
    for name, choices in _CHOICES.items():
        if name in found and found[name] not in choices:
            allowed = ", ".join(filter(None, choices))
            raise Refusal(400, f"{name} “{found[name][:40]}”. Allowed: {allowed}.")
    for name, most in TEXTS.items():
        if len(found.get(name, "")) > most:
            raise Refusal(
                413,
                f"The {name} is {len(found[name]):,} characters long. Allowed: at most {most:,}.",
            )
    if found.get("head") and not _HEAD.fullmatch(found["head"]):
        raise Refusal(400, f"head “{found['head'][:40]}”. Allowed: layer.head, as in 3.1.")
    if found.get("part"):
        found["part"] = _part(found["part"])
    return PageState(**found)


def _part(text: str) -> str:
    """The name of a head, a neuron or an MLP layer in one spelling, of those that are read.

    Raises: Refusal for what is none of them.
    """
    part = read_component(text) if len(text) <= MOST_PART else None
    if part is None or part.side or part.kind not in ("head", "neuron", "mlp"):
        allowed = "head 3.1, neuron 3.512 or mlp 3, with the numbers of your part"
        raise Refusal(400, f"part “{text[:MOST_PART]}”. Allowed: {allowed}.")
    return str(part)
