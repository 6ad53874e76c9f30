"""On which family of edits is a behaviour measured, and why on that one?

The corrupted partners that prompts bring come first: whoever wrote them asked about them. Where
there are none, or too few can be used, the family is taken whose edits undo the behaviour most
surely. What was chosen, what was passed over and which prompts were dropped is said with the
reasons. Cost: none; the scores are `counterfactual.score`'s.
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
"""Pairs from which a family is preferred to one of fewer: some can then be held out."""

LEAST_BROUGHT = 0.75
"""Share of prompts that bring a partner, from which the partners are what was asked about."""

LEAST_USABLE = 0.5
"""Share of the partners brought that can be used, from which fewer than `LEAST_PAIRS` are
enough."""


@dataclass(frozen=True)
class FamilyChoice:
    """Which family of edits is measured on, and why.

    Attributes:
        score: the family's, over the pairs that count; None where no family undoes the behaviour.
        why: in words.
        passed_over: why not, by family, of those with pairs.
    """

    score: Score | None
    why: str
    passed_over: dict[str, str]

    @property
    def dropped(self) -> tuple[Excluded, ...]:
        """The prompts that the chosen family leaves out, with the reasons."""
        return () if self.score is None else self.score.excluded

    def as_dict(self, index: Sequence[int] | None = None) -> dict[str, object]:
        """As a manifest holds it.

        Args:
            index: each scored prompt's place in the behaviour; as scored by default.
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
    """The score of the partners that prompts bring, where enough of them can be used.

    Enough: `LEAST_BROUGHT` of the prompts bring one, and `LEAST_PAIRS` of these, or at least
    `LEAST_USABLE` of them, can be used.

    Args:
        scores: of `score`, perhaps over some of their pairs.
        least: pairs that there must be in any case.
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
    scores: Sequence[Score], *, least: int = 2, before_last: bool | None = None
) -> FamilyChoice:
    """The family to measure on: the partners that prompts bring, or one that surely undoes the
    behaviour.

    Partners that prompts bring are chosen wherever enough of them can be used (see `brought`). They
    are held to undoing the behaviour like any other: where they do not, there is no choice, and
    that is said. Of other families, those that differ before the last token come first, since where
    only the last token differs everything happens there; those of `LEAST_PAIRS` pairs and more come
    before smaller ones.

    Args:
        scores: of `score`.
        least: pairs that a family must have.
        before_last: count only pairs that differ before their last token (True) or all (False); by
            default the first, and the second where no such family undoes the behaviour.
    """
    own = brought([s.before_last for s in scores] if before_last else scores, least=least)
    if own is not None:
        return _of_own(scores, own)
    places = (True, False) if before_last is None else (before_last,)
    sides = {
        where: [s for s in (s.before_last if where else s for s in scores) if s.n >= least]
        for where in places
    }
    for many in (LEAST_PAIRS, least):
        for where, found in sides.items():
            fit = [s for s in found if s.undoes and s.n >= many]
            best = strongest(fit, before_last=False)
            if best is not None:
                return FamilyChoice(best, _chosen(best, where), _passed_over(scores, best))
    return FamilyChoice(None, _NONE_UNDOES, _passed_over(scores, None))


def _of_own(scores: Sequence[Score], own: Score) -> FamilyChoice:
    """The partners that prompts bring, if they undo the behaviour."""
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
    """How many of the partners brought can be used, and why not the others."""
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
    """Why not, by family."""
    chosen = None if best is None else best.family
    return {s.family: _why_not(s, best) for s in scores if s.n and s.family != chosen}


def _why_not(score: Score, best: Score | None) -> str:
    before = score.before_last
    if score.family == GIVEN and score.excluded:
        return f"too few can be used: {score.n} of {score.n + len(score.excluded)} ({score.why})"
    if not score.undoes:
        return f"does not surely undo the behaviour: {_effect(score)}"
    if best is not None and score.n < LEAST_PAIRS <= best.n:
        return f"{score.n} pairs are few: {_effect(score)}"
    if before.n and not before.undoes:
        return f"before the last token it does not: {_effect(before)}"
    where = "" if before.n else "differs in the last token only: "
    return f"{where}less sure: {_effect(score)}"
