"""Does a token's text mean the same in vocabularies that mark a word's start differently?

Three small tokenizers over the same words: sentencepiece's `▁It` as Llama 2 has it, the same with
byte pieces and Gemma's decoder, and whole words whose spaces the decoder puts in.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from casestudy.behaviour.answers import choose_answers
from casestudy.behaviour.classes import STANDARD
from casestudy.behaviour.prompts import Prompt
from casestudy.errors import TokenError
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer

WORDS = ["It", "it", "He", "he", "She", "was", "late", "Kyiv"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEXT = "It was late. He"


def sentencepiece(*, prepend: bool) -> HFTokenizer:
    """Whole words with and without their space, single letters, and bytes for the rest."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", ".", *"Iteawslh1"]
    pieces += [f"▁{word}" for word in WORDS] + [word for word in WORDS if word != "Kyiv"]
    vocabulary = [
        (piece, 0.0 if i < 3 else -float(1 + (len(piece) == 1))) for i, piece in enumerate(pieces)
    ]
    tokenizer = HFTokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def metaspace() -> HFTokenizer:
    """The same pieces with Llama's newer pre-tokenizer and decoder."""
    tokenizer = sentencepiece(prepend=True)
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    return tokenizer


def words() -> HFTokenizer:
    """No token carries a space; the decoder puts them between words."""
    vocabulary = ["<unk>", "<s>", "</s>", ".", "a", "1", *WORDS]
    tokenizer = HFTokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


KINDS = {
    "llama": lambda: sentencepiece(prepend=True),
    "gemma": lambda: sentencepiece(prepend=False),
    "metaspace": metaspace,
    "words": words,
}


def written(folder: Path, backend: HFTokenizer, **config: object) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    entries = {"bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    folder = written(tmp_path, KINDS[request.param]())
    return Tokenizer.from_directory(folder, prepend_bos=None, n_ctx=64)


class TestTexts:
    def test_a_words_text_has_its_space(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.ids(TEXT)
        last = tokenizer.string(ids[-1])
        assert last == " He"
        assert tokenizer.strings(ids)[1:3] == [" was", " late"]
        assert tokenizer.single(" He") == ids[-1]

    def test_single_is_the_inverse_of_string(self, tokenizer: Tokenizer) -> None:
        texts = tokenizer.vocabulary()
        assert len(texts) == tokenizer.d_vocab
        for id, text in enumerate(texts):
            assert tokenizer.string(id) == text
            if text and "\ufffd" not in text:
                assert texts[tokenizer.single(text)] == text

    def test_what_is_no_token_is_said(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(TokenError, match=r"' Zebra' is \d+ tokens"):
            tokenizer.single(" Zebra")

    def test_control_tokens_keep_their_name(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.string(1) == "<s>"
        assert tokenizer.single("<s>") == 1
        assert tokenizer.is_special(1)

    def test_classes(self, tokenizer: Tokenizer) -> None:
        def of(name: str) -> set[str]:
            return set(tokenizer.strings(STANDARD.ids(name, tokenizer)))

        assert of("space+Capital") == {" It", " He", " She", " Kyiv"}
        assert of("space+lower") >= {" it", " he", " was", " late"}


def test_bytes_show_as_characters_and_stand_back(tmp_path: Path) -> None:
    folder = written(tmp_path, sentencepiece(prepend=True))
    tokenizer = Tokenizer.from_directory(folder, prepend_bos=None, n_ctx=64)
    newline, half = 3 + 0x0A, 3 + 0xE2
    assert tokenizer.string(newline) == "\n"
    assert tokenizer.single("\n") == newline
    assert tokenizer.string(half) == "\ufffd"
    # "." is a piece, and also the byte 0x2E
    assert tokenizer.string(3 + 0x2E) == "."
    assert tokenizer.backend.id_to_token(tokenizer.single(".")) == "."


class TestBos:
    """Where the family leaves it to the tokenizer."""

    @pytest.mark.parametrize("kind", ["llama", "words"])
    def test_post_processing_counts(self, kind: str, tmp_path: Path) -> None:
        folder = written(tmp_path, KINDS[kind]())
        tokenizer = Tokenizer.from_directory(folder, prepend_bos=None, n_ctx=64)
        assert tokenizer.prepend_bos is (kind == "llama")
        tokens = tokenizer.tokenize(TEXT)
        assert tokens.bos is (kind == "llama")
        assert (tokens.rows()[0][0] == 1) is (kind == "llama")

    @pytest.mark.parametrize("declared", [True, False])
    def test_its_configuration_counts_more(self, declared: bool, tmp_path: Path) -> None:
        folder = written(tmp_path, sentencepiece(prepend=True), add_bos_token=declared)
        tokenizer = Tokenizer.from_directory(folder, prepend_bos=None, n_ctx=64)
        assert tokenizer.prepend_bos is declared

    @pytest.mark.parametrize("family", [None, True])
    def test_none_where_it_defines_none(self, family: bool | None, tmp_path: Path) -> None:
        """Qwen's tokenizers say so with a null, whatever else the files hold."""
        folder = written(tmp_path, words(), bos_token=None, add_bos_token=True)
        tokenizer = Tokenizer.from_directory(folder, prepend_bos=family, n_ctx=64)
        assert tokenizer.bos_id is None
        assert not tokenizer.prepend_bos
        with pytest.raises(TokenError, match="defines no BOS"):
            tokenizer.tokenize(TEXT, prepend_bos=True)


def answers_of(tokenizer: Tokenizer, toy: Model, best: str, then: str) -> tuple[str, set[str], int]:
    """The answer chosen where `best` and `then` lead the predictions, and how many came before."""
    model = Model(toy.config, toy.weights, tokenizer, name="toy")
    logits = torch.zeros(1, tokenizer.d_vocab)
    logits[0, tokenizer.single(best)], logits[0, tokenizer.single(then)] = 9.0, 8.0
    answers = choose_answers(model, [Prompt(TEXT)], logits)
    (answer,) = answers.chosen
    assert answer is not None, answers.errors
    return answer.text, {t.label for t in answer.counterparts.values()}, len(answers.passed_over)


def test_answers_are_chosen_by_their_text(tokenizer: Tokenizer, toy_model: Model) -> None:
    """Where no word stands without its space, no such counterpart is asked for."""
    bare = "He" in tokenizer.vocabulary()
    text, counterparts, passed = answers_of(tokenizer, toy_model, " Kyiv", " He")
    assert (text, passed) == (" He", 1)  # " Kyiv" has no lower-case twin among the tokens
    assert counterparts == ({" he", "He", "he"} if bare else {" he"})
