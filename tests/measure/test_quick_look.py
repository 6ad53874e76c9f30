"""A probe's answers are a study's, from one run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import SiteError
from casestudy.measure.attention import attention_pattern
from casestudy.measure.attribution import head_attribution
from casestudy.measure.class_mass import class_mass
from casestudy.measure.ledger import ledger
from casestudy.measure.lens import lens
from casestudy.measure.predictions import logit_difference, predictions
from casestudy.measure.quick_look import head_pattern, probe
from casestudy.model.model import Model

TEXTS = ["This is a sentence.", "This is, a long one, a sentence."]
PAIR = {"answer": " It", "counterpart": " it"}


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
    assert str(found.answer) == first[0]
    assert str(found.counterpart) in (first[1], first[0].lower())
    assert found.answer != found.counterpart
    given = probe(model, TEXTS[:1], answer=" It")
    assert (str(given.answer), str(given.counterpart)) == (" It", " it")
    given = probe(model, TEXTS[:1], counterpart=first[0], top_k=50)
    assert str(given.answer) == first[1]


@pytest.mark.parametrize(
    ("answer", "counterpart", "said"),
    [
        (" no such token at all", None, "tokens"),
        ("", None, "the answer is empty"),
        (" It", " It", "both ' It'"),
        (" It", "\ufffd\ufffd", "tokens"),
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
