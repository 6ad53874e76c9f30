"""Does a text written with kept keys and values equal one written by full forward passes?"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import casestudy as cs
from casestudy.behaviour.prompts import Prompt
from casestudy.engine.generation import Cache, Generated, generate
from casestudy.errors import MeasureError, PromptError, TokenError
from casestudy.measure.generated import ledger_of_steps
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.results import names
from tests.measure.worlds import D_VOCAB, N_CTX, VARIANTS, decoder


def ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(D_VOCAB), k=n)


def full(model: Model, row: list[int]) -> torch.Tensor:
    """The logits at the last token, by a forward pass of its own."""
    logits = run(model, row, logits="last").logits
    assert logits is not None
    return logits[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_a_full_forward_pass(variant: str) -> None:
    model, row = decoder(variant), ids(N_CTX)
    cache, at = Cache(model, N_CTX), 0
    for n in (5, 1, 1, 4, 1, 12):  # longer than any window here
        ours = cache.read(row[at : at + n])
        at += n
        torch.testing.assert_close(ours, full(model, row[:at]), atol=1e-9, rtol=1e-9)
    assert cache.length == N_CTX


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_step_is_what_the_model_predicts(variant: str) -> None:
    model = decoder(variant)
    found = generate(model, Prompt("", ids=tuple(ids(4, seed=3))), n=12)
    assert len(found) == 12
    assert found.stopped == "length"
    for i, step in enumerate(found.steps):
        logits = full(model, list(found.ids_before(i)))
        probs, best = logits.softmax(0), logits.topk(2).indices.tolist()
        assert [step.token.id, step.runner_up.id] == best
        assert step.rank == 0
        assert step.prob == pytest.approx(float(probs[best[0]]), abs=1e-9)
        assert step.runner_up_prob == pytest.approx(float(probs[best[1]]), abs=1e-9)
        difference = float(logits[best[0]] - logits[best[1]])
        assert step.difference == pytest.approx(difference, abs=1e-9)


def test_a_sampled_token_meets_the_most_probable_other_and_a_seed_repeats() -> None:
    model, prompt = decoder(), Prompt("", ids=tuple(ids(4)))
    one, again, other = (
        generate(model, prompt, n=15, temperature=3.0, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.tokens != other.tokens
    assert any(step.rank > 0 for step in one.steps)
    for i, step in enumerate(one.steps):
        best = int(full(model, list(one.ids_before(i))).argmax())
        assert (step.runner_up.id == best) == (step.rank > 0)
        assert (step.difference < 0) == (step.rank > 0)
    assert (
        generate(model, prompt, n=15, temperature=1e-4).tokens
        == generate(model, prompt, n=15).tokens
    )


def test_where_it_stops() -> None:
    model, prompt = decoder(), Prompt("", ids=tuple(ids(4)))
    tokens = generate(model, prompt, n=8).tokens
    first = next(i for i, token in enumerate(tokens) if token not in tokens[:i] and i)
    ends = [
        generate(model, prompt, n=8, stop=[tokens[first]]),
        generate(replace(model, tokenizer=replace(model.tokenizer, eos_id=tokens[first].id)),
                 prompt, n=8),
        generate(replace(model, tokenizer=replace(model.tokenizer, end_ids=frozenset(
            {tokens[first].id}))), prompt, n=8),
    ]  # fmt: skip
    for found in ends:
        assert found.tokens == tokens[: first + 1]  # the ending token is a choice as well
        assert found.stopped == "end of text"
    filled = generate(model, prompt, n=100)
    assert filled.stopped == "context"
    assert len(filled) == N_CTX - 4 + 1  # the last is predicted from a full context
    assert len(filled.behaviour().prompts[-1].ids or ()) == N_CTX


def test_what_cannot_be_generated(toy_model: Model) -> None:
    with pytest.raises(PromptError, match=r"0 tokens to generate\. Allowed: 1 to 10,000"):
        generate(toy_model, "Go.", n=0)
    with pytest.raises(PromptError, match="temperature -1"):
        generate(toy_model, "Go.", temperature=-1.0)
    with pytest.raises(PromptError, match=r"2 prompts to continue\. Allowed: one"):
        generate(toy_model, ["Go.", "Stay."])
    with pytest.raises(TokenError, match="is 2 tokens"):
        generate(toy_model, "Go.", stop=[" the house"])
    weights = replace(toy_model.weights, W_E=toy_model.weights.W_E * float("nan"))
    with pytest.raises(MeasureError, match="from the embeddings on"):
        generate(replace(toy_model, weights=weights), "Go.")


@pytest.fixture(scope="module")
def story(toy: Callable[..., Model]) -> tuple[Model, Generated]:
    model = toy(seed=5)
    return model, cs.generate(model, "It was late. She", n=8, temperature=2.0, seed=3)


def test_the_texts_before_each_token_are_the_prompt_and_what_was_written(
    story: tuple[Model, Generated],
) -> None:
    model, found = story
    assert found.texts[0] == found.prompt == "It was late. She"
    assert found.texts[-1] == found.prompt + found.text
    assert found.text == model.tokenizer.continued([token.id for token in found.tokens])
    assert list(found.ids) == model.tokenize(found.prompt).rows()[0]


def test_its_behaviour_is_read_by_the_ids_that_were_read(story: tuple[Model, Generated]) -> None:
    model, found = story
    behaviour = found.behaviour()
    for i, prompt in enumerate(behaviour.prompts):
        assert prompt.ids == found.ids_before(i)
    differences = cs.logit_difference(model, behaviour).values[0]
    expected = [step.difference for step in found.steps]
    np.testing.assert_allclose(differences, expected, atol=1e-4)


def test_one_run_has_the_ledger_of_every_token(story: tuple[Model, Generated]) -> None:
    model, found = story
    ours, check = ledger_of_steps(model, found)
    theirs = cs.ledger(model, found.behaviour())
    assert ours.axes == theirs.axes
    assert ours.name == theirs.name == names.LEDGER
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5)
    assert ours.error["gap"] <= ours.error["bound"]
    sums = ours.values[0].sum(0)
    np.testing.assert_allclose(sums, [step.difference for step in found.steps], atol=1e-4)
    np.testing.assert_allclose(check.values[0, 0], sums, atol=1e-4)
    with pytest.raises(MeasureError, match="did not write this"):
        ledger_of_steps(replace(model, name="other"), found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ledger_of_every_token_closes_in_every_architecture(variant: str) -> None:
    model = decoder(variant)
    found = generate(model, Prompt("", ids=tuple(ids(3))), n=6)
    ledger, _ = ledger_of_steps(model, found)
    assert ledger.error["gap"] <= 1e-9
