"""The bundled model is what its files say, and the same in casestudy and in transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import casestudy as cs
from casestudy.model.decoder import run
from casestudy.model.loading import BUNDLED
from casestudy.model.model import Model

TINY = BUNDLED / "tiny"
PROMPTS = [
    "Go.",
    "Hello.",
    "This is a sentence.",
    "The specific gravity of the acid was 1.",
    '"I do not know," said the captain. He went back to the house, and the old man followed him.',
]


@pytest.fixture(scope="module")
def model() -> Model:
    return cs.load("tiny")


def checksums() -> dict[str, str]:
    lines = (TINY / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_is_the_one_recorded(name: str) -> None:
    assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == checksums()[name]


def test_the_weights_are_float16_finite_and_small() -> None:
    assert (TINY / "model.safetensors").stat().st_size <= 16_000_000
    with safe_open(TINY / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float16, name
            assert tensor.isfinite().all(), name


def test_logits_are_those_of_transformers(model: Model) -> None:
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    trace = run(model, PROMPTS, logits="last")
    for row, prompt in zip(trace.logits, PROMPTS, strict=True):
        ids = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = reference(ids).logits[0, -1]
        # Logits near 10, summed in another order: float32 keeps six digits through six layers.
        torch.testing.assert_close(row, expected, atol=2e-4, rtol=1e-5)


def test_tokens_are_those_of_transformers(model: Model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for prompt in PROMPTS:
        tokens = model.tokenize([prompt])
        expected = tokenizer(tokenizer.bos_token + prompt).input_ids
        assert tokens.ids[0].tolist() == expected
        assert tokenizer.decode(expected[1:]) == prompt


def test_bos_eos_and_unk_are_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    generation = json.loads((TINY / "generation_config.json").read_text(encoding="utf-8"))
    last = len(tokenizer) - 1
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id} == {last}
    assert generation["bos_token_id"] == generation["eos_token_id"] == last


@pytest.mark.parametrize("sentence", ["Go", "Hello", "This is a sentence", "She went to the house"])
def test_a_capital_follows_a_stop_and_not_a_comma(model: Model, sentence: str) -> None:
    texts = model.tokenizer.vocabulary()
    capital = torch.tensor([t[:1] == " " and t[1:2].isupper() and t != " I" for t in texts])
    lower = torch.tensor([t[:1] == " " and t[1:2].islower() for t in texts])
    stop, comma = run(model, [sentence + ".", sentence + ","], logits="last").logits.softmax(-1)
    assert stop[capital].sum() > stop[lower].sum()
    assert comma[capital].sum() < comma[lower].sum()


def test_the_card_says_what_it_must() -> None:
    card = (TINY / "MODEL_CARD.md").read_text(encoding="utf-8")
    for heading in ("Data", "Tokenizer", "Architecture", "Training", "Evaluation", "Limits"):
        assert f"## {heading}" in card, heading
    for picture in ("loss.svg", "emergence.svg"):
        assert f"]({picture})" in card
        assert (TINY / picture).is_file()
    assert "python -m training.train --corpus" in card
    assert checksums()["model.safetensors"] in card


def test_nothing_is_bundled_beyond_the_folder() -> None:
    assert [path.name for path in sorted(Path(BUNDLED).iterdir()) if path.is_dir()] == ["tiny"]
