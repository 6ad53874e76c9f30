"""The answer is the first capitalised prediction whose three counterparts exist, or as given."""

import pytest
import torch

from casestudy.behaviour.answers import Answer, Answers, choose_answers, is_space_capital
from casestudy.behaviour.classes import ClassContrast
from casestudy.behaviour.contrast import class_contrast
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.errors import BehaviourError
from casestudy.model.model import Model


def forms(answer: Answer) -> dict[str, str]:
    """Its counterparts, as people see them."""
    return {form: token.label for form, token in answer.counterparts.items()}


def ranked(model: Model, *texts: str) -> torch.Tensor:
    """Logits that put these tokens first, in this order."""
    logits = torch.linspace(0, -1, model.config.d_vocab)[None].clone()
    for i, text in enumerate(texts):
        logits[0, model.tokenizer.single(text)] = 100.0 - i
    return logits


def choose(model: Model, prompt: Prompt, *texts: str, **options: object) -> Answers:
    return choose_answers(model, [prompt], ranked(model, *texts), **options)


def test_the_first_capital_by_rank(toy_model: Model) -> None:
    answers = choose(toy_model, Prompt("Go."), "\n", " he", " He", " It")
    (answer,) = answers.chosen
    assert answer is not None
    assert answer.text == " He"
    assert forms(answer) == {
        "lowercase": " he", "no_space": "He", "lowercase_no_space": "he",
    }  # fmt: skip
    assert answers.passed_over == ()


def test_who_is_passed_over_and_why(toy_model: Model) -> None:
    single = toy_model.tokenizer
    unfit = next(
        t for t in single.vocabulary()
        if is_space_capital(t) and len(single.ids(t)) == 1 and len(single.ids(t.lower())) > 1
    )  # fmt: skip
    answers = choose(toy_model, Prompt("Go."), "\n", unfit, " He")
    (answer,), (passed,) = answers.chosen, answers.passed_over
    assert answer is not None
    assert answer.text == " He"
    assert (passed.candidate.label, passed.rank) == (unfit, 1)
    assert f"has the counterpart {unfit.lower()!r}, which is" in passed.why


def test_none_within_top_k_costs_that_prompt_alone(toy_model: Model) -> None:
    logits = torch.cat([ranked(toy_model, "\n", " he"), ranked(toy_model, " He")])
    answers = choose_answers(toy_model, [Prompt("Go."), Prompt("Stay.")], logits, top_k=2)
    assert answers.chosen[0] is None
    assert answers.chosen[1] is not None
    assert list(answers.errors) == [0]
    assert "no usable space+Capital token among the first 2" in answers.errors[0]
    # this vocabulary has words with their spaces: advice for others would not fit
    assert answers.errors[0].endswith("Give the prompt an answer and a counterpart of its own.")
    values = answers.contrast("lowercase").value(logits)
    assert values.isnan().tolist() == [True, False]


def test_what_a_prompt_brings_is_kept(toy_model: Model) -> None:
    (answer,) = choose(toy_model, Prompt("Go.", " It"), " He").chosen
    assert answer is not None
    assert (answer.text, forms(answer)["no_space"]) == (" It", "It")
    (answer,) = choose(toy_model, Prompt("Go.", counterpart=" she"), " He").chosen
    assert answer is not None
    assert forms(answer)["lowercase"] == " she"
    assert forms(answer)["no_space"] == "He"
    (answer,) = choose(toy_model, Prompt("Go.", " Mary", " John"), " He", rule="given").chosen
    assert answer is not None
    assert forms(answer) == {"counterpart": " John"}


def test_the_likeliest_of_each_class(toy_model: Model) -> None:
    behaviour = Behaviour(
        "b", "?", (Prompt("Go."), Prompt("Go.", " 7"), Prompt("Go.", counterpart=" It")),
        answers="classes", class_contrast=ClassContrast("m", "digit", "space+Capital"),
    )  # fmt: skip
    logits = torch.cat([ranked(toy_model, " he", " He", "3", "4", " It")] * 3)
    classes = class_contrast(toy_model, behaviour, behaviour.prompts, logits)
    answers = choose_answers(toy_model, behaviour.prompts, logits, rule="classes", classes=classes)
    pairs = [a and (a.text, forms(a)["counterpart"]) for a in answers.chosen]
    assert pairs == [("3", " He"), (" 7", " He"), ("3", " It")]


@pytest.mark.parametrize("rule", ["given", "classes"])
def test_without_both_there_is_no_answer(toy_model: Model, rule: str) -> None:
    for prompt, missing in ((Prompt("Go.", " He"), "counterpart"), (Prompt("Go."), "answer")):
        answers = choose(toy_model, prompt, " He", rule=rule)
        assert answers.chosen == (None,)
        assert f"the prompt has no {missing}" in answers.errors[0]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt("Go.", " He", " He"), "answer and counterpart are both ' He'"),
        (Prompt("Go.", counterpart=" He"), "answer and counterpart are both ' He'"),
        (Prompt("Go.", " he"), "answer ' he' is not space\\+Capital. Give its counterpart too"),
        (Prompt("Go.", " Hello there"), "' Hello there' is 2 tokens"),
        (Prompt("Go.", " He", " He slept"), "answer and counterpart both begin with ' He'"),
    ],
)
def test_an_answer_that_cannot_be_costs_that_prompt_alone(
    toy_model: Model, prompt: Prompt, why: str
) -> None:
    logits = torch.cat([ranked(toy_model, " He")] * 2)
    answers = choose_answers(toy_model, [prompt, Prompt("Stay.")], logits)
    assert answers.chosen[0] is None
    assert answers.chosen[1] is not None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(answers.errors[0])


def test_answers_that_are_given_need_no_logits(toy_model: Model) -> None:
    prompts = [Prompt("Go.", " He", " he"), Prompt("Go.", " He")]
    logits = torch.cat([ranked(toy_model, " It")] * 2)
    without = choose_answers(toy_model, prompts, None, rule="given")
    assert without == choose_answers(toy_model, prompts, logits, rule="given")
    assert list(without.errors) == [1]
    with pytest.raises(BehaviourError, match="no logits for the rule 'space-capital'"):
        choose_answers(toy_model, prompts, None)
