"""Which minimal edit of a prompt removes the behaviour?

A family is one kind of edit of the text ("final stop to comma", "first letter lowered"). A clean
prompt and its corrupted prompt are aligned token by token if they have the same number of tokens,
by role if they do not but share roles after the edit, and otherwise excluded with the reason.
Families are scored by their effect on the contrast: if the edit does not remove the behaviour,
patching cannot explain it. Cost: two tokenisations per prompt and family, one forward pass per
prompt and one per pair.

If only the last token of a pair differs, all effects are at the last position by construction. So
the strongest family for grids by position has to differ before the last token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import regex
from numpy.typing import NDArray

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Prompt, Role
from casestudy.behaviour.readouts import partner_of, row_of, text_of
from casestudy.behaviour.roles import STANDARD_ROLES, roles_of
from casestudy.errors import BehaviourError, CasestudyError
from casestudy.model.model import Model
from casestudy.results.stats import mean_interval, ratio_in_parts

GIVEN = "given"
"""The family of the corrupted prompts that the user gave."""

NO_PARTNER = "no corrupted partner"
"""The reason why a prompt without a corrupted prompt is not in that family."""

NO_ROLE = "the edit changes the number of tokens and leaves no role to align by"
"""Why a pair of unequal length is not in a family, where the two share no role from the first
changed token on."""

LEAST_HALVES = 0.2
"""A family undoes the behaviour if at least this share of pairs (lower end of the interval) loses
half of the contrast: one pair of one, or five of ten."""

LEAST_LOSS = 0.25
"""A family also undoes it if the mean loss (lower end) is at least this share of the contrast."""

Aligned = Literal["role", "last"]
"""What prompts of unequal length may be compared at."""

_ROLES = {role.name: role for role in STANDARD_ROLES}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_STOP = r"(?=\.(?:\s|\Z))"


@dataclass(frozen=True)
class Family:
    """One kind of edit.

    Attributes:
        name: its label in tables.
        edit: maps a prompt's text to its corrupted text; None if the edit does not apply.
        lacks: what is missing from a prompt to which the edit does not apply; part of the reason
            for its exclusion.
    """

    name: str
    edit: Callable[[str], str | None]
    lacks: str


@dataclass(frozen=True)
class Counterfactual:
    """A clean prompt with its corrupted prompt.

    Attributes:
        family: the kind of edit.
        index: the prompt's index in the list given to `propose`.
        clean, corrupted: the two prompts.
        first_difference: the index of the first token that differs, BOS included.
        last: the index of the clean prompt's last token.
        aligned: "position" if both have the same number of tokens, otherwise "role".
    """

    family: str
    index: int
    clean: Prompt
    corrupted: Prompt
    first_difference: int
    last: int
    aligned: Literal["position", "role"]

    @property
    def before_last(self) -> bool:
        """Whether the two differ before the last token, as patching by position needs."""
        return self.first_difference < self.last


@dataclass(frozen=True)
class Excluded:
    """A prompt that a family could not corrupt, with the reason."""

    family: str
    index: int
    why: str


@dataclass(frozen=True)
class Proposals:
    """The corrupted prompts of every family.

    Attributes:
        families: their names, in order; the user's own corrupted prompts last.
        pairs: every usable pair.
        excluded: every other (family, prompt), with the reason.
    """

    families: tuple[str, ...]
    pairs: tuple[Counterfactual, ...]
    excluded: tuple[Excluded, ...]


@dataclass(frozen=True)
class Score:
    """The effect of one family on the contrast.

    Attributes:
        family: its name.
        pairs: the pairs scored.
        clean, corrupted: their contrasts, pair by pair, both for the clean prompt's tokens.
        excluded: the prompts that have no pair or no contrast.
    """

    family: str
    pairs: tuple[Counterfactual, ...]
    clean: NDArray[np.float64]
    corrupted: NDArray[np.float64]
    excluded: tuple[Excluded, ...]

    @property
    def n(self) -> int:
        """The number of scored pairs."""
        return len(self.pairs)

    @cached_property
    def flips(self) -> int:
        """The number of pairs whose contrast changes sign."""
        return int((self.clean * self.corrupted < 0).sum())

    @cached_property
    def halves(self) -> int:
        """The number of pairs that lose at least half of the contrast or change its sign."""
        return int((self.corrupted * np.sign(self.clean) <= np.abs(self.clean) / 2).sum())

    @property
    def flip_share(self) -> float:
        """The share of pairs that change sign; NaN without pairs."""
        return self.flips / self.n if self.n else float("nan")

    @property
    def half_share(self) -> float:
        """The share of pairs that lose half; NaN without pairs."""
        return self.halves / self.n if self.n else float("nan")

    @cached_property
    def half_lower(self) -> float:
        """Lower end of Wilson's 95 % interval of `half_share`; NaN without pairs."""
        return wilson_lower(self.halves, self.n) if self.n else float("nan")

    @cached_property
    def loss(self) -> tuple[float, float, float]:
        """The mean loss, as a share of the mean absolute clean contrast, with the ends of its 95 %
        interval over pairs; NaN if there is none."""
        size = np.abs(self.clean)
        lost = (self.clean - self.corrupted) * np.sign(self.clean)
        parts = ratio_in_parts(lost[None], np.zeros_like(size), size)
        mean, lower, upper, _ = mean_interval(parts.T)
        return float(mean[0]), float(lower[0]), float(upper[0])

    @property
    def undoes(self) -> bool:
        """Whether the edit reliably removes some of the behaviour. By the lower ends of the
        intervals, either `LEAST_HALVES` of the pairs lose half and the mean loss is positive, or
        the mean loss is `LEAST_LOSS`. If two of three pairs lose half and the third gains, the
        loss is not reliable."""
        if not self.n:
            return False
        least = self.loss[1]
        return least >= LEAST_LOSS or (self.half_lower >= LEAST_HALVES and not least <= 0)

    @property
    def why(self) -> str:
        """The reasons for exclusion with their counts, the most frequent first."""
        reasons = Counter(excluded.why for excluded in self.excluded).most_common()
        return "; ".join(f"{why} ({count})" for why, count in reasons)

    def only(self, fits: Callable[[Counterfactual], bool], why: str | None = None) -> Score:
        """The same score over some of the pairs. If `why` is given, the others are excluded with
        this reason."""
        chosen = [i for i, pair in enumerate(self.pairs) if fits(pair)]
        left = [pair.index for pair in self.pairs if not fits(pair)] if why else []
        out = (*self.excluded, *(Excluded(self.family, index, why or "") for index in left))
        return replace(
            self,
            pairs=tuple(self.pairs[i] for i in chosen),
            clean=self.clean[chosen],
            corrupted=self.corrupted[chosen],
            excluded=tuple(sorted(out, key=lambda e: e.index)),
        )

    @property
    def before_last(self) -> Score:
        """The same score over the pairs that differ before their last token."""
        return self.only(lambda pair: pair.before_last, "differs in the last token only")

    @property
    def of_equal_length(self) -> Score:
        """The same score over the pairs whose prompts have the same number of tokens."""
        why = "its partner has another number of tokens"
        return self.only(lambda pair: pair.aligned == "position", why)


def _final_stop(becomes: str) -> Callable[[str], str | None]:
    def edit(text: str) -> str | None:
        spans = _ROLES["final full stop"].spans(text)
        if not spans:
            return None
        start, end = spans[-1]
        return text[:start] + becomes + text[end:]

    return edit


def _lowered(role: str) -> Callable[[str], str | None]:
    """Lower the first letter of each of a role's words."""

    def edit(text: str) -> str | None:
        for start, _ in _ROLES[role].spans(text):
            text = text[:start] + text[start].lower() + text[start + 1 :]
        return text

    return edit


def _repeated_lowered(text: str) -> str | None:
    words = regex.findall(r"\p{L}+", text)
    counts = Counter(word.lower() for word in words)
    if not any(counts[word.lower()] > 1 and word != word.lower() for word in words):
        return None

    def lower(match: regex.Match[str]) -> str:
        word = match.group()
        return word.lower() if counts[word.lower()] > 1 else word

    return regex.sub(r"\p{L}+", lower, text)


def _names_swapped(text: str) -> str | None:
    """After "A and B", every later A becomes B and the reverse."""
    pair = regex.search(r"\b(\p{Lu}\p{Ll}+) and (\p{Lu}\p{Ll}+)\b", text)
    if pair is None:
        return None
    a, b = pair.groups()
    other = {a: b, b: a}
    head, tail = text[: pair.end()], text[pair.end() :]
    swapped = regex.sub(rf"\b(?:{a}|{b})\b", lambda match: other[match.group()], tail)
    return None if swapped == tail else head + swapped


def _year_changed(text: str) -> str | None:
    """The first full year becomes year 01 of its century, as in Hanna et al. 2023."""
    year = regex.search(r"(?<!\d)((?:1\d|20)\d\d)(?!\d)", text)
    if year is None:
        return None
    return text[: year.start() + 2] + "01" + text[year.end() :]


def _digit_to_word(text: str) -> str | None:
    found = list(regex.finditer(rf"(?<![\d.,])\d{_STOP}", text))
    if not found:
        return None
    start, end = found[-1].span()
    return text[:start] + _DIGITS[int(text[start:end])] + text[end:]


def _word_to_digit(text: str) -> str | None:
    words = "|".join(_DIGITS)
    found = list(regex.finditer(rf"\b(?:{words}){_STOP}", text))
    if not found:
        return None
    start, end = found[-1].span()
    return text[:start] + str(_DIGITS.index(text[start:end])) + text[end:]


FAMILIES: tuple[Family, ...] = (
    Family("final stop to comma", _final_stop(","), "no final full stop"),
    Family("final stop to semicolon", _final_stop(";"), "no final full stop"),
    Family("final stop to colon", _final_stop(":"), "no final full stop"),
    Family("final stop to “ and”", _final_stop(" and"), "no final full stop"),
    Family("first letter lowered", _lowered("first word"), "no word"),
    Family("sentence starts lowered", _lowered("sentence starts"), "no word"),
    Family("all lowered", str.lower, "no letter"),
    Family("all upper-cased", str.upper, "no letter"),
    Family("repeated words lowered", _repeated_lowered, "no repeated word with a capital"),
    Family("names swapped", _names_swapped, "no two names of which one returns"),
    Family("year changed", _year_changed, "no year"),
    Family("digit to word before a stop", _digit_to_word, "no digit before a stop"),
    Family("word to digit before a stop", _word_to_digit, "no number word before a stop"),
)
"""The families tried on every prompt, in addition to the user's own corrupted prompts."""

FAMILY_NAMES = (GIVEN, *(family.name for family in FAMILIES))


def propose(
    model: Model,
    prompts: Sequence[Prompt | str],
    families: Sequence[Family] = FAMILIES,
    *,
    roles: Iterable[Role] = (),
    aligned: Aligned = "role",
) -> Proposals:
    """Edit every prompt by every family; align each pair, or exclude it with the reason.

    Args:
        model: whose tokens are aligned.
        prompts: a prompt's own `corrupted` prompt is in the family "given".
        families: the kinds of edit.
        roles: for the alignment, in addition to the standard roles.
        aligned: what a pair of unequal length must share: a "role" from the first changed token
            on, or nothing but its "last" token.
    """
    whole = [Prompt(p) if isinstance(p, str) else p for p in prompts]
    roles = tuple(roles)
    pairs: list[Counterfactual] = []
    excluded: list[Excluded] = []
    given = any(prompt.corrupted is not None for prompt in whole)
    names = (*(family.name for family in families), *((GIVEN,) if given else ()))
    for name in names:
        family = next((f for f in families if f.name == name), None)
        for i, prompt in enumerate(whole):
            lacks = NO_PARTNER if family is None else family.lacks
            try:
                if family is None:
                    text = prompt.corrupted
                else:
                    text = family.edit(text_of(model.tokenizer, prompt))
                if text is None:
                    raise BehaviourError(lacks)
                # A prompt's own partner is read where the prompt is; an edit is of what is read.
                corrupted = partner_of(prompt, text) if family is None else Prompt(text)
                pairs.append(_aligned(model, name, i, prompt, corrupted, roles, aligned))
            except CasestudyError as problem:
                # the tokenizer numbers the prompts of its own call, which had one prompt
                why = problem.came.removeprefix("prompt 0 ")
                excluded.append(Excluded(name, i, why))
    return Proposals(names, tuple(pairs), tuple(excluded))


def _aligned(
    model: Model,
    family: str,
    index: int,
    prompt: Prompt,
    corrupted: Prompt,
    roles: tuple[Role, ...],
    by: Aligned,
) -> Counterfactual:
    """The pair, if its tokens can be aligned.

    Raises: CasestudyError with the reason if not, or if the edited text cannot be read.
    """
    if corrupted.text == text_of(model.tokenizer, prompt):
        raise BehaviourError("the edit changes nothing")
    clean, other = (row_of(model.tokenizer, side) for side in (prompt, corrupted))
    if clean == other:
        read = "" if prompt.readout is None else " up to where the prompt is read"
        raise BehaviourError(f"the edit changes no token{read}")
    same = [a == b for a, b in zip(clean, other, strict=False)]
    first = same.index(False) if False in same else len(same)
    if len(clean) != len(other) and by == "role":
        here = roles_of(model.tokenizer, prompt, clean, roles)
        there = roles_of(model.tokenizer, corrupted, other, roles)
        shared = [
            name
            for name, places in here.items()
            if len(there.get(name, ())) == len(places) and places[-1] >= first
        ]
        if not shared:
            raise BehaviourError(NO_ROLE)
    return Counterfactual(
        family,
        index,
        prompt,
        corrupted,
        first,
        len(clean) - 1,
        "position" if len(clean) == len(other) else "role",
    )


def without_contrast(proposals: Proposals, contrast: Contrast) -> dict[int, str]:
    """The pairs whose prompt has no contrast, by number, with this reason."""
    undefined = contrast.weights.isnan().any(1).tolist()
    without = [i for i, pair in enumerate(proposals.pairs) if undefined[pair.index]]
    return dict.fromkeys(without, "the prompt has no contrast")


def scored(
    proposals: Proposals, values: NDArray[np.float64], left_out: Mapping[int, str]
) -> tuple[Score, ...]:
    """Every family's score from its pairs' values, families in order.

    Args:
        proposals: from `propose`.
        values: (2, pair) of the clean and of the corrupted prompt, pair by pair.
        left_out: the pairs without a value, by number, each with the reason.
    """
    clean, edited = values
    scores = []
    for family in proposals.families:
        mine = [i for i, pair in enumerate(proposals.pairs) if pair.family == family]
        usable = [i for i in mine if i not in left_out]
        excluded = [e for e in proposals.excluded if e.family == family]
        excluded += [
            Excluded(family, proposals.pairs[i].index, left_out[i]) for i in mine if i in left_out
        ]
        scores.append(
            Score(
                family,
                tuple(proposals.pairs[i] for i in usable),
                clean[usable],
                edited[usable],
                tuple(sorted(excluded, key=lambda e: e.index)),
            )
        )
    return tuple(scores)


def strongest(scores: Sequence[Score], *, before_last: bool = True) -> Score | None:
    """The family that undoes the behaviour most reliably, or None if no family has a pair.

    Families are ranked by the lower end of a 95 % interval (Wilson 1927) of the share of pairs that
    change sign, so that one pair by chance does not win against many; then by the lower end for the
    share that loses half; then by the mean loss.

    Args:
        scores: from `score`.
        before_last: count only pairs that differ before their last token, as grids by position
            need.
    """
    candidates = [score.before_last if before_last else score for score in scores]
    candidates = [score for score in candidates if score.n]
    if not candidates:
        return None

    def strength(score: Score) -> tuple[float, float, float]:
        loss = (score.clean - score.corrupted) * np.sign(score.clean)
        return (
            round(wilson_lower(score.flips, score.n), 9),
            round(wilson_lower(score.halves, score.n), 9),
            float(loss.mean()),
        )

    return max(candidates, key=strength)


def wilson_lower(hits: int, n: int, z: float = 1.959964) -> float:
    """Lower end of the 95 % score interval of a share."""
    share = hits / n
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt((share * (1 - share) + z * z / (4 * n)) / n)
    return (middle - spread) / (1 + z * z / n)
