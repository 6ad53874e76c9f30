"""Is a token its id, whatever its text, from the choice to what is written down?"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudy.errors import TokenError
from casestudy.model.loading import BUNDLED
from casestudy.model.token import Token
from casestudy.model.tokens import Tokenizer
from tests.model.test_token_texts import KINDS
from tests.model.vocabularies import byte_level, tokenizer_of

SENTENCEPIECE = {"bos": "<s>", "eos": "</s>"}


@cache
def vocabulary(kind: str) -> Tokenizer:
    if kind == "bundled":
        return Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=True, n_ctx=256)
    if kind == "byte-level":
        return tokenizer_of(byte_level)
    return tokenizer_of(KINDS[kind], **SENTENCEPIECE)


NAMES = ["bundled", "byte-level", *KINDS]
PROMPTS = ["", "It was late.", "hello wor", "It was late. ", "\U0001f600", "é\n"]


@pytest.mark.parametrize("kind", NAMES)
class TestEveryId:
    def test_is_what_asking_for_it_gives(self, kind: str) -> None:
        tokenizer = vocabulary(kind)
        for id in range(tokenizer.d_vocab):
            token = tokenizer.token(id)
            assert token == Token(id, tokenizer.label(id))
            assert tokenizer.token(token.by_id) == tokenizer.token(token) == token
            assert tokenizer.continuation("It was", f"id:{id},{id}").ids == (id, id)

    def test_has_a_label_of_its_own(self, kind: str) -> None:
        tokenizer = vocabulary(kind)
        labels = tokenizer.labels(range(tokenizer.d_vocab))
        assert len(set(labels)) == len(labels)
        assert all(labels)

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_can_be_written_down_after_any_prompt(self, kind: str, prompt: str) -> None:
        tokenizer = vocabulary(kind)
        for id in range(0, tokenizer.d_vocab, 1 if tokenizer.d_vocab < 1000 else 97):
            assert tokenizer.token(tokenizer.written(id, after=prompt), after=prompt).id == id


def test_every_id_of_a_published_vocabulary(gpt2_tokenizer: Tokenizer) -> None:
    tokenizer = gpt2_tokenizer
    labels = tokenizer.labels(range(tokenizer.d_vocab))
    assert len(set(labels)) == len(labels)
    some = {id: tokenizer.written(id) for id in range(0, tokenizer.d_vocab, 7)}
    assert sum(text.startswith("id:") for text in some.values()) > 20
    for id, text in some.items():
        assert tokenizer.token(text).id == id


def test_parts_of_a_character_show_their_bytes() -> None:
    tokenizer = vocabulary("byte-level")
    pieces = {"ðŁ": "‹F0›‹9F›", "Ġð": " ‹F0›", "ï¿": "‹EF›‹BF›", "ï¿½": "\ufffd", "ĠHe": " He"}
    for piece, label in pieces.items():
        assert tokenizer.label(tokenizer.backend.token_to_id(piece)) == label


def test_a_byte_piece_beside_the_piece_of_its_text() -> None:
    tokenizer = vocabulary("llama")
    dot = tokenizer.backend.token_to_id(".")
    assert tokenizer.label(dot) == "."
    assert tokenizer.label(3 + 0x2E) == "‹2E›"
    assert tokenizer.label(3 + 0x0A) == "\n"
    assert tokenizer.label(3 + 0xE2) == "‹E2›"
    assert tokenizer.written(3 + 0x2E, after="It was late") == f"id:{3 + 0x2E}"


@pytest.mark.parametrize("answer", ["id:8192", "id:1,99999", 10**6, [], ""])
def test_what_is_no_token_is_refused(answer: object) -> None:
    with pytest.raises(TokenError):
        vocabulary("bundled").continuation("It", answer)


class TestContinuation:
    """The tokens by which prompt and answer together continue the prompt."""

    @pytest.mark.parametrize(
        ("kind", "prompt", "answer", "pieces"),
        [
            ("llama", "It was late.", " He", ["▁He"]),
            ("llama", "It was late.", "He", ["He"]),
            ("llama", "It was late", ".", ["."]),
            ("metaspace", "It was late.", " He", ["▁He"]),
            ("metaspace", "It was late.", "He", ["He"]),
            ("gemma", "It was late.", " He", ["▁He"]),
            ("words", "It was late.", " He", ["He"]),
            ("llama", "", "He", ["▁He"]),
        ],
    )
    def test_as_one_text(self, kind: str, prompt: str, answer: str, pieces: list[str]) -> None:
        tokenizer = vocabulary(kind)
        follows = tokenizer.continuation(prompt, answer)
        assert [tokenizer.backend.id_to_token(id) for id in follows.ids] == pieces
        assert follows.notices == ()
        together = tokenizer.ids(prompt + answer)
        assert [*tokenizer.ids(prompt), *follows.ids] == together

    @pytest.mark.parametrize(
        ("kind", "prompt", "answer", "pieces"),
        [
            ("bundled", "hello wor", "ld", ["ld"]),
            ("bundled", "It was late. ", "He", ["He"]),
            ("llama", "It was late. ", "He", ["He"]),
            ("llama", "It was late. H", "e", ["e"]),
        ],
    )
    def test_where_joining_changes_the_prompt(
        self, kind: str, prompt: str, answer: str, pieces: list[str]
    ) -> None:
        """The prompt stays; both readings are said."""
        tokenizer = vocabulary(kind)
        follows = tokenizer.continuation(prompt, answer)
        assert [tokenizer.backend.id_to_token(id) for id in follows.ids] == pieces
        (notice,) = follows.notices
        assert notice.kind == "joined"
        assert repr(tokenizer.label(follows.ids[0])) in notice.text
        assert repr(tokenizer.label(tokenizer.ids(prompt + answer)[-1])) in notice.text
        strict = replace(tokenizer, strict=True)
        with pytest.raises(TokenError, match="changes the prompt's own tokens"):
            strict.continuation(prompt, answer)
        assert strict.continuation(prompt, " He") == tokenizer.continuation(prompt, " He")
        by_id = f"id:{follows.ids[0]}"
        assert strict.continuation(prompt, by_id).ids == follows.ids[:1], "asked for by id"

    @given(
        st.sampled_from(NAMES),
        st.text("It was late. Hello\n7é", min_size=1, max_size=12),
        st.text(" Helo.i7", min_size=1, max_size=6),
    )
    def test_any_texts(self, kind: str, prompt: str, answer: str) -> None:
        tokenizer = vocabulary(kind)
        try:
            follows = tokenizer.continuation(prompt, answer)
        except TokenError:
            assert not answer.strip()  # words have no token for a space
            return
        as_one = [*tokenizer.ids(prompt), *follows.ids] == tokenizer.ids(prompt + answer)
        assert as_one == (not follows.notices)

    def test_a_special_tokens_text_is_that_token(self) -> None:
        tokenizer = vocabulary("byte-level")
        special = tokenizer.single("<|im_start|>")
        assert tokenizer.continuation("It was late.", "<|im_start|>").ids == (special,)


class TestSpecialText:
    TEXT = "<|im_start|>It was<|im_start|>"

    def test_is_plain_and_said_so(self) -> None:
        tokenizer = vocabulary("byte-level")
        assert not set(tokenizer.ids(self.TEXT)) & tokenizer.special
        (notice,) = tokenizer.notices(self.TEXT)
        assert "2 special tokens (<|im_start|>)" in notice.text
        assert "model.with_special()" in notice.text
        assert tokenizer.notices("It was") == ()

    def test_a_switch_on_the_tokenizer_parses_it(self) -> None:
        tokenizer = replace(vocabulary("byte-level"), parse_special=True)
        row = tokenizer.tokenize(self.TEXT).rows()[0]
        special = tokenizer.single("<|im_start|>")
        assert (row[0], row[-1]) == (special, special)
        assert tokenizer.notices(self.TEXT) == ()


class TestBosAlone:
    def test_an_empty_text_is_bos(self) -> None:
        tokenizer = vocabulary("bundled")
        assert tokenizer.tokenize("").rows() == [[tokenizer.bos_id]]

    def test_a_bos_that_nobody_uses_is_said_once(self) -> None:
        tokenizer = vocabulary("byte-level")
        (notice,) = tokenizer.bos_notice()
        assert "<|endoftext|>" in notice.text
        assert tokenizer.with_bos(False).bos_notice() == ()
        assert vocabulary("bundled").bos_notice() == ()
