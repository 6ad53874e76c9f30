"""Predictions are the model's own, and an answer's probability is the product of its tokens'."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudy.errors import PromptError, TokenError
from casestudy.measure.predictions import predictions, score_answer
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens

PROMPTS = ["This is a sentence.", "Go.", "It was late. She did not know"]


def test_top_k_is_the_head_of_the_full_distribution(toy_model: Model) -> None:
    table = predictions(toy_model, PROMPTS, top_k=7)
    logits = run(toy_model, PROMPTS, logits="last").logits
    assert logits is not None
    probs = logits.double().softmax(1)
    for row in table.rows():
        order = logits[row["prompt"]].argsort(descending=True)
        assert row["id"] == order[row["rank"]]
        assert row["prob"] == pytest.approx(float(probs[row["prompt"], row["id"]]))
        assert row["token"] == toy_model.tokenizer.string(row["id"])


def test_more_than_the_vocabulary_is_the_whole_vocabulary(toy_model: Model) -> None:
    table = predictions(toy_model, "Go.", top_k=10**6)
    assert len(table.columns["id"]) == toy_model.config.d_vocab
    assert sum(table.columns["prob"]) == pytest.approx(1)


@given(st.lists(st.sampled_from([" He", " went", " home", ".", "\n"]), min_size=1, max_size=4))
def test_the_chain_rule(toy_model64: Model, pieces: list[str]) -> None:
    answer = "".join(pieces)
    ids = toy_model64.tokenizer.ids(answer)
    head = toy_model64.tokenize("It was late.").rows()[0]
    log_prob = 0.0
    for i, id in enumerate(ids):
        logits = run(toy_model64, Tokens.of([head + ids[:i]]), logits="last").logits
        assert logits is not None
        log_prob += float(logits.log_softmax(1)[0, id])
    score = score_answer(toy_model64, "It was late.", answer)
    assert score.log_prob == pytest.approx(log_prob, abs=1e-9)
    assert (score.rank is None) == (len(ids) > 1)


def test_a_single_token_answer_has_its_rank(toy_model: Model) -> None:
    rows = predictions(toy_model, "Go.", top_k=5).rows()
    score = score_answer(toy_model, "Go.", rows[3]["token"])
    assert score.rank == 3
    assert score.logit == pytest.approx(rows[3]["logit"], rel=1e-5)
    assert score.prob == pytest.approx(rows[3]["prob"], rel=1e-5)


def test_an_answer_needs_tokens_and_room(toy_model: Model) -> None:
    with pytest.raises(TokenError, match="answer is empty"):
        score_answer(toy_model, "Go.", "")
    with pytest.raises(PromptError, match="tokens long"):
        score_answer(toy_model, "Go.", " no" * 300)


def test_asking_leaves_gradients_as_they_were(toy_model: Model) -> None:
    with torch.set_grad_enabled(False):
        predictions(toy_model, "Go.")
        assert not torch.is_grad_enabled()
