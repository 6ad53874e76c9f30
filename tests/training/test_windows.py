"""Windows start with BOS at a sentence, follow the text, and come in a reproducible order."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from training.corpus import read_corpus, split
from training.errors import CorpusError
from training.windows import Position, Windows, encode_books

LENGTH = 32


@pytest.fixture
def text(make_corpus: Callable[..., Path]) -> dict[str, str]:
    training_books, _ = split(read_corpus(make_corpus()))
    return {book.file: book.text for book in training_books}


@pytest.fixture
def windows(make_corpus: Callable[..., Path], tokenizer: Tokenizer) -> Windows:
    training_books, _ = split(read_corpus(make_corpus("again")))
    return Windows(encode_books(training_books, tokenizer), tokenizer, seed=3)


def epoch_texts(windows: Windows, tokenizer: Tokenizer) -> list[str]:
    count = len(windows.epoch(LENGTH, 0)[0])
    batch, _ = windows.batch(Position(), count, LENGTH)
    assert batch.shape == (count, LENGTH + 1)
    assert (batch[:, 0] == windows.bos).all()
    assert (batch[:, 1:] != windows.bos).all()  # nothing is padded
    return [tokenizer.decode(row[1:].tolist()) for row in batch]


def test_a_window_is_the_books_own_text_from_a_sentence_start(
    text: dict[str, str], windows: Windows, tokenizer: Tokenizer
) -> None:
    whole = "\n".join(text.values())
    starts = re.compile(r"(?:^|[.!?][\"']?\s|\n|\n\")\"?$")
    plain = [t for t in epoch_texts(windows, tokenizer) if t in whole]
    assert len(plain) > 20
    for window in plain:
        assert any(starts.search(whole[: m.start()]) for m in re.finditer(re.escape(window), whole))
    assert not any(window.startswith("Smith") for window in plain)  # `Mr.` ends no sentence


def test_some_windows_are_lower_or_upper_cased_whole(
    windows: Windows, tokenizer: Tokenizer
) -> None:
    windows.epochs.clear()
    _, draws = windows.epoch(LENGTH, 0)
    draws[:] = 0.9
    draws[0], draws[1] = 0.01, 0.055
    batch, _ = windows.batch(Position(), 3, LENGTH)
    lower, upper, plain = (tokenizer.decode(row[1:].tolist()) for row in batch)
    assert lower == lower.lower()
    assert upper == upper.upper()
    assert plain not in (plain.lower(), plain.upper())


def test_decimals_head_extra_windows(windows: Windows, tokenizer: Tokenizer) -> None:
    book = windows.books[0]
    assert book.decimals
    assert all(tokenizer.decode([int(book.ids[point])]) == "." for point in book.decimals)


def test_the_order_is_fixed_by_the_seed(windows: Windows, tokenizer: Tokenizer) -> None:
    again = Windows(windows.books, tokenizer, seed=3)
    other = Windows(windows.books, tokenizer, seed=4)
    first, position = windows.batch(Position(), 8, LENGTH)
    second, _ = windows.batch(position, 8, LENGTH)
    assert (again.batch(Position(), 8, LENGTH)[0] == first).all()
    assert (again.batch(position, 8, LENGTH)[0] == second).all()
    assert not (other.batch(Position(), 8, LENGTH)[0] == first).all()


def test_an_epoch_ends_where_no_full_batch_is_left(windows: Windows) -> None:
    count = len(windows.epoch(LENGTH, 0)[0])
    _, position = windows.batch(Position(0, count - 3), 8, LENGTH)
    assert position == Position(1, 8)


def test_a_corpus_too_small_for_a_batch_is_refused(windows: Windows) -> None:
    with pytest.raises(CorpusError, match=r"a batch needs 100000.*--batch-tokens"):
        windows.batch(Position(), 100_000, LENGTH)
