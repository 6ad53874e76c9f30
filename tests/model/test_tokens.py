"""Does text become ids, and ids text, without surprises?"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.presets import preset
from casestudy.errors import ModelError, PromptError, TokenError
from casestudy.measure.ledger import ledger
from casestudy.model.decoder import run
from casestudy.model.loading import BUNDLED, load
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer, Tokens
from tests.helpers import copy_tokenizer

BOS = 8191
SPECIAL = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bundled()


@cache
def bundled() -> Tokenizer:
    return Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=True, n_ctx=256)


ODD_TEXTS = [
    "a\x00b",
    "\x00",
    "👩‍👩‍👧 went home",
    "שלום עולם",
    "‮reversed‬ text",
    "<script>alert('x')</script> & <b>bold</b>",
    " \n\t\r\n  ",
    "é" + "e\u0301",
    "\ufeffmark",
    "\U0010ffff",
]


class TestRoundTrip:
    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_odd_texts(self, tokenizer: Tokenizer, text: str) -> None:
        (row,) = tokenizer.tokenize(text).rows()
        assert row[0] == BOS
        assert tokenizer.backend.decode(row[1:], skip_special_tokens=False) == text

    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
    def test_any_text(self, text: str) -> None:
        ids = bundled().ids(text)
        assert bundled().backend.decode(ids, skip_special_tokens=False) == text

    def test_strings_join_to_the_text(self, tokenizer: Tokenizer) -> None:
        text = "The door was open . He left ."
        ids = tokenizer.ids(text)
        assert "".join(tokenizer.strings(ids)) == text
        assert tokenizer.strings(torch.tensor(ids)) == tokenizer.strings(ids)

    def test_a_piece_of_a_character_shows_as_a_replacement(self, tokenizer: Tokenizer) -> None:
        pieces = tokenizer.strings(tokenizer.ids("\U0010ffff"))
        assert len(pieces) > 1
        assert set(pieces) == {"\ufffd"}

    def test_vocabulary_is_every_string(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.vocabulary()
        assert len(vocabulary) == tokenizer.d_vocab
        for id in (0, 13, 500, BOS):
            assert vocabulary[id] == tokenizer.string(id)


class TestBos:
    def test_family_default_and_switch(self, tokenizer: Tokenizer) -> None:
        default, without = tokenizer.tokenize("Hi"), tokenizer.tokenize("Hi", prepend_bos=False)
        assert default.bos
        assert not without.bos
        assert default.rows() == [[BOS, *without.rows()[0]]]

    def test_said_once_it_holds_wherever_the_model_reads(self) -> None:
        model = load("tiny")
        without = load("tiny", prepend_bos=False)
        texts = ["Hi", "He sat down. He"]
        expected = model.tokenize(texts, prepend_bos=False)
        assert not without.tokenizer.prepend_bos
        assert without.tokenize(texts).rows() == expected.rows()
        assert model.with_bos(False).tokenize(texts).rows() == expected.rows()
        assert without.with_bos(True).tokenize(texts).rows() == model.tokenize(texts).rows()
        assert model.tokenizer.prepend_bos  # the one it was made from stays as it was
        assert without.weight_hash == model.weight_hash
        logits = run(without, texts, logits="last").logits
        torch.testing.assert_close(logits, run(model, expected, logits="last").logits)

    def test_a_measurement_takes_it_from_the_model(self, toy_folder: Callable[..., Path]) -> None:
        folder = toy_folder(n_positions=256)
        model, without = load(folder), load(folder, prepend_bos=False)
        behaviour = preset("full-stop-capitals")
        once = ledger(without, behaviour)
        later = ledger(model.with_bos(False), behaviour)
        np.testing.assert_array_equal(once.values, later.values)  # absent terms are NaN in both
        assert not np.array_equal(once.values, ledger(model, behaviour).values, equal_nan=True)
        with pytest.raises(TypeError, match="unexpected keyword argument 'prepend_bos'"):
            ledger(without, behaviour, prepend_bos=False)  # type: ignore[call-arg]

    def test_what_was_chosen_needs_no_remark(self) -> None:
        tokenizer = load("tiny").tokenizer
        silent_family = replace(tokenizer, prepend_bos=False)
        assert [notice.kind for notice in silent_family.bos_notice()] == ["bos"]
        assert silent_family.with_bos(False).bos_notice() == ()
        assert load("tiny", prepend_bos=False).tokenizer.bos_notice() == ()

    def test_never_doubled(self, tokenizer: Tokenizer) -> None:
        once = tokenizer.tokenize("Hi").rows()
        assert tokenizer.tokenize(SPECIAL + "Hi", parse_special=True).rows() == once
        twice = tokenizer.tokenize(SPECIAL * 2 + "Hi", parse_special=True).rows()
        assert twice[0][:3] == [BOS, BOS, once[0][1]]  # what the text itself says stays

    def test_special_text_is_literal_unless_asked(self, tokenizer: Tokenizer) -> None:
        literal = tokenizer.ids(SPECIAL)
        assert BOS not in literal
        assert "".join(tokenizer.strings(literal)) == SPECIAL
        assert tokenizer.ids(SPECIAL, parse_special=True) == [BOS]

    def test_threads_do_not_switch_each_other(self, tokenizer: Tokenizer) -> None:
        def ids(parse: bool) -> list[int]:
            return tokenizer.ids(SPECIAL, parse_special=parse)

        asked = [i % 2 == 0 for i in range(400)]
        with ThreadPoolExecutor(8) as pool:
            for parse, got in zip(asked, pool.map(ids, asked), strict=True):
                assert (got == [BOS]) == parse

    def test_a_tokenizer_without_bos(self, tmp_path: Path) -> None:
        copy_tokenizer(tmp_path)
        none = {"bos_token": None, "eos_token": SPECIAL}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(none))
        tokenizer = Tokenizer.from_directory(tmp_path, prepend_bos=True, n_ctx=256)
        assert tokenizer.bos_id is None
        assert not tokenizer.prepend_bos
        assert not tokenizer.tokenize("Hi").bos
        with pytest.raises(TokenError, match=r"no BOS token\. Allowed: prepend_bos=False"):
            tokenizer.tokenize("Hi", prepend_bos=True)
        with pytest.raises(TokenError, match=r"no BOS token\. Allowed: prepend_bos=False"):
            tokenizer.with_bos(True)
        assert tokenizer.with_bos(False) == tokenizer

    @pytest.mark.parametrize(
        "where",
        [
            {"tokenizer_config.json": {"bos_token": {"content": SPECIAL}}},
            {"special_tokens_map.json": {"bos_token": SPECIAL}},
            {"generation_config.json": {"bos_token_id": BOS}},
            {"config.json": {"bos_token_id": BOS}},
        ],
        ids=lambda where: next(iter(where)),
    )
    def test_where_bos_is_looked_up(self, tmp_path: Path, where: dict[str, object]) -> None:
        (tmp_path / "tokenizer.json").write_bytes((BUNDLED / "tiny/tokenizer.json").read_bytes())
        for name, entries in where.items():
            (tmp_path / name).write_text(json.dumps(entries))
        tokenizer = Tokenizer.from_directory(tmp_path, prepend_bos=True, n_ctx=256)
        assert tokenizer.bos_id == BOS
        assert tokenizer.prepend_bos

    @pytest.mark.parametrize(
        ("files", "ends"),
        [
            ({"generation_config.json": {"eos_token_id": [BOS, 17]}}, {BOS, 17}),
            ({"generation_config.json": {"eos_token_id": 17}}, {17}),
            ({"config.json": {"eos_token_id": [17, 10**6]}}, {17}),  # no token has the other
            (
                {
                    "generation_config.json": {"eos_token_id": 5},
                    "config.json": {"eos_token_id": [17]},
                },
                {5},
            ),
            ({"generation_config.json": {"eos_token_id": ["17", None, True]}}, set()),
        ],
    )
    def test_every_token_that_ends_a_text(
        self, tmp_path: Path, files: dict[str, object], ends: set[int]
    ) -> None:
        (tmp_path / "tokenizer.json").write_bytes((BUNDLED / "tiny/tokenizer.json").read_bytes())
        for name, entries in files.items():
            (tmp_path / name).write_text(json.dumps(entries))
        tokenizer = Tokenizer.from_directory(tmp_path, prepend_bos=True, n_ctx=256)
        assert tokenizer.end_ids == ends
        assert tokenizer.eos_id == (BOS if BOS in ends else None)  # 17 and 5 are ordinary

    def test_an_ordinary_token_is_never_taken_for_bos(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes((BUNDLED / "tiny/tokenizer.json").read_bytes())
        (tmp_path / "config.json").write_text('{"bos_token_id": 17}')
        assert Tokenizer.from_directory(tmp_path, prepend_bos=True, n_ctx=256).bos_id is None


class TestSingle:
    def test_one_token(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.string(tokenizer.single(" He")) == " He"
        assert tokenizer.single(SPECIAL) == BOS
        assert tokenizer.is_special(BOS)
        assert not tokenizer.is_special(tokenizer.single(" He"))

    def test_several_tokens_are_shown(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(TokenError, match=r"' He left' is 2 tokens: ' He', ' left'"):
            tokenizer.single(" He left")

    def test_none_at_all(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(TokenError, match="'' is 0 tokens: nothing"):
            tokenizer.single("")

    @pytest.mark.parametrize("id", [8192, 10**6])
    def test_id_out_of_the_vocabulary(self, tokenizer: Tokenizer, id: int) -> None:
        with pytest.raises(TokenError, match=rf"token id {id}. Allowed: 0 to 8191"):
            tokenizer.string(id)


class TestRefusals:
    def test_empty_prompt_is_named(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(PromptError, match="prompt 1 is empty"):
            tokenizer.tokenize(["a", ""], prepend_bos=False)
        with pytest.raises(PromptError, match="no prompts"):
            tokenizer.tokenize([])

    def test_too_long_is_refused_not_cut(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.tokenize(" a" * 255).lengths.tolist() == [256]
        with pytest.raises(PromptError, match=r"prompt 1 is 257 tokens long. Allowed: at most 256"):
            tokenizer.tokenize(["a", " a" * 256])

    def test_lone_surrogate(self, tokenizer: Tokenizer) -> None:
        # what Python makes of a command-line argument that is not UTF-8
        broken = b"caf\xe9".decode("utf-8", "surrogateescape")
        with pytest.raises(PromptError, match="lone surrogate at character 3"):
            tokenizer.tokenize(broken)

    def test_files_that_are_not_a_tokenizer(self, tmp_path: Path) -> None:
        def read() -> Tokenizer:
            return Tokenizer.from_directory(tmp_path, prepend_bos=True, n_ctx=8)

        with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
            read()
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ModelError, match="is not a tokenizer"):
            read()
        copy_tokenizer(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{")
        with pytest.raises(ModelError, match="is not JSON"):
            read()


class TestTokens:
    def test_padding_and_what_it_hides(self) -> None:
        tokens = Tokens.of([[1, 2, 3], [4]], pad=9)
        assert tokens.ids.tolist() == [[1, 2, 3], [4, 9, 9]]
        assert tokens.rows() == [[1, 2, 3], [4]]
        assert tokens.last.tolist() == [2, 0]
        assert tokens.mask.tolist() == [[True, True, True], [True, False, False]]
        assert len(tokens) == 2

    def test_some_of_them(self) -> None:
        tokens = Tokens.of([[1, 2, 3], [4], [5, 6]], bos=True)
        assert tokens[[2, 1]].ids.tolist() == [[5, 6], [4, 0]]
        assert tokens[1:].rows() == [[4], [5, 6]]
        assert tokens[1:].bos

    @pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
    def test_no_tokens(self, rows: list[list[int]]) -> None:
        with pytest.raises(PromptError, match="no tokens"):
            Tokens.of(rows)


def test_model_tokenizes_on_its_device(toy_model: Model) -> None:
    tokens = toy_model.tokenize(["a", "b c"])
    assert tokens.ids.device == toy_model.device
    assert tokens.rows() == toy_model.tokenizer.tokenize(["a", "b c"]).rows()
