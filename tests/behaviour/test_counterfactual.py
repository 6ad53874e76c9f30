"""Minimal edits are aligned with their prompts, scored on what they undo, or excluded aloud."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import (
    FAMILIES,
    GIVEN,
    NO_PARTNER,
    Counterfactual,
    Excluded,
    Score,
    propose,
    strongest,
)
from casestudy.behaviour.family_choice import brought, choose_family
from casestudy.behaviour.prompts import Prompt
from casestudy.measure.edit_scores import score
from casestudy.measure.patching import counterfactual_table, pairs_of
from casestudy.model.decoder import run
from casestudy.model.model import Model
from tests.behaviour.scores import scored

EDITS = {family.name: family.edit for family in FAMILIES}


@pytest.mark.parametrize(
    ("family", "text", "edited"),
    [
        ("final stop to comma", "It rains. Go.", "It rains. Go,"),
        ("final stop to semicolon", 'He said "Go."', 'He said "Go;"'),
        ("final stop to colon", "Go.", "Go:"),
        ("final stop to “ and”", "Go.", "Go and"),
        ("final stop to comma", "Is it 0.5 of them", None),
        ("first letter lowered", "It rains. Go.", "it rains. Go."),
        ("first letter lowered", "“It” rains.", "“it” rains."),
        ("sentence starts lowered", "It rains. Go on.", "it rains. go on."),
        ("all lowered", "It Rains.", "it rains."),
        ("all upper-cased", "It rains.", "IT RAINS."),
        ("repeated words lowered", "Go. Go. Go.", "go. go. go."),
        ("repeated words lowered", "Go to it. It is here.", "Go to it. it is here."),
        ("repeated words lowered", "Go on.", None),
        (
            "names swapped",
            "When Mary and John left, John gave milk to",
            "When Mary and John left, Mary gave milk to",
        ),
        ("names swapped", "When Mary and John left, they gave milk to", None),
        ("names swapped", "Mary gave milk to", None),
        ("year changed", "from 1732 to the year 17", "from 1701 to the year 17"),
        ("year changed", "about 17 or 17320 of them", None),
        ("digit to word before a stop", "is not 0.", "is not zero."),
        ("digit to word before a stop", "is 10.", None),
        ("digit to word before a stop", "is 1.5 or so", None),
        ("word to digit before a stop", "is not zero.", "is not 0."),
        ("word to digit before a stop", "is not here.", None),
    ],
)
def test_each_family_makes_its_edit(family: str, text: str, edited: str | None) -> None:
    assert EDITS[family](text) == edited


def test_aligned_pairs_have_as_many_tokens_and_say_where_they_differ(toy_model: Model) -> None:
    proposals = propose(toy_model, ["It is here. It is there.", "It was here."])
    assert proposals.families == tuple(family.name for family in FAMILIES)
    seen = {(pair.family, pair.index) for pair in proposals.pairs}
    assert seen.isdisjoint((e.family, e.index) for e in proposals.excluded)
    assert len(seen) + len(proposals.excluded) == 2 * len(FAMILIES)
    for pair in proposals.pairs:
        clean, corrupted = (
            toy_model.tokenize(p.text).rows()[0] for p in (pair.clean, pair.corrupted)
        )
        first = pair.first_difference
        assert clean[:first] == corrupted[:first]
        assert clean[first] != corrupted[first]
        assert (pair.aligned == "position") == (len(clean) == len(corrupted))
        assert pair.last == len(clean) - 1
    stop = next(p for p in proposals.pairs if p.family == "final stop to comma")
    assert not stop.before_last
    start = next(p for p in proposals.pairs if p.family == "first letter lowered")
    assert start.before_last
    assert start.first_difference == 1  # after BOS


def test_exclusions_say_why(toy_model: Model) -> None:
    long = "x " * 100 + "."
    prompts = ["it is here.", "go,", Prompt("It is.", corrupted="? ! ? ! ? !")]
    proposals = propose(toy_model, [*prompts, "A" * 63 + "."])
    why = {(e.family, e.index): e.why for e in proposals.excluded}
    assert why["first letter lowered", 0] == "the edit changes nothing"
    assert why["final stop to comma", 1] == "no final full stop"
    assert why["names swapped", 0] == "no two names of which one returns"
    assert "leaves no role to align by" in why[GIVEN, 2]
    assert why[GIVEN, 0] == "no corrupted partner"
    with pytest.raises(ValueError, match="tokens long"):
        toy_model.tokenize(long)
    (given,) = (
        e
        for e in propose(toy_model, [Prompt("It is.", corrupted=long)]).excluded
        if e.family == GIVEN
    )
    assert given.why == "is 103 tokens long"


def test_partners_of_another_length_are_aligned_by_role(toy_model: Model) -> None:
    prompt = Prompt("It is here.", corrupted="It was not ever here.")
    (pair,) = (p for p in propose(toy_model, [prompt]).pairs if p.family == GIVEN)
    assert pair.aligned == "role"
    both = pairs_of(toy_model, [pair])
    assert both.roles is not None
    assert both.corrupted_roles is not None
    here, there = both.roles[0]["final full stop"], both.corrupted_roles[0]["final full stop"]
    assert here == (int(both.clean.lengths[0]) - 1,)
    assert there == (int(both.corrupted.lengths[0]) - 1,)
    assert here != there
    assert both.labels == ("0",)


def test_partners_of_equal_length_share_the_prompts_own_roles(toy_model: Model) -> None:
    prompt = Prompt("It is here.", roles={"mine": (1, -1)})
    pair = next(p for p in propose(toy_model, [prompt]).pairs if p.family == "final stop to comma")
    both = pairs_of(toy_model, [pair])
    assert both.roles is not None
    assert both.corrupted_roles is not None
    assert both.roles[0]["mine"] == both.corrupted_roles[0]["mine"]


def a_contrast(model: Model, n: int) -> Contrast:
    return Contrast.between(model, [" He"] * n, [" he"] * n)


def test_scores_are_the_contrasts_of_both_sides(toy: Callable[..., Model]) -> None:
    model = toy(dtype="float64")
    prompts = ["It is here. It is there.", "It was here.", "go"]
    contrast = a_contrast(model, 3)
    proposals = propose(model, prompts)
    scores = score(model, proposals, contrast)
    assert [s.family for s in scores] == list(proposals.families)
    for s in scores:
        assert s.n + len(s.excluded) == len(prompts)
        for pair, clean, corrupted in zip(s.pairs, s.clean, s.corrupted, strict=True):
            for text, value in ((pair.clean.text, clean), (pair.corrupted.text, corrupted)):
                logits = run(model, text, logits="last").logits
                assert logits is not None
                expected = contrast[[pair.index]].value(logits)
                assert value == pytest.approx(float(expected), abs=1e-9)


def test_prompts_without_a_contrast_are_excluded(toy_model: Model) -> None:
    contrast = a_contrast(toy_model, 2)
    contrast = replace(contrast, weights=contrast.weights * torch.tensor([[1.0], [np.nan]]))
    scores = score(toy_model, propose(toy_model, ["It is.", "It was."]), contrast)
    first = next(s for s in scores if s.family == "all lowered")
    assert first.n == 1
    assert first.excluded[0].index == 1
    assert first.why == "the prompt has no contrast (1)"


def test_flips_and_halves_are_counted_from_either_side() -> None:
    s = scored("x", [(4.0, -1.0), (4.0, 2.0), (4.0, 3.0), (-4.0, 1.0), (-4.0, -3.0)])
    assert (s.flips, s.halves, s.n) == (2, 3, 5)
    assert s.flip_share == pytest.approx(0.4)
    assert s.half_share == pytest.approx(0.6)


def test_the_strongest_family_is_surest_and_differs_before_the_last_token() -> None:
    lucky = scored("lucky", [(1.0, -1.0)])
    sure = scored("sure", [(1.0, -1.0)] * 9 + [(1.0, 0.9)])
    last = scored("last", [(1.0, -1.0)] * 50, first=3)
    assert strongest([lucky, sure, last]).family == "sure"  # type: ignore[union-attr]
    assert strongest([lucky, sure, last], before_last=False).family == "last"  # type: ignore[union-attr]
    assert strongest([last]) is None
    assert last.before_last.why == "differs in the last token only (50)"
    # where nothing flips, losing half decides, then the mean loss
    weak, weaker = scored("weak", [(1.0, 0.4)] * 5), scored("weaker", [(1.0, 0.6)] * 5)
    assert strongest([weaker, weak]).family == "weak"  # type: ignore[union-attr]
    weakest = scored("weakest", [(1.0, 0.7)] * 5)
    assert strongest([weakest, weaker]).family == "weaker"  # type: ignore[union-attr]


def test_few_pairs_before_the_last_token_that_undo_nothing_are_passed_over() -> None:
    nothing = scored("repeated words lowered", [(4.0, 3.9), (4.0, 3.8), (3.6, 3.5)])
    many = scored("first letter lowered", [(3.9, 3.8), (3.8, 3.6)] * 10)
    last = scored("final stop to “ and”", [(4.0, -1.0)] * 12 + [(4.0, 3.0)] * 2, first=3)
    chosen = choose_family([nothing, many, last])
    assert chosen.score is not None
    assert (chosen.score.family, chosen.score.n) == ("final stop to “ and”", 14)
    assert set(chosen.passed_over) == {"repeated words lowered", "first letter lowered"}
    assert "0 of 3 pairs" in chosen.passed_over["repeated words lowered"]
    none = choose_family([nothing, many])
    assert none.score is None
    assert "no family" in none.why


def test_a_sure_family_of_many_pairs_is_taken_before_one_of_few() -> None:
    few = scored("few", [(4.0, -1.0)] * 3)
    many = scored("many", [(4.0, 1.0)] * 8)
    last = scored("last", [(4.0, -1.0)] * 30, first=3)
    assert choose_family([few, many, last]).score.family == "many"  # type: ignore[union-attr]
    assert choose_family([few, last]).score.family == "last"  # type: ignore[union-attr]
    assert choose_family([few]).score.family == "few"  # type: ignore[union-attr]
    assert choose_family([few], least=4).score is None


def given(n: int, dropped: int = 0, without: int = 0, corrupted: float = -1.0) -> Score:
    """Partners that prompts bring: so many usable, so many dropped, so many prompts with none."""
    out = [Excluded(GIVEN, n + i, "the edit changes no token") for i in range(dropped)]
    out += [Excluded(GIVEN, n + dropped + i, NO_PARTNER) for i in range(without)]
    return replace(scored(GIVEN, [(4.0, corrupted)] * n), excluded=tuple(out))


def test_partners_that_prompts_bring_come_before_families_found() -> None:
    found = scored("all upper-cased", [(4.0, -9.0)] * 10)
    chosen = choose_family([found, given(9, dropped=1)])
    assert chosen.score is not None
    assert (chosen.score.family, chosen.score.n) == (GIVEN, 9)
    assert "9 of the 10 given can be used, the others not: the edit changes no token (1)" in (
        chosen.why
    )
    assert [(e.index, e.why) for e in chosen.dropped] == [(9, "the edit changes no token")]
    dropped = chosen.as_dict(range(100, 110))["dropped"]
    assert dropped == [{"prompt": 109, "why": "the edit changes no token"}]
    assert list(chosen.passed_over) == ["all upper-cased"]


def test_partners_win_only_where_enough_of_them_are_brought_and_usable() -> None:
    assert brought([given(3)])
    assert brought([given(6, dropped=30)])
    assert brought([given(2, dropped=9)]) is None
    assert brought([given(8, without=6)]) is None
    assert brought([given(1)]) is None
    assert brought([given(1)], least=1)
    chosen = choose_family([scored("found", [(4.0, -9.0)] * 10), given(2, dropped=9)])
    assert chosen.score is not None
    assert chosen.score.family == "found"
    assert "too few can be used: 2 of 11" in chosen.passed_over[GIVEN]


def test_partners_of_which_none_can_be_used_are_passed_over_by_name() -> None:
    chosen = choose_family([scored("found", [(4.0, -9.0)] * 10), given(0, dropped=2)])
    assert chosen.passed_over[GIVEN] == (
        "too few can be used: 0 of 2 (the edit changes no token (2))"
    )


def test_partners_that_undo_nothing_are_not_replaced_by_others() -> None:
    chosen = choose_family([scored("found", [(4.0, -9.0)] * 10), given(10, corrupted=3.9)])
    assert chosen.score is None
    assert "do not surely undo" in chosen.why
    assert set(chosen.passed_over) == {GIVEN, "found"}


def test_three_lucky_pairs_come_after_many_where_no_family_surely_undoes_the_behaviour() -> None:
    few = scored("few", [(6.5, -0.2), (6.5, -1.0), (6.5, 12.0)])
    many = scored("many", [(6.0, -1.0)] * 3 + [(6.0, 5.0)] * 11)
    assert not few.undoes
    assert not many.undoes
    unsure = partial(choose_family, least=1, before_last=True, surely=False)
    choice = unsure([few, many])
    assert choice.score is not None
    assert choice.score.family == "many"
    assert set(choice.passed_over) == {"few"}
    alone = unsure([few])
    assert alone.score is not None, "with nothing else, they are measured and the reason is given"
    assert "no family" in alone.why
    assert choose_family([few, many], before_last=True).score is None


def test_a_family_asked_for_by_name_is_used_however_little_it_undoes() -> None:
    weak = scored("weak", [(4.0, 3.9)] * 8)
    sure = scored("sure", [(4.0, -1.0)] * 8)
    last = scored("last", [(4.0, 3.9)] * 8, first=3)
    for name, word in (("weak", "does not surely undo"), ("sure", "; undoes")):
        chosen = choose_family([weak, sure, last], named=name)
        assert chosen.score is not None
        assert chosen.score.family == name
        assert "asked for by name" in chosen.why
        assert word in chosen.why
    at_last = choose_family([weak, sure, last], named="last")
    assert at_last.score is not None, "it has no pair that differs before the last token"
    assert choose_family([weak, sure, last], named="last", before_last=True).score is None


def test_pairs_left_out_by_length_are_excluded_with_the_reason() -> None:
    pair = Counterfactual("x", 7, Prompt("A b."), Prompt("a b c."), 1, 3, "role")
    score = Score("x", (pair,), np.ones(1), np.ones(1), ())
    assert score.of_equal_length.n == 0
    assert score.of_equal_length.why == "its partner has another number of tokens (1)"


def test_an_even_loss_undoes_a_behaviour_though_nothing_halves() -> None:
    even = scored("even", [(4.0, 2.4), (-4.0, -2.5), (3.0, 1.9)] * 4)
    uneven = scored("uneven", [(4.0, 4.0)] * 9 + [(4.0, -9.0)])
    assert even.halves == 0
    assert even.undoes
    assert not uneven.undoes  # its mean loss is one pair's


def test_two_of_three_pairs_are_no_sure_loss_where_the_interval_holds_a_gain() -> None:
    few = scored("few", [(6.5, 0.2), (6.5, -1.0), (6.5, 6.6)])
    assert few.halves == 2
    assert few.loss[1] < 0
    assert not few.undoes


def test_the_table_has_every_family_with_its_interval_and_exclusions(toy_model: Model) -> None:
    proposals = propose(toy_model, ["It is here.", "It was there.", "go"])
    table = counterfactual_table(score(toy_model, proposals, a_contrast(toy_model, 3)))
    rows = {row["family"]: row for row in table.rows()}
    assert list(rows) == list(proposals.families)
    stop = rows["final stop to comma"]
    assert (stop["n"], stop["excluded"], stop["why"]) == (2, 1, "no final full stop (1)")
    assert stop["mean_clean_lower"] <= stop["mean_clean"] <= stop["mean_clean_upper"]
    assert stop["differ_before_last"] == 0
    empty = rows["year changed"]
    assert empty["n"] == 0
    assert empty["mean_clean"] is None
    assert empty["flip_share"] is None
    assert torch.isfinite(torch.tensor([stop["mean_corrupted"]])).all()
