"""Does GPT-2 small predict what was recorded from it, and prefer by as much?

Printed figures are compared to one unit in their last place; recorded logits have mean zero over
the vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from casestudy.behaviour.answers import FORMS, is_space_capital
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.predictions import logit_difference, predictions, score_answer
from casestudy.model.decoder import run
from casestudy.model.model import Model

BATCHES = ("ragged_batch", "eleven_token_batch_4", "eleven_token_batch_8")
LOGIT, PERCENT = 0.011, 0.011  # printed to 0.01, each of the two roundings half of that
DIFFERENCE = 0.0011


def behaviour(batch: dict[str, Any], prompts: str = "prompts") -> Behaviour:
    """A recorded batch with its recorded answers."""
    texts, answers = batch[prompts], batch["answers"]
    asked = tuple(Prompt(t, answer=a[0]) for t, a in zip(texts, answers, strict=True))
    return Behaviour("recorded", "?", asked)


@pytest.mark.parametrize("i", range(3))
def test_the_first_predictions(gpt2: Model, recorded: dict[str, Any], i: int) -> None:
    case = recorded["predictions"][i]
    logits = run(gpt2, case["prompt"], logits="last").logits
    assert logits is not None
    centred = (logits[0] - logits[0].mean()).double()
    percent = 100 * centred.softmax(0)
    ours = predictions(gpt2, case["prompt"], top_k=len(case["top_k"]))
    for rank, entry in enumerate(case["top_k"]):
        id = gpt2.tokenizer.single(entry["token"])
        assert float(centred[id]) == pytest.approx(entry["logit"], abs=LOGIT)
        assert float(percent[id]) == pytest.approx(entry["prob_percent"], abs=PERCENT)
        # Equal printed logits have no order, so ranks are compared by the logits at them.
        at_rank = float(centred[ours.columns["id"][rank]])
        assert at_rank == pytest.approx(entry["logit"], abs=LOGIT)


@pytest.mark.parametrize("i", range(3))
def test_where_an_answer_stands(gpt2: Model, recorded: dict[str, Any], i: int) -> None:
    case = recorded["answer_rank"][i]
    score = score_answer(gpt2, case["prompt"], case["answer"])
    assert score.rank == case["rank"]
    assert 100 * score.prob == pytest.approx(case["prob_percent"], abs=PERCENT)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("form", FORMS)
def test_logit_differences(gpt2: Model, recorded: dict[str, Any], name: str, form: str) -> None:
    batch = recorded["batches"][name]
    values = logit_difference(gpt2, behaviour(batch)).select(contrast=form).values
    np.testing.assert_allclose(values, batch["logit_diff"][form]["per_prompt"], atol=DIFFERENCE)
    assert values.mean() == pytest.approx(batch["logit_diff"][form]["mean"], abs=DIFFERENCE)


def test_logit_differences_of_the_corrupted_prompts(gpt2: Model, recorded: dict[str, Any]) -> None:
    batch = recorded["batches"]["eleven_token_batch_8"]
    grid = logit_difference(gpt2, behaviour(batch, "corrupted_prompts"))
    expected = batch["corrupted_logit_diff_lowercase"]
    values = grid.select(contrast="lowercase").values
    np.testing.assert_allclose(values, expected["per_prompt"], atol=DIFFERENCE)
    assert values.mean() == pytest.approx(expected["mean"], abs=DIFFERENCE)


@pytest.mark.parametrize("name", BATCHES)
def test_the_answers_are_the_first_capitals(
    gpt2: Model, recorded: dict[str, Any], name: str
) -> None:
    """By the notebook's rule, each answer is the first space+Capital prediction."""
    batch = recorded["batches"][name]
    for prompt, answers in zip(batch["prompts"], batch["answers"], strict=True):
        tokens = predictions(gpt2, prompt, top_k=100).columns["token"]
        first = next(token for token in tokens if is_space_capital(token))
        assert first == answers[0], prompt


def test_the_recorded_figures_agree_with_each_other(recorded: dict[str, Any]) -> None:
    """Without the weights: an answer's rank, logit and share are those of its list."""
    lists = {case["prompt"]: case["top_k"] for case in recorded["predictions"]}
    for case in recorded["answer_rank"]:
        entry = lists[case["prompt"]][case["rank"]]
        assert entry["token"] == case["answer"]
        assert (entry["logit"], entry["prob_percent"]) == (case["logit"], case["prob_percent"])
