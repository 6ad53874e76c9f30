"""The 2 x 2 takes the three differences apart, and they are put together from it again."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.answers import FORMS
from casestudy.behaviour.presets import preset
from casestudy.errors import MeasureError
from casestudy.measure.case_by_space import case_by_space, effects_of
from casestudy.measure.predictions import logit_difference, predictions
from casestudy.model.decoder import run
from casestudy.model.model import Model

LOGIT = st.floats(-50, 50)


@given(LOGIT, LOGIT, LOGIT, LOGIT)
def test_the_effects_are_the_textbooks(a: float, b: float, c: float, d: float) -> None:
    differences = torch.tensor([[a - b], [a - c], [a - d]], dtype=torch.float64)
    case, space, interaction = effects_of(differences)[:, 0].tolist()
    assert case == pytest.approx(((a - b) + (c - d)) / 2, abs=1e-10)
    assert space == pytest.approx(((a - c) + (b - d)) / 2, abs=1e-10)
    assert interaction == pytest.approx((a - b) - (c - d), abs=1e-10)


@given(LOGIT, LOGIT, st.sampled_from(["no case", "no space", "additive"]))
def test_where_nothing_prefers_it_an_effect_is_zero(x: float, y: float, kind: str) -> None:
    logits = {
        "no case": (x, x, y, y), "no space": (x, y, x, y), "additive": (x + y, x, y, 0.0),
    }[kind]  # fmt: skip
    a, b, c, d = logits
    case, space, interaction = effects_of(
        torch.tensor([a - b, a - c, a - d], dtype=torch.float64)
    ).tolist()
    zero = {"no case": case, "no space": space, "additive": interaction}[kind]
    assert zero == pytest.approx(0, abs=1e-10)


def test_the_three_differences_are_sums_of_the_effects(toy: Callable[..., Model]) -> None:
    model, behaviour = toy(n_positions=256), preset("full-stop-capitals")
    grid = case_by_space(model, behaviour)
    assert grid.axis("effect").labels == ("case", "space", "interaction")
    case, space, interaction = grid.values
    ab, ac, ad = logit_difference(model, behaviour).take("contrast", FORMS).values
    assert not np.isnan(ab).all()
    np.testing.assert_allclose(ab, case + interaction / 2, atol=1e-10)
    np.testing.assert_allclose(ac, space + interaction / 2, atol=1e-10)
    np.testing.assert_allclose(ad, case + space, atol=1e-10)


def test_it_is_read_off_the_four_logits(toy: Callable[..., Model]) -> None:
    model = toy()
    tokenizer = model.tokenizer
    ranked = predictions(model, "Go.", top_k=8192).rows()
    answer = next(
        r["token"] for r in ranked
        if r["token"] in (" He", " It", " She", " The", " But", " And", " This", " In", " What")
    )  # fmt: skip
    from casestudy.behaviour.prompts import Behaviour, Prompt

    grid = case_by_space(model, Behaviour("b", "?", (Prompt("Go.", answer),)))
    logits = run(model, "Go.", logits="last").logits
    assert logits is not None
    a, b, c, d = (
        float(logits[0, tokenizer.single(t)])
        for t in (answer, answer.lower(), answer[1:], answer[1:].lower())
    )
    expected = [(a - b + c - d) / 2, (a - c + b - d) / 2, a - b - c + d]
    np.testing.assert_allclose(grid.values[:, 0], expected, atol=1e-5)


def test_answers_without_case_are_refused(toy_model: Model) -> None:
    with pytest.raises(MeasureError, match="'ioi' have no case and space"):
        case_by_space(toy_model, preset("ioi"))
