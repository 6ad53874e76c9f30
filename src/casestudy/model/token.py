"""What is one token, and how does a user name an answer?

Tokens are identified by id, not by text: several ids of a vocabulary may share a text, and after
another prompt the same text may be another id. So a token is an id, with a label for display.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from casestudy.errors import TokenError
from casestudy.model.notices import Notice

_BY_ID = re.compile(r"id:(\d+(?:,\d+)*)", re.ASCII)


@dataclass(frozen=True)
class Token:
    """One token of a vocabulary.

    Attributes:
        id: its number in the vocabulary; all computations use it.
        label: for display only, never looked up; see `Tokenizer.label`.
    """

    id: int
    label: str

    def __str__(self) -> str:
        return self.label

    @property
    def by_id(self) -> str:
        """The text that names exactly this token: "id:1234"."""
        return f"id:{self.id}"


def by_ids(tokens: Sequence[Token]) -> str:
    """How to ask for these tokens and no others: "id:12,345"."""
    return "id:" + ",".join(str(token.id) for token in tokens)


AnswerLike = str | int | Token | Sequence[int]
"""An answer: a text, "id:1234" or "id:12,345", a token, an id or a list of ids."""


@dataclass(frozen=True)
class Continuation:
    """An answer as the tokens that follow a prompt.

    Attributes:
        ids: the answer's tokens, in order; at least one.
        notices: how the text was read, where that is not obvious.
    """

    ids: tuple[int, ...]
    notices: tuple[Notice, ...] = ()


def ids_given(answer: AnswerLike) -> list[int] | None:
    """The ids of an answer that is given by id; None for a text.

    Raises: TokenError for an empty list.
    """
    if isinstance(answer, str):
        match = _BY_ID.fullmatch(answer)
        return [int(id) for id in match[1].split(",")] if match else None
    if isinstance(answer, Token):
        return [answer.id]
    ids = [answer] if isinstance(answer, int) else [int(id) for id in answer]
    if not ids:
        raise TokenError("the answer is empty", allowed="at least one token")
    return ids
