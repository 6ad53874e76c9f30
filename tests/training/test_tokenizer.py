"""The frozen tokenizer keeps the promises that prompts, roles and token classes lean on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from training.corpus import read_corpus, split
from training.tokenizer import (
    D_VOCAB,
    END_OF_TEXT,
    OPENERS,
    broken_promises,
    build,
    four_forms,
    paragraphs,
    train,
)
from training.train import BUNDLED

BUNDLED_TOKENIZER = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))


def pieces(text: str) -> list[str]:
    ids = BUNDLED_TOKENIZER.encode(text, add_special_tokens=False).ids
    return [BUNDLED_TOKENIZER.decode([index]) for index in ids]


@pytest.mark.parametrize("word", OPENERS)
def test_each_opener_has_its_four_forms(word: str) -> None:
    for form in four_forms(word):
        assert pieces(form) == [form]


def test_the_seed_words_are_among_the_openers() -> None:
    assert len(OPENERS) == 28
    assert {"Go", "Hello"} <= {*OPENERS}


def test_every_promise_is_kept() -> None:
    assert broken_promises(BUNDLED_TOKENIZER) == []


def test_a_broken_promise_is_named() -> None:
    broken = broken_promises(build([("Ġ", "1"), ("1", "2")]))
    assert any("' The' should be" in line for line in broken)
    assert any("joins digits" in line for line in broken)


@given(st.integers(0, 10**6), st.sampled_from([" ", "\n", "", ", ", " The", "5"]))
def test_the_stop_after_a_number_stands_alone(number: int, after: str) -> None:
    text = f"It was {number}.{after}"
    found = pieces(text)
    assert "".join(found) == text
    stop = len(pieces(f"It was {number}"))
    assert found[stop].startswith(".")
    assert found[stop] == "." or after == ", "
    assert found[stop - 1].strip() == str(number)[-1]


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_comes_back(text: str) -> None:
    ids = BUNDLED_TOKENIZER.encode(text, add_special_tokens=False).ids
    if END_OF_TEXT not in text:
        assert BUNDLED_TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_bos_is_the_last_token() -> None:
    assert BUNDLED_TOKENIZER.get_vocab_size() == D_VOCAB
    assert BUNDLED_TOKENIZER.token_to_id(END_OF_TEXT) == D_VOCAB - 1


def test_missing_forms_are_joined_by_extra_merges() -> None:
    texts = ["He saw 1234 and 12.34 houses in 1999. It was so. He saw 1999 of them."] * 20
    tokenizer = train(texts, d_vocab=420, words=["Zebra", "It"])
    assert tokenizer.get_vocab_size() <= 420  # so short a text has no more merges to give
    for word in ("Zebra", "It"):
        for form in four_forms(word):
            assert len(tokenizer.encode(form).ids) == 1
    assert all(sum(letter.isdigit() for letter in token) < 2 for token in tokenizer.get_vocab())


@pytest.mark.large
def test_the_frozen_tokenizer_is_what_the_corpus_gives(real_corpus: Path) -> None:
    training_books, _ = split(read_corpus(real_corpus))
    made = train(list(paragraphs(training_books)))
    assert made.to_str(pretty=True) == BUNDLED_TOKENIZER.to_str(pretty=True)
