"""Is a GGUF file's tokenizer rebuilt so that text has the ids that its model learned?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from casestudy.errors import ModelError
from casestudy.model.gguf_file import GgufFile
from casestudy.model.gguf_tokenizer import PRE_TOKENIZERS, read_tokenizer
from casestudy.model.loading import BUNDLED
from casestudy.model.tokens import Tokenizer
from tests.gguf_files import Writer, bundled_tokenizer

TEXTS = [
    *("It was late.", " two  spaces", "   ", "a\n\n b\r\n\tc", "trailing ", " "),
    *("1984", " 3.14159 and 1,000,000", "x1y22z333", "½ ² Ⅷ ٣"),
    *("I'll we've DON'T it's", "naïve café Ünïcödé", "e\u0301 combined"),
    *("日本語のテキスト、です。", "한국어 텍스트", "Привет мир", "مرحبا"),
    *("😀👩‍👩‍👧 🏳️‍🌈", "def f(x):\n    return x**2  # ok\n", "<a href='b'>&amp;</a>"),
    *("https://example.org/?q=a%20b", "$10.00!!! ... --", "\u200b\ufeff\x00\x7f", "�"),
    *("<|endoftext|> inside", "a<|endoftext|>b", "ﬁ ﬀ ǅ", "aaaaaaaaaaaaaaaaaaaaaa"),
]
# Letters and a few pairs of them, in the order in which they are merged.
PIECES = [
    *("▁", "a", "b", "e", "h", "l", "o", "t", "\n"),
    *("▁t", "he", "▁the", "ll", "llo", "hello", "▁hello", "lo", "▁▁", "th"),
]


def sentencepiece(arch: str, **flags: bool) -> Writer:
    """A vocabulary of sentencepiece's kind: special tokens, bytes, pieces with scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    types = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(PIECES))])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        for key, value in flags.items():
            getattr(writer, f"add_{key}")(value)

    return add


def file(folder: Path, tokenizer: Writer, arch: str = "llama") -> Path:
    """A file with a tokenizer and next to nothing else."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, arch)
    tokenizer(writer)
    writer.add_tensor("token_embd.weight", np.zeros((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ours(folder: Path, tokenizer: Writer, arch: str = "llama") -> Tokenizer:
    path = file(folder, tokenizer, arch)
    return read_tokenizer(GgufFile(path).metadata, path, prepend_bos=None, n_ctx=99)


def theirs(folder: Path, arch: str) -> Any:
    """transformers' own reading; the whole file is not needed for its tokenizer."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    kind, entries, _ = get_gguf_tokenizer(str(folder / "model.gguf"))
    return convert_gguf_tokenizer(kind, entries)[0]


class TestByteLevel:
    # transformers has no rule of smollm's own: only digits beside a space would differ
    @pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "dbrx", "smaug-bpe", "gpt-4o", "tekken"])
    def test_ids_are_transformers_own(self, pre: str, tmp_path: Path) -> None:
        mine = ours(tmp_path, bundled_tokenizer(8192, pre))
        other = theirs(tmp_path, "llama")
        for text in TEXTS:
            ids = other.encode(text, add_special_tokens=False).ids
            assert mine.ids(text, parse_special=True) == ids, text

    def test_it_is_the_tokenizer_it_was_made_from(self, tmp_path: Path) -> None:
        mine = ours(tmp_path, bundled_tokenizer(8200))
        whole = Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=None, n_ctx=99)
        for text in TEXTS:
            for parse in (False, True):
                assert mine.ids(text, parse_special=parse) == whole.ids(text, parse_special=parse)
        assert mine.vocabulary() == whole.vocabulary()
        assert (mine.bos_id, mine.eos_id, mine.special) == (8191, 8191, {8191})

    def test_digits_are_words_of_their_own(self, tmp_path: Path) -> None:
        mine = ours(tmp_path, bundled_tokenizer(8192, "smollm"))
        assert [mine.string(id) for id in mine.ids(" in 1984x")] == [
            *(" in", " ", "1", "9", "8", "4", "x")
        ]

    def test_a_rule_that_is_not_known(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"pre is 'klingon', a pre-tokenizer.*gpt-2"):
            ours(tmp_path, bundled_tokenizer(8192, "klingon"))

    def test_bos_as_the_file_says(self, tmp_path: Path) -> None:
        mine = ours(tmp_path, bundled_tokenizer(8192))
        assert not mine.prepend_bos

        def with_bos(writer: gguf.GGUFWriter) -> None:
            bundled_tokenizer(8192)(writer)
            del writer.kv_data[0]["tokenizer.ggml.add_bos_token"]
            writer.add_add_bos_token(True)
            writer.add_chat_template("{{ messages }}")
            writer.add_eot_token_id(17)

        mine = ours(tmp_path, with_bos)
        assert mine.tokenize("It").rows()[0][0] == 8191
        assert mine.chat_template == "{{ messages }}"
        assert mine.end_ids == {17}

    def test_several_chat_templates(self, tmp_path: Path) -> None:
        def with_templates(writer: gguf.GGUFWriter) -> None:
            bundled_tokenizer(8192)(writer)
            named = {"default": "d", "tool_use": "t"}
            writer.add_chat_template([{"name": n, "template": t} for n, t in named.items()])

        mine = ours(tmp_path, with_templates)
        assert mine.chat_template == "d"
        assert mine.more_templates == (("tool_use", "t"),)

    def test_llama3_takes_whole_words(self) -> None:
        assert PRE_TOKENIZERS["llama-bpe"] != PRE_TOKENIZERS["tekken"]


class TestSentencepiece:
    SPM = ("hello the hello", "the", "ox 😀 é\n", "thellо", "the  hello", "hello ")

    @pytest.mark.parametrize("arch", ["llama", "phi3"])
    def test_ids_are_transformers_own(self, arch: str, tmp_path: Path) -> None:
        mine = ours(tmp_path, sentencepiece(arch), arch)
        other = theirs(tmp_path, arch)
        # Llama's class of transformers adds no mark to a text that starts with a space
        texts = (*self.SPM, *((" the", "  a") if arch == "phi3" else ()))
        for text in texts:
            assert mine.ids(text) == other.encode(text, add_special_tokens=False).ids, text

    def test_gemma_adds_no_space(self, tmp_path: Path) -> None:
        mine = ours(tmp_path, sentencepiece("gemma2", add_space_prefix=False), "gemma2")
        other = theirs(tmp_path, "gemma2")
        for text in self.SPM:
            assert mine.ids(text) == other.encode(text, add_special_tokens=False).ids, text

    def test_text_comes_back(self, tmp_path: Path) -> None:
        mine = ours(tmp_path, sentencepiece("llama"))
        assert mine.prepend_bos  # sentencepiece's files say so only where they do not
        assert "".join(mine.strings(mine.ids("the hello"))) == " the hello"
        assert mine.backend.decode(mine.ids("the 😀 hello")) == "the 😀 hello"

    def test_a_first_space_is_kept(self, tmp_path: Path) -> None:
        """Sentencepiece puts its mark before every text, also one that starts with a space."""
        mine = ours(tmp_path, sentencepiece("llama"))
        assert [mine.backend.id_to_token(id) for id in mine.ids(" hello")] == ["▁", "▁hello"]

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("tokenizer.ggml.model", "bert", "of the kind 'bert'"),
            ("tokenizer.ggml.tokens", "x", r"tokens is 'x'. Allowed: a list"),
            ("tokenizer.ggml.tokens", ["a" * 2000], "2000 characters in one"),
            ("tokenizer.ggml.scores", np.zeros(3), "scores is .* one per token"),
            ("tokenizer.ggml.bos_token_id", 10**6, "bos_token_id is '1000000'. Allowed: an id"),
            ("tokenizer.ggml.remove_extra_whitespaces", True, "remove_extra_whitespaces is"),
            ("tokenizer.ggml.add_bos_token", "yes", "add_bos_token is 'yes'. Allowed: bool"),
        ],
    )
    def test_refused(self, key: str, value: object, message: str, tmp_path: Path) -> None:
        path = file(tmp_path, sentencepiece("llama"))
        metadata = {**GgufFile(path).metadata, key: value}
        with pytest.raises(ModelError, match=message):
            read_tokenizer(metadata, path, prepend_bos=None, n_ctx=9)
