"""Does a study of answers of several tokens have the whole answers beside their first tokens?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.ledger import ledger
from casestudy.measure.whole_answers import whole_answers
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.study.settings import Execution
from casestudy.study.study import Study, study

PROMPTS = (
    Prompt("It was late. She went home.", " He slept", " he"),
    Prompt("He slept.", " It", " it"),
    Prompt("It was very late.", " He was", " He went"),
    Prompt("The dog ran.", " She sat", " it was late"),
)
MEASURED = ("predictions", "ledger", "lens", "attribution")


@pytest.fixture(scope="module")
def found(toy_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Study:
    behaviour = Behaviour("several", prompts=PROMPTS, answers="given")
    folder = tmp_path_factory.mktemp("several")
    one_by_one = Execution(chunk_tokens=8)
    return study(toy_model, behaviour, out=folder, only=MEASURED, execution=one_by_one)


def test_each_prompt_has_the_whole_answers_value(found: Study, toy_model: Model) -> None:
    alone = whole_answers(toy_model, PROMPTS)
    values = found.grids[names.LOGIT_DIFFERENCE].select(contrast=names.WHOLE).values
    np.testing.assert_allclose(values, alone.value.values, atol=1e-4)
    heads = found.grids[names.HEAD_SHARES].select(contrast=names.WHOLE).values
    np.testing.assert_allclose(heads, alone.grids[names.HEAD_SHARES].values, atol=1e-4)


def test_the_mean_ledger_closes(found: Study) -> None:
    mean = found.grids[names.mean(names.LEDGER)].select(contrast=names.WHOLE)
    total = found.grids[names.mean(names.LOGIT_DIFFERENCE)].select(contrast=names.WHOLE)
    assert np.nansum(mean.values) == pytest.approx(float(total.values), abs=1e-4)
    assert int(total.n) == len(PROMPTS)


def test_the_main_contrast_is_that_of_the_first_tokens(found: Study, toy_model: Model) -> None:
    first = [Prompt(PROMPTS[0].text, " He", " he"), PROMPTS[1]]
    alone = ledger(toy_model, Behaviour("first", prompts=tuple(first), answers="given"))
    main = found.grids[names.LEDGER].select(contrast="counterpart")
    np.testing.assert_allclose(main.values[:-1, :2], alone.values[0], atol=1e-4)
    assert main.axis("term").labels[-1] == names.ENTROPY
    assert np.isnan(main.values[-1]).all(), "a term that single tokens do not have"


def test_answers_that_begin_alike_are_left_out_of_the_main_contrast(found: Study) -> None:
    main = found.grids[names.LOGIT_DIFFERENCE].select(contrast="counterpart").values
    assert np.isnan(main).tolist() == [False, False, True, False]
    why = found.tables[names.PROMPTS].columns["error"][2]
    assert "begin with ' He'" in why


def test_the_report_says_what_is_compared(found: Study) -> None:
    page = Path(found.report()).read_text("utf-8")
    assert "some answers have several tokens" in page
    assert "the whole answer against the whole counterpart" in page
