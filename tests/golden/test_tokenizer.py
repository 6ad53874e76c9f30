"""Does GPT-2's tokenizer give the ids and strings that were recorded from it, exactly?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casestudy.model.tokens import Tokenizer

RECORDED = json.loads((Path(__file__).parent / "data" / "tokens.json").read_text("utf-8"))


@pytest.mark.parametrize("prompt", RECORDED["strings"])
def test_strings(gpt2_tokenizer: Tokenizer, prompt: str) -> None:
    (row,) = gpt2_tokenizer.tokenize(prompt).rows()
    assert gpt2_tokenizer.strings(row) == RECORDED["strings"][prompt]


def test_ids(gpt2_tokenizer: Tokenizer) -> None:
    ids = {text: gpt2_tokenizer.single(text) for text in RECORDED["ids"]}
    assert ids == RECORDED["ids"]


def test_lengths(gpt2_tokenizer: Tokenizer) -> None:
    lengths = RECORDED["lengths_with_bos"]
    assert gpt2_tokenizer.tokenize(list(lengths)).lengths.tolist() == list(lengths.values())


def test_recorded_predictions_and_answers_are_single_tokens(gpt2_tokenizer: Tokenizer) -> None:
    for text in RECORDED["single_tokens"]:
        assert gpt2_tokenizer.string(gpt2_tokenizer.single(text)) == text


def test_vocabulary(gpt2_tokenizer: Tokenizer) -> None:
    vocabulary = gpt2_tokenizer.vocabulary()
    assert len(vocabulary) == gpt2_tokenizer.d_vocab == 50257
    assert vocabulary[50256] == "<|endoftext|>"
    assert gpt2_tokenizer.bos_id == gpt2_tokenizer.eos_id == 50256
