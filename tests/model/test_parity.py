"""Does the decoder compute what transformers computes, to rounding?

Random weights, every bias and norm moved off its trivial value. Prompts of unequal length go
through in one call here and one by one there, where no padding can interfere.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from casestudy.model.decoder import run
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from tests.helpers import copy_tokenizer, perturb_

LENGTHS = (17, 1, 9)


def saved(folder: Path, dtype: torch.dtype, **shape: int) -> GPT2LMHeadModel:
    """A random transformers GPT-2, in memory and in `folder`."""
    torch.manual_seed(0)
    config = GPT2Config(attn_implementation="eager", **shape)
    theirs = GPT2LMHeadModel(config).eval().to(dtype)
    perturb_(theirs)
    theirs.save_pretrained(folder)
    copy_tokenizer(folder)
    return theirs


@pytest.fixture(scope="module")
def full_size(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[GPT2LMHeadModel, Model]]:
    """GPT-2 small's own shape, in float32."""
    folder = tmp_path_factory.mktemp("full-size")
    theirs = saved(folder, torch.float32)
    yield theirs, load(folder, device="cpu")
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, Model]:
    """A small shape, in float64 on disk and in both programs."""
    folder = tmp_path_factory.mktemp("small")
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 48, "n_positions": 32, "vocab_size": 8200}
    theirs = saved(folder, torch.float64, **shape)
    return theirs, load(folder, device="cpu", dtype="float64")


def compare(theirs: GPT2LMHeadModel, ours: Model, tolerance: float) -> None:
    rng = torch.Generator().manual_seed(1)
    rows = [torch.randint(ours.config.d_vocab, (n,), generator=rng).tolist() for n in LENGTHS]
    keep = ("embed", "pos_embed", "resid_pre", "resid_post", "final_normed", "pattern")
    trace = run(ours, Tokens.of(rows), keep=keep, logits="all")
    assert trace.logits is not None
    for prompt, row in enumerate(rows):
        with torch.no_grad():
            expected = theirs(
                torch.tensor([row]), output_hidden_states=True, output_attentions=True
            )
        close(trace.logits[prompt, : len(row)], expected.logits[0], tolerance)
        for layer in range(ours.config.n_layers):
            states = expected.hidden_states[layer][0]
            close(trace.of(("resid_pre", layer), prompt), states, tolerance)
            close(trace.of(("pattern", layer), prompt), expected.attentions[layer][0], tolerance)
        # transformers replaces the last hidden state by the final norm's output
        close(trace.of("final_normed", prompt), expected.hidden_states[-1][0], tolerance)
        close(embedded(trace, prompt), expected.hidden_states[0][0], tolerance)


def embedded(trace: Trace, prompt: int) -> Tensor:
    return trace.of("embed", prompt) + trace.of("pos_embed", prompt)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_full_size_float32(full_size: tuple[GPT2LMHeadModel, Model]) -> None:
    compare(*full_size, tolerance=1e-4)


def test_small_float64(small: tuple[GPT2LMHeadModel, Model]) -> None:
    compare(*small, tolerance=1e-9)


def test_nothing_compared_is_trivial(small: tuple[GPT2LMHeadModel, Model]) -> None:
    """A norm at weight 1 and bias 0 would hide a mistake in either."""
    _, ours = small
    for name, tensor in ours.weights.named():
        if tensor.ndim == 1 or ".b_" in name:
            assert tensor.std() > 0.05, name


@pytest.mark.parametrize(
    "options",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"tie_word_embeddings": False},
        {"activation_function": "relu", "n_inner": 40},
        {"activation_function": "gelu", "layer_norm_epsilon": 0.1},
    ],
    ids=lambda options: " ".join(options),
)
def test_variants_of_the_architecture(tmp_path: Path, options: dict[str, object]) -> None:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 8192}
    theirs = saved(tmp_path, torch.float64, **shape, **options)
    compare(theirs, load(tmp_path, device="cpu", dtype="float64"), 1e-9)
