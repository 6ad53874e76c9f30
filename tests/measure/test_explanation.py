"""One preference as one object: it closes, its patches are exact, and it says what it lacks."""

from dataclasses import replace

import pytest

from casestudy.behaviour.counterfactual import propose
from casestudy.behaviour.prompts import Prompt
from casestudy.behaviour.readouts import text_of
from casestudy.errors import BehaviourError
from casestudy.measure import explanation
from casestudy.measure.explanation import PatchedPart, explain
from casestudy.measure.partners import partners
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.model.model import Model

TEXT, CORRUPTED = "It was late. She went home.", "it was late. She went home."


def test_the_ledger_sums_to_the_difference_and_every_check_holds(toy_model: Model) -> None:
    found = explain(toy_model, TEXT, " He", " he", corrupted=CORRUPTED)
    total = sum(value for _, value in found.ledger)
    assert total == pytest.approx(found.logit_difference, abs=1e-4)
    assert len(found.checks) == 3
    assert all(check.holds for check in found.checks)
    config = toy_model.config
    assert len(found.parts) == config.n_layers * (config.n_heads + 1)
    sizes = [abs(part.effect) for part in found.parts]
    assert sizes == sorted(sizes, reverse=True)


def test_its_parts_are_the_patches_of_the_same_pair(toy_model: Model) -> None:
    found = explain(toy_model, TEXT, " He", " he", corrupted=CORRUPTED)
    pair = Prompt(TEXT, " He", " he", corrupted=CORRUPTED)
    effect = patch_prompts(toy_model, [pair], "z", by="all").effect
    for part in found.parts:
        if part.name.startswith("head"):
            layer, head = part.name.removeprefix("head ").split(".")
            cell = effect.select(layer=layer, head=head).values
            assert part.effect == pytest.approx(float(cell), abs=1e-5)


@pytest.mark.parametrize("readout", [4, "sentence starts"])
@pytest.mark.parametrize("pair", [(" He", " he"), (" He was late", " he")])
@pytest.mark.parametrize("corrupted", [None, "it was late. she went home."])
def test_a_readout_explains_the_text_cut_there(
    toy_model: Model, readout: int | str, pair: tuple[str, str], corrupted: str | None
) -> None:
    whole = Prompt(TEXT, *pair, corrupted, readout=readout)
    cut = [
        text_of(toy_model.tokenizer, Prompt(text, readout=readout))
        for text in filter(None, (TEXT, corrupted))
    ]
    assert all(len(text) < len(TEXT) for text in cut)
    found = explain(toy_model, whole)
    plain = explain(toy_model, cut[0], *pair, corrupted=cut[1] if corrupted else None)
    assert found.tokens == plain.tokens
    assert found.logit_difference == plain.logit_difference
    assert found.ledger == plain.ledger
    assert found.parts == plain.parts
    assert (found.answer, found.counterpart) == (plain.answer, plain.counterpart)
    for mine, theirs in zip(
        partners(toy_model, whole, found.answer.tokens, found.counterpart.tokens),
        partners(toy_model, cut[0], plain.answer.tokens, plain.counterpart.tokens),
        strict=True,
    ):
        assert mine == replace(theirs, text=theirs.text + TEXT[len(cut[0]) :])
    with pytest.raises(BehaviourError, match="no readout 99"):
        explain(toy_model, replace(whole, readout=99))


def test_without_a_partner_parts_are_set_to_zero_and_that_is_said(toy_model: Model) -> None:
    found = explain(toy_model, "qwx", " He", " he")
    if found.partner is None:
        assert all(part.share is None for part in found.parts)
        assert any("set to zero" in warning for warning in found.warnings)
    assert found.warnings[0].startswith("One prompt")
    assert found.as_dict()["n"] == 1


def test_a_partner_that_does_not_fit_is_refused(toy_model: Model) -> None:
    for corrupted in (TEXT, TEXT + " And more of it."):
        with pytest.raises(BehaviourError, match="does not fit"):
            explain(toy_model, TEXT, " He", " he", corrupted=corrupted)


def test_partners_keep_the_length_and_come_best_first(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    offers = partners(toy_model, TEXT, tokenizer.token(" He"), tokenizer.token(" he"))
    assert offers
    length = len(tokenizer.tokenize(TEXT).rows()[0])
    assert {len(tokenizer.tokenize(one.text).rows()[0]) for one in offers} == {length}
    keys = [(not one.before_last, one.left) for one in offers]
    assert keys == sorted(keys)
    assert len({one.text for one in offers}) == len(offers)


@pytest.mark.parametrize(
    ("name", "times", "said"), [("mlp 0", 1, 1), ("mlp 0", 2, 0), ("mlp 1", 1, 0)]
)
def test_an_early_mlp_is_said_to_re_encode_only_where_its_effect_is_at_the_changed_tokens(
    toy_model: Model, name: str, times: float, said: int
) -> None:
    asked = Prompt(TEXT, " He", " he", corrupted=CORRUPTED)
    there = patch_prompts(toy_model, [asked], "mlp_out", by="role").effect
    alone = float(there.select(layer="0", role="changed tokens").values)
    found = explanation._single(toy_model, Prompt(TEXT, " He", " he"))
    (pair,) = propose(toy_model, [asked], ()).pairs
    warnings = explanation._re_encoding(
        toy_model, found, pair, PatchedPart(name, alone * times, None)
    )
    assert len(warnings) == said
    assert explanation._re_encoding(toy_model, found, None, PatchedPart(name, alone, None)) == ()
