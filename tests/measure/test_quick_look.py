"""A probe's answers are a study's, from one run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.behaviour.readouts import text_of
from casestudy.errors import BehaviourError, SiteError
from casestudy.measure.attention import attention_pattern
from casestudy.measure.attribution import head_attribution
from casestudy.measure.class_mass import class_mass
from casestudy.measure.ledger import ledger
from casestudy.measure.lens import lens
from casestudy.measure.predictions import logit_difference, predictions
from casestudy.measure.quick_look import CONTRAST, head_pattern, probe
from casestudy.measure.whole_answers import whole_answers
from casestudy.model.model import Model
from casestudy.model.token import Token
from casestudy.results import names

TEXTS = ["This is a sentence.", "This is, a long one, a sentence."]
PAIR = {"answer": " It", "counterpart": " it"}
SEVERAL = {"answer": " It was late", "counterpart": " it"}


def text(side: tuple[Token, ...]) -> str:
    return "".join(token.label for token in side)


def test_everything_equals_what_a_study_measures(toy_model: Model) -> None:
    found = probe(toy_model, TEXTS, **PAIR)
    prompts = tuple(Prompt(text, **PAIR) for text in TEXTS)
    behaviour = Behaviour("b", "Why?", prompts, answers="given")
    assert found.problem is None
    for name, grid in (
        ("logit_difference", logit_difference(toy_model, behaviour)),
        ("ledger", ledger(toy_model, behaviour)),
        ("lens", lens(toy_model, behaviour)),
        ("lens.own_norm", lens(toy_model, behaviour, norm="own")),
        ("attribution.head", head_attribution(toy_model, behaviour)),
    ):
        assert found.grids[name].axes[1:] == grid.axes[1:]
        np.testing.assert_allclose(found.grids[name].values, grid.values, atol=1e-5)
    masses = class_mass(toy_model, TEXTS)
    np.testing.assert_allclose(found.classes.values, masses.values, atol=1e-7)
    top = predictions(toy_model, TEXTS)
    assert found.predictions.columns["token"] == top.columns["token"]


@pytest.mark.parametrize("readout", [4, -3, "sentence starts"])
def test_a_readout_is_the_last_token_of_the_text_cut_there(
    toy_model: Model, readout: int | str
) -> None:
    given = [Prompt(text, readout=readout) for text in TEXTS]
    cut = [text_of(toy_model.tokenizer, prompt) for prompt in given]
    assert all(len(a) < len(b) for a, b in zip(cut, TEXTS, strict=True))
    for pair in (PAIR, SEVERAL, {}):
        found, plain = probe(toy_model, given, **pair), probe(toy_model, cut, **pair)
        assert (found.answer, found.counterpart) == (plain.answer, plain.counterpart)
        assert found.tokens == plain.tokens
        assert found.predictions.columns == plain.predictions.columns
        assert set(found.grids) == set(plain.grids)
        for name, grid in plain.grids.items():
            assert found.grids[name].axes == grid.axes
            assert np.array_equal(found.grids[name].values, grid.values, equal_nan=True)
    for text, ends, read in zip(TEXTS, found.behind, found.tokens, strict=True):
        ids = [token.id for token in (*read, *ends)]
        assert [ids] == toy_model.tokenize(text).rows()
    pattern = head_pattern(toy_model, given[0], 1, 3)
    assert np.array_equal(pattern.values, head_pattern(toy_model, cut[0], 1, 3).values)
    with pytest.raises(BehaviourError, match="no readout 99"):
        probe(toy_model, [Prompt(TEXTS[0], readout=99)])


def test_answers_of_several_tokens_are_compared_whole(toy_model: Model) -> None:
    found = probe(toy_model, TEXTS, **SEVERAL)
    prompts = [Prompt(text, **SEVERAL) for text in TEXTS]
    whole = whole_answers(toy_model, prompts)
    assert found.problem is None
    assert found.whole is not None
    assert (text(found.answer), text(found.counterpart)) == tuple(SEVERAL.values())
    for name, grid in (whole.grids | {names.LOGIT_DIFFERENCE: whole.value}).items():
        mine = found.grids[name].select(contrast=CONTRAST)
        assert mine.unit == "nats"
        assert mine.axes == grid.axes
        assert np.array_equal(mine.values, grid.values, equal_nan=True)
    assert found.whole.steps.columns == whole.steps.columns
    single = probe(toy_model, TEXTS, **PAIR)
    for name in (names.attention_from(0), names.attention_from(1)):
        assert np.array_equal(found.grids[name].values, single.grids[name].values)


def test_attention_is_the_patterns_last_row_and_a_head_is_its_pattern(toy_model: Model) -> None:
    found = probe(toy_model, TEXTS)
    for i, text in enumerate(TEXTS):
        whole = attention_pattern(toy_model, text)
        grid = found.grids[f"attention.{i}"]
        assert grid.axis("key_pos") == whole.axis("key_pos")
        assert grid.axis("key_pos").labels[1:] == tuple(
            f"{k}:{t}" for k, t in enumerate(found.tokens[i]) if k
        )
        np.testing.assert_allclose(grid.values, whole.values[:, :, -1], atol=1e-5)
        one = head_pattern(toy_model, text, 1, 3)
        np.testing.assert_allclose(one.values, whole.values[1, 3], atol=1e-6)
    with pytest.raises(SiteError):
        head_pattern(toy_model, TEXTS[0], 0, 4)
    with pytest.raises(SiteError):
        head_pattern(toy_model, TEXTS[0], 2, 0)


def test_answer_and_counterpart_are_the_likeliest_that_can_be_named(
    toy: Callable[..., Model],
) -> None:
    model = toy()
    found = probe(model, TEXTS[:1], top_k=50)
    first = [r["token"] for r in found.predictions.rows()]
    assert text(found.answer) == first[0]
    assert text(found.counterpart) in (first[1], first[0].lower())
    assert found.answer != found.counterpart
    given = probe(model, TEXTS[:1], answer=" It")
    assert (text(given.answer), text(given.counterpart)) == (" It", " it")
    given = probe(model, TEXTS[:1], counterpart=first[0], top_k=50)
    assert text(given.answer) == first[1]
    own = probe(model, [Prompt(TEXTS[0], " It", " He")])
    assert (text(own.answer), text(own.counterpart)) == (" It", " He")


@pytest.mark.parametrize(
    ("answer", "counterpart", "said"),
    [
        (" no such token at all", None, "give both"),
        ("", None, "the answer is empty"),
        (" It", " It", "both ' It'"),
        (" It was", " It was", "the same tokens"),
        (" It", "", "the answer is empty"),
    ],
)
def test_a_pair_that_is_none_costs_the_contrast_alone(
    toy_model: Model, answer: str, counterpart: str | None, said: str
) -> None:
    found = probe(toy_model, TEXTS[:1], answer=answer, counterpart=counterpart)
    assert found.problem is not None
    assert said in found.problem
    assert set(found.grids) == {"attention.0"}
    assert len(found.predictions.rows()) == 20
