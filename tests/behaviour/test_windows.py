"""A corpus's windows are its tokens, each once, with what each position is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.behaviour.windows import CAPITAL, COMMA, KINDS, OTHER, Windows
from casestudy.errors import BehaviourError
from casestudy.model.model import Model
from tests.measure.cards import speaking

TEXT = "Mr. Fox slept, at 3.5 miles. He woke up.\nThen (as e.g. Ann) he left. So it ended."


def kinds_of(model: Model, text: str, length: int = 64) -> list[tuple[str, str]]:
    windows = Windows({"a": text}, model.tokenizer, length)
    return [
        (model.tokenizer.label(id), KINDS[kind])
        for window in windows
        for id, kind in zip(window.ids, window.kinds, strict=True)
    ]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from(["w1", "w2", "w3", "\n", "\n\n"]), max_size=30), max_size=3),
    st.integers(2, 9),
)
def test_every_token_of_a_document_is_in_one_window(texts: list[list[str]], length: int) -> None:
    model = speaking("gpt2")
    documents = {f"d{i}": " ".join(text) for i, text in enumerate(texts)}
    try:
        windows = list(Windows(documents, model.tokenizer, length))
    except BehaviourError:  # no text has two tokens
        windows = []
    for name, text in documents.items():
        ids = [id for window in windows if window.document == name for id in window.ids]
        whole = model.tokenizer.ids(text)
        # a single token that is left over has nothing before it
        assert len(whole) - len(ids) in (0, 1)
        assert ids == whole[: len(ids)]


def test_positions_are_of_the_kind_that_the_text_says(toy_model: Model) -> None:
    found = kinds_of(toy_model, TEXT)
    stops = [kind.removeprefix("full stop: ") for label, kind in found if label == "."]
    assert stops == [
        *("abbreviation", "decimal point", "sentence end", "end of paragraph"),
        *("abbreviation", "abbreviation", "sentence end", "end of paragraph"),
    ]
    assert (",", COMMA) in found
    assert (" He", CAPITAL) in found
    assert found[0][1] == OTHER  # BOS


def test_files_folders_and_lines_are_read(toy_model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("First line here.\nSecond line there.\n\nFourth one.\n")
    (tmp_path / "b.jsonl").write_text('{"text": "Of a row."}\n')
    windows = Windows(tmp_path, toy_model.tokenizer, 6)
    found = list(windows)
    assert {window.document for window in found} == {"a.txt", "b.jsonl:1"}
    assert windows.documents == 2
    assert windows.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    texts = {
        line: "".join(
            toy_model.tokenizer.string(id)
            for window in found
            if window.document == "a.txt"
            for id, at in zip(window.ids[1:], window.lines[1:], strict=True)
            if at == line
        )
        for line in (1, 2, 4)
    }
    assert texts[1].startswith("First line here.")
    assert texts[2].startswith("Second line there.")
    assert texts[4].startswith("Fourth one.")


def test_a_corpus_without_text_is_refused(toy_model: Model, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    for corpus in ({}, {"a": ""}, tmp_path / "empty.txt"):
        with pytest.raises(BehaviourError, match="no text in the corpus"):
            list(Windows(corpus, toy_model.tokenizer, 64))
    with pytest.raises(BehaviourError, match="there is no"):
        list(Windows(tmp_path / "absent.txt", toy_model.tokenizer, 64))


@pytest.mark.parametrize("length", [1, 65])
def test_windows_are_as_long_as_the_model_reads(toy: Callable[..., Model], length: int) -> None:
    with pytest.raises(BehaviourError, match=f"windows of {length} tokens"):
        Windows({"a": "Go."}, toy().tokenizer, length)
