"""Which family of edits is used for patching and the circuit, and why?

The user's own corrupted prompts come first, because they state the question. If there are none, or
too few are usable, the family is chosen that undoes the behaviour most reliably. The result names
the chosen family, the rejected ones and the prompts that were left out, with the reasons. Cost:
none; the scores come from `counterfactual.score`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from casestudy.behaviour.counterfactual import (
    GIVEN,
    LEAST_HALVES,
    LEAST_LOSS,
    NO_PARTNER,
    Excluded,
    Score,
    strongest,
)

LEAST_PAIRS = 6
"""Families with at least this many pairs are preferred, because some pairs can be held out."""

LEAST_BROUGHT = 0.75
"""The user's corrupted prompts are used if at least this share of the prompts has one."""

LEAST_USABLE = 0.5
"""If at least this share of the user's corrupted prompts is usable, fewer than `LEAST_PAIRS` are
enough."""


@dataclass(frozen=True)
class FamilyChoice:
    """The chosen family of edits, with the reasons.

    Attributes:
        score: of the family, over the pairs used; None if no family undoes the behaviour.
        why: the reason for the choice.
        passed_over: for each rejected family with pairs, and for the given partners, the reason.
    """

    score: Score | None
    why: str
    passed_over: dict[str, str]

    @property
    def dropped(self) -> tuple[Excluded, ...]:
        """The prompts that the chosen family leaves out, with the reasons."""
        return () if self.score is None else self.score.excluded

    def as_dict(self, index: Sequence[int] | None = None) -> dict[str, object]:
        """As stored in a manifest.

        Args:
            index: each scored prompt's index in the behaviour; by default its index in the scores.
        """
        found = self.score
        figures: dict[str, object] = {}
        if found is not None:
            dropped = [
                {"prompt": e.index if index is None else index[e.index], "why": e.why}
                for e in self.dropped
            ]
            figures = {"family": found.family, "n": found.n, "undoes": found.undoes}
            figures["dropped"] = dropped
        return {**figures, "why": self.why, "passed_over": self.passed_over}


def brought(scores: Sequence[Score], *, least: int = 2) -> Score | None:
    """The score of the user's own corrupted prompts, if enough of them are usable.

    Enough means: the share `LEAST_BROUGHT` of the prompts has one, and of these either
    `LEAST_PAIRS` or the share `LEAST_USABLE` is usable.

    Args:
        scores: from `score`, perhaps over some of their pairs.
        least: the smallest number of pairs in any case.
    """
    given = next((score for score in scores if score.family == GIVEN), None)
    if given is None:
        return None
    without = sum(e.why == NO_PARTNER for e in given.excluded)
    prompts = given.n + len(given.excluded)
    partners = prompts - without
    most_bring = partners >= LEAST_BROUGHT * prompts
    enough = given.n >= min(LEAST_PAIRS, max(least, LEAST_USABLE * partners))
    return given if most_bring and enough and given.n >= least else None


def choose_family(
    scores: Sequence[Score],
    *,
    named: str | None = None,
    least: int = 2,
    before_last: bool | None = None,
    surely: bool = True,
) -> FamilyChoice:
    """Choose the user's own corrupted prompts, or a family that reliably undoes the behaviour.

    The user's own corrupted prompts are chosen if enough of them are usable (see `brought`). They
    have to undo the behaviour like any family; if they do not, no family is chosen, and the reason
    is given. Among the other families, those that differ before the last token come first, because
    if only the last token differs all effects are there. Families of at least `LEAST_PAIRS` pairs
    come before smaller ones.

    Args:
        scores: from `score`.
        named: use this family, whether or not it reliably undoes the behaviour.
        least: the smallest number of pairs of a family.
        before_last: True uses only pairs that differ before their last token, False all pairs; by
            default True, and False if no such family undoes the behaviour.
        surely: False falls back on a family that does not reliably undo the behaviour, and gives
            the reason: the user's own, or the strongest.
    """
    among = [s for s in scores if named in (None, s.family)]
    places = (True, False) if before_last is None else (before_last,)
    choice = _undoing(among, least, places)
    if choice.score is None and not (surely and named is None):
        best = _strongest_unsure(among, least, places)
        passed = {k: why for k, why in choice.passed_over.items() if best and k != best.family}
        choice = FamilyChoice(best, choice.why, passed)
    return choice if named is None else _of_name(choice.score)


def _undoing(scores: Sequence[Score], least: int, places: Sequence[bool]) -> FamilyChoice:
    """The choice among families that reliably undo the behaviour."""
    own = brought([s.before_last if places[-1] else s for s in scores], least=least)
    if own is not None:
        return _of_own(scores, own)
    sides = {where: _placed(scores, where, least) for where in places}
    for many in (LEAST_PAIRS, least):
        for where, found in sides.items():
            fit = [s for s in found if s.undoes and s.n >= many]
            best = strongest(fit, before_last=False)
            if best is not None:
                return FamilyChoice(best, _chosen(best, where), _passed_over(scores, best))
    return FamilyChoice(None, _NONE_UNDOES, _passed_over(scores, None))


def _strongest_unsure(scores: Sequence[Score], least: int, places: Sequence[bool]) -> Score | None:
    """The family to measure where none reliably undoes the behaviour.

    Families of at least `LEAST_PAIRS` pairs come first: three pairs may all change sign by luck.
    """
    for where in places:
        found = _placed(scores, where, least)
        own = brought(found, least=least)
        many = [s for s in found if s.n >= LEAST_PAIRS]
        best = strongest([own] if own else many or found, before_last=False)
        if best is not None:
            return best
    return None


def _placed(scores: Sequence[Score], before_last: bool, least: int) -> list[Score]:
    """The families of at least `least` pairs, over all pairs or those that differ before the last
    token."""
    return [s for s in (s.before_last if before_last else s for s in scores) if s.n >= least]


def _of_name(score: Score | None) -> FamilyChoice:
    """The choice of a family that was asked for by name."""
    if score is None:
        return FamilyChoice(None, "asked for by name: it has too few pairs here", {})
    sure = "undoes" if score.undoes else "does not surely undo"
    return FamilyChoice(score, f"asked for by name; {sure} the behaviour: {_effect(score)}", {})


def _of_own(scores: Sequence[Score], own: Score) -> FamilyChoice:
    """The user's own corrupted prompts, if they undo the behaviour."""
    others = {s.family: _YIELDS for s in scores if s.n and s.family != own.family}
    if own.undoes:
        why = f"{_OWN} come before edits found here: {_effect(own)}{_left_out(own)}"
        return FamilyChoice(own, why, others)
    return FamilyChoice(
        None,
        f"{_OWN} do not surely undo the behaviour: {_effect(own)}",
        {own.family: f"does not surely undo the behaviour: {_effect(own)}", **others},
    )


def _left_out(own: Score) -> str:
    """How many of the user's corrupted prompts are usable, and the reasons for the others."""
    reasons = Counter(e.why for e in own.excluded if e.why != NO_PARTNER)
    if not reasons:
        return ""
    listed = "; ".join(f"{why} ({count})" for why, count in reasons.most_common())
    return f"; {own.n} of the {own.n + reasons.total()} given can be used, the others not: {listed}"


_OWN = "the corrupted prompts that were given"
_YIELDS = "corrupted prompts were given, which come first"

_NONE_UNDOES = (
    f"no family of minimal edits surely undoes the behaviour: by the lower ends of 95 % intervals, "
    f"{LEAST_HALVES:.0%} of pairs should lose half of the difference, or pairs lose "
    f"{LEAST_LOSS:.0%} of it on average"
)


def _chosen(score: Score, before_last: bool) -> str:
    where = "before the last token" if before_last else "at the last token or before"
    return (
        f"“{score.family}”, whose {score.n} pairs differ {where}, undoes the behaviour most "
        f"surely: {_effect(score)}"
    )


def _effect(score: Score) -> str:
    lost, lower, upper = score.loss
    ends = "" if math.isnan(lower) else f", 95 % interval {lower:.0%} to {upper:.0%}"
    return (
        f"{score.halves} of {score.n} pairs lose half of the difference, and pairs lose "
        f"{lost:.0%} of it on average{ends}"
    )


def _passed_over(scores: Sequence[Score], best: Score | None) -> dict[str, str]:
    """For each rejected family, the reason."""
    chosen = None if best is None else best.family
    tried = [s for s in scores if s.n or s.family == GIVEN]
    return {s.family: _why_not(s, best) for s in tried if s.family != chosen}


def _why_not(score: Score, best: Score | None) -> str:
    before = score.before_last
    if score.family == GIVEN and score.excluded:
        prompts = score.n + len(score.excluded)
        without = sum(e.why == NO_PARTNER for e in score.excluded)
        brought = f"{prompts - without} bring one; " if without else ""
        return f"too few can be used: {score.n} of {prompts} ({brought}{score.why})"
    if not score.undoes:
        return f"does not surely undo the behaviour: {_effect(score)}"
    if best is not None and score.n < LEAST_PAIRS <= best.n:
        return f"{score.n} pairs are few: {_effect(score)}"
    if before.n and not before.undoes:
        return f"before the last token it does not: {_effect(before)}"
    where = "" if before.n else "differs in the last token only: "
    return f"{where}less sure: {_effect(score)}"
