"""Controls are what they are called: the constant, no prompt, the same words."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.classes import CAPITAL_MASS
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.batch import run_batch
from casestudy.measure.class_mass import class_mass
from casestudy.measure.controls import (
    CONTROLS,
    controls,
    is_copied,
    measure_controls,
    shuffle_words,
)
from casestudy.measure.ledger import ledger
from casestudy.measure.lens import LENS
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.model.weights import Norm
from casestudy.results.names import B_U
from casestudy.results.result import Grid

ANSWERED = tuple(
    Prompt(t, " He", " he") for t in ("This is a sentence.", "Go.", "He went. Then he ran.")
)
BEHAVIOUR = Behaviour("b", "?", ANSWERED, answers="given", class_contrast=CAPITAL_MASS)
ROWS = ("prompt", "difference", "b_U", "b_U_share", "unigram", "copied", "shuffled")


@given(st.text("abc .,'\nÜ3", max_size=30))
def test_shuffling_keeps_the_words_and_all_else_in_place(text: str) -> None:
    other = shuffle_words(text)
    if other is None:
        return
    assert other != text
    assert sorted(other) == sorted(text)
    assert other == shuffle_words(text)
    marks = [c for c in text if c in " ,\n"]
    assert [c for c in other if c in " ,\n"] == marks


@pytest.mark.parametrize(
    ("text", "end"),
    [("This is a sentence.", "."), ("No stop here", ""), ('He said "go on."', '."'),
     ("It is not 3.50.", ".")],
)  # fmt: skip
def test_the_final_stop_is_kept(text: str, end: str) -> None:
    other = shuffle_words(text)
    assert other is not None
    assert other.endswith(end)
    assert other.count(".") == text.count(".")
    assert shuffle_words(text, seed=1) is not None


@pytest.mark.parametrize("text", ["Go.", "", "...", "Hello. Hello. Hello."])
def test_there_may_be_no_other_order(text: str) -> None:
    assert shuffle_words(text) is None


@pytest.mark.parametrize(
    ("answer", "prompt", "copied"),
    [(" Go", "Go.", True), (" Go", "Let it go on.", True), (" Go", "Gone.", False),
     (" He", "The end.", False), (" ÜBER", "Alles über sie.", True), ("\n", "a\nb", False),
     (" Hello", "Hello. Hello.", True)],
)  # fmt: skip
def test_copying_is_by_word_in_any_case(answer: str, prompt: str, copied: bool) -> None:
    assert is_copied(answer, prompt) is copied


def test_each_control_is_what_it_is_called(toy_model64: Model) -> None:
    model = toy_model64
    table = controls(model, BEHAVIOUR)
    terms = ledger(model, BEHAVIOUR).select(contrast="counterpart")
    assert model.tokenizer.bos_id is not None
    bos = run(model, Tokens.of([[model.tokenizer.bos_id]]), logits="last").logits
    assert bos is not None
    he, lower = model.tokenizer.single(" He"), model.tokenizer.single(" he")
    for row, prompt in zip(table.rows(), ANSWERED, strict=True):
        i = str(row["prompt"])
        account = terms.select(prompt=i)
        assert row["difference"] == pytest.approx(float(np.nansum(account.values)))
        assert row["b_U"] == pytest.approx(float(account.select(term=B_U).values))
        assert row["b_U_share"] == pytest.approx(row["b_U"] / row["difference"])
        assert row["unigram"] == pytest.approx(float(bos[0, he] - bos[0, lower]))
        if row["shuffled_text"] is None:
            assert row["shuffled"] is None
            continue
        there = run(model, row["shuffled_text"], logits="last").logits
        assert there is not None
        assert row["shuffled"] == pytest.approx(float(there[0, he] - there[0, lower]))
        assert row["shuffled_text"] == shuffle_words(prompt.text)
    assert table.columns["copied"] == [False, False, True]
    assert table.columns["shuffled_text"][1] is None


def test_a_class_contrast_is_frozen_anew(toy_model64: Model) -> None:
    batch = run_batch(toy_model64, BEHAVIOUR, range(3), [])
    grid = measure_controls(batch)[0]
    assert isinstance(grid, Grid)
    assert grid.axis("control").labels == CONTROLS
    shuffled = grid.select(contrast="capital mass", control="shuffled").values
    text = shuffle_words(ANSWERED[0].text)
    assert text is not None
    mass = class_mass(toy_model64, text)
    a, b = (mass.select(**{"class": n}).values[0] for n in ("space+Capital", "space+lower"))
    assert shuffled[0] == pytest.approx(np.log(a / b))
    assert np.isnan(shuffled[1])


def test_they_do_not_depend_on_the_neighbours(toy_model: Model) -> None:
    together = controls(toy_model, BEHAVIOUR).rows()
    for i in range(3):
        (alone,) = controls(toy_model, replace(BEHAVIOUR, prompts=ANSWERED[i : i + 1])).rows()
        for name in ROWS[1:]:
            if together[i][name] is None:
                assert alone[name] is None
            else:
                assert alone[name] == pytest.approx(together[i][name], rel=1e-4, abs=1e-5)


def test_what_does_not_exist_is_absent(toy_model64: Model) -> None:
    weights = replace(toy_model64.weights, final_norm=Norm(None, None))
    tokenizer = replace(toy_model64.tokenizer, bos_id=None, prepend_bos=False)
    model = replace(toy_model64, weights=weights, tokenizer=tokenizer)
    table = controls(model, BEHAVIOUR)
    for name in ("b_U", "b_U_share", "unigram"):
        assert table.columns[name] == [None] * 3
    none = controls(toy_model64, Behaviour("b", "?", (Prompt("Go.", " go"),)))
    assert none.columns["difference"] == [None]
    assert none.columns["copied"] == [None]


def test_another_order_that_does_not_fit_is_absent(toy: Callable[..., Model]) -> None:
    """A word at the start of a text can take more tokens than after a space."""
    text, model = "ough it was so", toy(n_positions=5)
    other = shuffle_words(text)
    assert other is not None
    assert len(model.tokenizer.ids(text)) + 1 == 5 < len(model.tokenizer.ids(other)) + 1
    (row,) = controls(model, replace(BEHAVIOUR, prompts=(Prompt(text, " He", " he"),))).rows()
    assert row["difference"] is not None
    assert row["shuffled"] is None
    assert row["shuffled_text"] is None


def test_the_stream_that_a_run_kept_gives_what_bos_alone_gives(toy_model: Model) -> None:
    bare = run_batch(toy_model, BEHAVIOUR, range(3), [])
    kept = run_batch(toy_model, BEHAVIOUR, range(3), [LENS])
    assert (Site.FINAL_RESID, None) in kept.trace.values
    one, other = (measure_controls(batch)[0] for batch in (bare, kept))
    assert isinstance(one, Grid)
    assert isinstance(other, Grid)
    np.testing.assert_allclose(one.values, other.values, atol=1e-5)
