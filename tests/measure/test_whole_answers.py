"""Are answers of several tokens read whole: per token, in sum, and under a patch?"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import pre_tokenizers

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.behaviour.steps import MOST, Scoring, steps_of
from casestudy.engine.packing import Budget
from casestudy.engine.reading import Readings, together
from casestudy.errors import BehaviourError, PromptError, TokenError
from casestudy.measure.ledger import ledger
from casestudy.measure.lens import lens
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.measure.whole_answers import whole_answers
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results import names
from tests.measure.worlds import D_VOCAB, VARIANTS, decoder

SCORINGS: tuple[Scoring, ...] = ("sum", "mean", "first")


def by_ids(*ids: int) -> str:
    return "id:" + ",".join(map(str, ids))


def words(*ids: int) -> str:
    return "".join(f" w{i}" for i in ids)


def reading_words(variant: str = "gpt2") -> Model:
    """A decoder whose tokenizer reads "w3 w1" as two tokens."""
    model = decoder(variant)
    backend = HFTokenizer.from_str(model.tokenizer.backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return replace(model, tokenizer=replace(model.tokenizer, backend=backend))


def prompt(text: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> Prompt:
    return Prompt("", by_ids(*a), by_ids(*b), ids=text)


def log_prob(model: Model, text: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
    """log p of each of an answer's tokens, from one plain run of text and answer."""
    logits = run(model, [[*text, *answer]], logits="all").logits
    assert logits is not None
    log_p = logits[0].double().log_softmax(-1)
    return [float(log_p[len(text) + i - 1, id]) for i, id in enumerate(answer)]


TEXT = (3, 1, 4, 1, 5)
CASES = {
    "no token shared": ((2, 7, 1), (8, 2)),
    "a token shared": ((6, 2, 7), (6, 3, 3)),
    "one is the start of the other": ((6, 2), (6, 2, 5)),
    "one token each": ((2,), (9,)),
}


def expected(model: Model, a: tuple[int, ...], b: tuple[int, ...], scoring: Scoring) -> float:
    of_a, of_b = log_prob(model, TEXT, a), log_prob(model, TEXT, b)
    if scoring == "sum":
        return sum(of_a) - sum(of_b)
    if scoring == "mean":
        return float(np.mean(of_a) - np.mean(of_b))
    first = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return of_a[first] - of_b[first]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scoring", SCORINGS)
def test_the_value_is_the_difference_of_log_probabilities(
    variant: str, case: str, scoring: Scoring
) -> None:
    model, (a, b) = decoder(variant), CASES[case]
    if scoring == "first" and case == "one is the start of the other":
        with pytest.raises(BehaviourError, match="start of the other"):
            whole_answers(model, prompt(TEXT, a, b), scoring=scoring)
        return
    found = whole_answers(model, prompt(TEXT, a, b), scoring=scoring)
    assert found.value.values[0] == pytest.approx(expected(model, a, b, scoring), abs=1e-9)
    assert found.ledger.values.sum(0) == pytest.approx(found.value.values, abs=1e-9)
    assert found.ledger.error["gap"] <= found.ledger.error["bound"]
    each = np.array(found.steps.columns["value"])
    closes = np.nansum(found.by_step[names.LEDGER].values, 0)
    assert closes == pytest.approx(each, abs=1e-9)
    assert found.grids[names.LENS].values[-1] == pytest.approx(found.value.values, abs=1e-9)
    assert found.grids[names.LENS_OWN_NORM].values[-1] == pytest.approx(
        found.value.values, abs=1e-9
    )


def test_heads_of_a_layer_add_up_to_its_term() -> None:
    found = whole_answers(decoder("llama"), prompt(TEXT, (2, 7, 1), (8, 2)))
    heads = found.grids[names.HEAD_SHARES].values.sum((1, 2))
    layers = found.ledger.axis("term").labels
    terms = [layers.index(f"attn {i}") for i in range(3)]
    assert heads == pytest.approx(found.ledger.values[terms, 0], abs=1e-9)


def test_one_token_gives_the_same_ledger_and_lens() -> None:
    model = decoder("llama", dtype=torch.float32)
    behaviour = Behaviour("b", prompts=(prompt(TEXT, (2,), (9,)),), answers="given")
    found = whole_answers(model, behaviour)
    assert found.ledger.unit == "logits"
    assert np.array_equal(found.ledger.values, ledger(model, behaviour).values[0])
    same = lens(model, behaviour).values[0]  # of a run that keeps the stream at every position
    np.testing.assert_allclose(found.grids[names.LENS].values, same, atol=1e-6)


def test_tokens_shared_at_the_start_are_part_of_the_prompt() -> None:
    model = decoder()
    whole = whole_answers(model, prompt(TEXT, (6, 2, 7), (6, 3)))
    moved = whole_answers(model, prompt((*TEXT, 6), (2, 7), (3,)))
    assert whole.value.values == pytest.approx(moved.value.values, abs=1e-9)
    assert len(whole.steps.columns["step"]) == len(moved.steps.columns["step"]) == 2


def test_prompts_do_not_depend_on_their_neighbours() -> None:
    model, rng = decoder("gemma2"), random.Random(1)
    prompts = [
        prompt(
            tuple(rng.choices(range(D_VOCAB), k=n)),
            (1, *rng.choices(range(D_VOCAB), k=rng.randrange(4))),
            (2, *rng.choices(range(D_VOCAB), k=rng.randrange(4))),
        )
        for n in (4, 9, 4, 1, 6)
    ]
    together = whole_answers(model, prompts)
    for i, one in enumerate(prompts):
        alone = whole_answers(model, one)
        assert together.value.values[i] == pytest.approx(alone.value.values[0], abs=1e-9)
        assert together.ledger.values[:, i] == pytest.approx(alone.ledger.values[:, 0], abs=1e-9)


def test_a_readout_reads_the_answer_there() -> None:
    model = decoder()
    cut = prompt(TEXT[:3], (2, 7), (8,))
    whole = Prompt("", by_ids(2, 7), by_ids(8), ids=TEXT, readout=2)
    assert whole_answers(model, whole).value.values == pytest.approx(
        whole_answers(model, cut).value.values, abs=1e-12
    )


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8))
def test_rows_that_begin_another_are_read_there(rows: list[list[int]]) -> None:
    texts, where = together(rows)
    for row, (text, position) in zip(rows, where, strict=True):
        assert texts[text][: position + 1] == row
    assert len({tuple(text) for text in texts}) == len(texts)
    begun = [a for a in texts for b in texts if a is not b and b[: len(a)] == a]
    assert not begun


# Patches.

CORRUPTED = (3, 1, 4, 9, 5)


def pair(a: tuple[int, ...], b: tuple[int, ...]) -> Prompt:
    return Prompt(words(*TEXT), words(*a), words(*b), corrupted=words(*CORRUPTED))


def by_hand(
    model: Model, a: tuple[int, ...], b: tuple[int, ...], layer: int, position: int
) -> float:
    """log p(a) - log p(b) of the corrupted prompt with the clean prompt's resid_pre put in."""
    sums = []
    for answer in (a, b):
        clean, corrupted = [[*TEXT, *answer]], [[*CORRUPTED, *answer]]
        theirs = run(model, clean, keep=[Site.RESID_PRE.at(layer)])[Site.RESID_PRE, layer]

        def put(x: torch.Tensor, theirs: torch.Tensor = theirs) -> torch.Tensor:
            x = x.clone()
            x[:, position] = theirs[:, position]
            return x

        edit = Edit(Site.RESID_PRE, layer, put)
        logits = run(model, corrupted, edit=edit, logits="all").logits
        assert logits is not None
        log_p = logits[0].log_softmax(-1)
        sums.append(sum(float(log_p[len(TEXT) + i - 1, id]) for i, id in enumerate(answer)))
    return sums[0] - sums[1]


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gemma2", "neox"])
def test_a_patch_counts_at_every_token_of_the_answers(variant: str) -> None:
    model, a, b = reading_words(variant), (2, 7, 1), (2, 8)
    found = patch_prompts(model, [pair(a, b)], "resid_pre")
    assert found.raw.unit == "nats"
    axes = [axis.name for axis in found.raw.axes]
    assert axes == ["layer", "pos", "prompt"]
    for layer in range(3):
        for position in range(len(TEXT)):
            by_plain_runs = by_hand(model, a, b, layer, position)
            assert found.raw.values[layer, position, 0] == pytest.approx(by_plain_runs, abs=1e-9)
    assert found.raw.axis("pos").labels == (
        *(f"{i}: w{id}" for i, id in enumerate(TEXT)),
        "5: w2",
        "6: w7 |  w8",
    )


def test_a_grid_under_way_has_only_finished_cells() -> None:
    model, told = reading_words(), []
    one = pair((2, 7, 1), (2, 8))
    found = patch_prompts(
        model, [one], "resid_pre", budget=Budget(rows=3), watch=lambda part: told.append(part.raw)
    )
    assert any(np.isnan(part.values).sum() > np.isnan(found.raw.values).sum() for part in told)
    for part in told:
        known = np.isfinite(part.values)
        assert part.values[known] == pytest.approx(found.raw.values[known], abs=1e-9)


def test_patched_answers_of_one_token_are_as_ever() -> None:
    model = reading_words()
    single = patch_prompts(model, [pair((2,), (8,))], "attn_out")
    several = patch_prompts(
        model, [pair((2,), (8,)), pair((2, 7), (8, 1))], "attn_out", scoring="first"
    )
    assert several.raw.unit == "logits"
    for i in range(2):
        assert several.raw.values[..., i] == pytest.approx(single.raw.values[..., 0], abs=1e-9)


def test_all_positions_of_the_clean_run_give_the_clean_value() -> None:
    model, one = reading_words(), pair((2, 7, 1), (2, 8))
    found = patch_prompts(model, [one], "resid_pre", by="role")
    assert found.raw.axis("role").labels[-1] == "last token"
    whole = whole_answers(model, one)
    clean = found.baselines.select(run="other").values
    assert clean == pytest.approx(whole.value.values, abs=1e-9)
    assert not np.isnan(found.normalised.values).any()


def test_the_last_token_is_the_prompts() -> None:
    model, one = reading_words(), pair((2, 7, 1), (2, 8))
    at_last = patch_prompts(model, [one], "attn_out", by="last").raw
    by_role = patch_prompts(model, [one], "attn_out", by="role").raw
    there = by_role.select(role="last token").values
    assert at_last.values == pytest.approx(there, abs=1e-9)


# Bad input.


def test_what_cannot_be_read_says_so() -> None:
    model = reading_words()
    tokenizer = model.tokenizer
    with pytest.raises(BehaviourError, match="no counterpart"):
        whole_answers(model, Prompt("w1", " w2"))
    with pytest.raises(BehaviourError, match="the same tokens"):
        whole_answers(model, Prompt("w1", " w2 w3", by_ids(2, 3)))
    with pytest.raises(TokenError, match="empty"):
        whole_answers(model, Prompt("w1", " w2", ""))
    with pytest.raises(PromptError, match="at most 24"):
        whole_answers(model, Prompt("w1", words(*[1] * 25), " w2"))
    with pytest.raises(TokenError, match="at most 256"):
        steps_of(tokenizer, Prompt("w1", words(*[1] * (MOST + 1)), " w2"))


def test_readings_are_named_by_their_prompts() -> None:
    prompts = [prompt(TEXT, (2, 7), (8,)), prompt(TEXT, (1,), (3,))]
    readings = Readings.of(reading_words(), prompts)
    assert readings.labels == ("0.0", "0.1", "1.0")
    assert readings.prompts == (0, 0, 1)
