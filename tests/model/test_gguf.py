"""Is a GGUF file read as the model that it was made from, and as transformers reads it?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from casestudy.model.decoder import run
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from tests.gguf_files import Writer, as_transformers_reads_it, write
from tests.model.test_families import CASES, HEADS, LLAMA3, LONG, ROWS, SHAPE, build, pair_of

KEYS = gguf.Keys


def linear(factor: float) -> Writer:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)

    return add


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(8)


def longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(2) / math.log(16)))


def capped(attention: float | None, final: float | None, scale: float = 1 / 3) -> Writer:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_attention_scale(scale)
        if attention:
            writer.add_attn_logit_softcapping(attention)
        if final:
            writer.add_final_logit_softcapping(final)

    return add


def sliding(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window_pattern([True, False, True])


def llama3_factors(d_head: int) -> Tensor:
    """The divisors of Llama 3.1's frequencies, as converters store them."""
    low, high = (
        LLAMA3["original_max_position_embeddings"] / LLAMA3[f"{k}_freq_factor"]
        for k in ("low", "high")
    )
    divisors = []
    for i in range(d_head // 2):
        length = 2 * math.pi * LLAMA3["rope_theta"] ** (2 * i / d_head)
        smooth = (LLAMA3["original_max_position_embeddings"] / length - 1) / (4 - 1)
        if length < high:
            divisors.append(1.0)
        elif length > low:
            divisors.append(LLAMA3["factor"])
        else:
            divisors.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return torch.tensor(divisors)


SHORT, LONG_FACTORS = torch.tensor(LONG["short_factor"]), torch.tensor(LONG["long_factor"])
# a case of test_families: what the converter writes beyond the shape
WRITTEN: dict[str, tuple[list[Writer], dict[str, Tensor]]] = {
    **dict.fromkeys(("gpt2", "gpt_neox", "gpt_neox sequential, no biases", "llama"), ([], {})),
    **dict.fromkeys(("llama tied, with biases", "qwen2", "qwen3", "olmo2", "phi3"), ([], {})),
    **dict.fromkeys(("stablelm", "stablelm parallel, normed"), ([], {})),
    "llama llama3": ([], {"rope_freqs": llama3_factors(8)}),
    "llama linear": ([linear(2.0)], {}),
    "llama yarn": ([yarn], {}),
    "gemma2": ([capped(2.0, 3.0)], {}),
    "gemma3_text": ([capped(None, None), sliding], {}),
    "gemma3_text scaled": ([linear(8.0), capped(None, 5.0, 1 / 16), sliding], {}),
    "phi3 longrope": (
        [longrope],
        {"rope_factors_short": SHORT, "rope_factors_long": LONG_FACTORS},
    ),
}
SMOLLM3 = SHAPE | {"num_hidden_layers": 5, "pad_token_id": 0, "tie_word_embeddings": True}


def logits(model: Model, row: list[int]) -> Tensor:
    found = run(model, Tokens.of([row]), logits="all").logits
    assert found is not None
    return found[0]


def far(ours: Tensor, theirs: Tensor) -> float:
    """The error's norm over the norm itself."""
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def check_same(ours: Model, theirs: Any) -> None:
    for row in ROWS:
        # 1e-4: float32, and the 1 that Gemma's norms gain and lose
        assert far(logits(ours, row), theirs(torch.tensor([row])).logits[0]) < 1e-4


class TestFamilies:
    @pytest.mark.parametrize("case", WRITTEN)
    def test_a_file_is_the_model_it_was_made_from(self, case: str, tmp_path: Path) -> None:
        pair = pair_of(case)
        more, factors = WRITTEN[case]
        ours = load(write(tmp_path, pair.theirs, *more, **factors), device="cpu")
        check_same(ours, pair.theirs)
        assert ours.tokenize("It was 3 o'clock.").rows() == (
            pair.ours("float32").tokenize("It was 3 o'clock.").rows()
        )

    def test_every_fourth_layer_of_smollm3_is_not_rotated(self, tmp_path: Path) -> None:
        theirs = build("SmolLM3Config", SMOLLM3).theirs
        ours = load(write(tmp_path, theirs), device="cpu")
        assert [rotary is None for rotary in ours.config.rotary] == [False] * 3 + [True, False]
        check_same(ours, theirs)

    # What transformers reads of a file, and leaves at its own defaults: head_dim where the key is
    # not known to it, Gemma's scale and soft-caps.
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("LlamaConfig", SHAPE),
            ("Qwen2Config", SHAPE),
            ("Qwen3Config", SHAPE | {"head_dim": 128}),
            ("Gemma2Config", HEADS | {"head_dim": 256, "tie_word_embeddings": True}),
            ("Gemma3TextConfig", HEADS | {"head_dim": 256, "tie_word_embeddings": True}),
            ("Phi3Config", SHAPE | {"pad_token_id": 0}),
            ("StableLmConfig", SHAPE | {"hidden_size": 32, "partial_rotary_factor": 0.25}),
            ("GPT2Config", CASES["gpt2"][1] | {"n_positions": 1024}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.slow
    def test_transformers_reads_it_alike(
        self, kind: str, options: dict[str, Any], tmp_path: Path
    ) -> None:
        model = build(kind, options).theirs
        path = write(tmp_path, model, lambda writer: writer.add_pad_token_id(0))
        check_same(load(path, device="cpu"), as_transformers_reads_it(path))
