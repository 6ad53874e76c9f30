"""How is an answer of several tokens read, token by token?

log p(answer) is the sum over its tokens of log p(token | prompt and the tokens before it). A
contrast of two answers is the difference of the two sums. Tokens that both share at their start
have the same log p on both sides and cancel; they are read as part of the prompt. At the first
token that differs, both sides are read at one place, and log p(a) - log p(b) is their logit
difference. Behind it each answer goes on alone. So every `Step` is one place in one row of tokens,
with a token that counts for the answer, one that counts against it, or both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from casestudy.behaviour.prompts import Prompt
from casestudy.behaviour.readouts import row_of, text_of
from casestudy.errors import BehaviourError, CasestudyError, TokenError, one_of
from casestudy.model.notices import Notice
from casestudy.model.tokens import Tokenizer

Scoring = Literal["sum", "mean", "first"]
"""How the tokens of an answer count: their sum; their mean, each answer over its own tokens; or the
first token in which the two differ, alone, which is what tools without a choice read."""

MOST = 256
"""Tokens an answer may have: each of them has an account of its own."""


@dataclass(frozen=True)
class Step:
    """One place at which an answer is read.

    Attributes:
        place: of the tokens among their answer's, from 0.
        before: the tokens of the answer that stand before it.
        answer: the token that counts for the answer; None where only the counterpart is read.
        counterpart: the token that counts against it; None where only the answer is read.
        weight: of its value in the whole.
    """

    place: int
    before: tuple[int, ...]
    answer: int | None
    counterpart: int | None
    weight: float = 1.0


@dataclass(frozen=True)
class Steps:
    """A prompt's answer and counterpart, ready to be read.

    Attributes:
        row: the prompt's ids, BOS included, up to where it is read.
        answer, counterpart: both sides' ids.
        steps: the places, the first difference first, then the answer's, then the counterpart's.
        notices: where prompt and answer, read as one text, have other tokens than apart.
    """

    row: tuple[int, ...]
    answer: tuple[int, ...]
    counterpart: tuple[int, ...]
    steps: tuple[Step, ...]
    notices: tuple[Notice, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def several(self) -> bool:
        """Whether one of the two has several tokens."""
        return len(self.answer) > 1 or len(self.counterpart) > 1

    @property
    def shared(self) -> int:
        """How many tokens both sides share at their start."""
        return common_start(self.answer, self.counterpart)


def steps_of(
    tokenizer: Tokenizer, prompt: Prompt, score: Scoring = "sum", *, number: int = 0
) -> Steps:
    """Where the answer and the counterpart of a prompt are read.

    Args:
        tokenizer: whose ids.
        prompt: with both its answer and its counterpart, of one token or several.
        score: see `Scoring`.
        number: of the prompt, in messages.

    Raises: BehaviourError for another score, and where one of the two is missing or both are the
        same tokens; TokenError for an empty answer; PromptError where prompt and answer together
        are too long.
    """
    one_of("scoring", score, get_args(Scoring), BehaviourError)
    if prompt.answer is None or prompt.counterpart is None:
        lacks = "answer" if prompt.answer is None else "counterpart"
        raise BehaviourError(
            f"prompt {number} has no {lacks}",
            allowed="both, since which answers are compared cannot be chosen for several tokens",
        )
    row, text = row_of(tokenizer, prompt, number=number), text_of(tokenizer, prompt)
    for side in (prompt.answer, prompt.counterpart):
        if not side:
            raise TokenError(f"an empty answer of prompt {number}", allowed="at least one token")
    sides = [tokenizer.continuation(text, side) for side in (prompt.answer, prompt.counterpart)]
    a, b = (side.ids for side in sides)
    if a == b:
        raise BehaviourError(
            f"prompt {number}: answer {prompt.answer!r} and counterpart {prompt.counterpart!r} are "
            "the same tokens",
            allowed="two different answers",
        )
    longest = max(a, b, key=len)
    if len(longest) > MOST:
        raise TokenError(
            f"an answer of {len(longest):,} tokens to prompt {number}",
            allowed=f"at most {MOST}",
            hint="Read the first tokens of it, or put its start into the prompt",
        )
    tokenizer.check_length([*row, *longest[:-1]], f"prompt {number} with its answer")
    notices = tuple(notice for side in sides for notice in side.notices)
    return Steps(tuple(row), a, b, tuple(_steps(a, b, score)), notices)


def has_several(tokenizer: Tokenizer, prompt: Prompt) -> bool:
    """Whether a prompt has both answers, and one of them has several tokens.

    Raises: TokenError for an empty answer, or an id that no token has.
    """
    if prompt.answer is None or prompt.counterpart is None:
        return False
    text = text_of(tokenizer, prompt)
    sides = (prompt.answer, prompt.counterpart)
    return any(len(tokenizer.continuation(text, side).ids) > 1 for side in sides)


def any_several(tokenizer: Tokenizer, prompts: Iterable[Prompt]) -> bool:
    """Whether any of these prompts has answers of several tokens; those that cannot be read have
    not."""
    for prompt in prompts:
        with suppress(CasestudyError):
            if has_several(tokenizer, prompt):
                return True
    return False


def _steps(a: tuple[int, ...], b: tuple[int, ...], score: Scoring) -> list[Step]:
    start = common_start(a, b)
    if score == "mean" and len(a) != len(b):
        # Shared tokens do not cancel: each answer's mean is over its own number of tokens.
        return [Step(i, a[:i], a[i], None, 1 / len(a)) for i in range(len(a))] + [
            Step(i, b[:i], None, b[i], 1 / len(b)) for i in range(len(b))
        ]
    weight = 1 / len(a) if score == "mean" else 1.0
    both = start < min(len(a), len(b))
    steps = [Step(start, a[:start], a[start], b[start], weight)] if both else []
    if score == "first":
        if not both:
            raise BehaviourError(
                "one answer is the start of the other: no first token in which they differ",
                allowed="the sum or the mean of such answers",
            )
        return steps
    after = start + both
    steps += [Step(i, a[:i], a[i], None, weight) for i in range(after, len(a))]
    return steps + [Step(i, b[:i], None, b[i], weight) for i in range(after, len(b))]


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both share at their start."""
    same = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(same, min(len(a), len(b)))
