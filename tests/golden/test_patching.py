"""Does patching GPT-2 small's stream restore the capital where it was recorded to?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from casestudy.behaviour.contrast import Contrast
from casestudy.engine.cells import first_differences
from casestudy.measure.patching import Pairs, Patched, patch
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer
from casestudy.results.result import Array
from tests.golden.conftest import DATA

CURVE = 1e-3  # recorded to float32 from rewritten weights, which round differently
PRINTED = 0.0011  # printed to 0.001


@pytest.fixture(scope="module")
def patched(gpt2: Model, recorded: dict[str, Any]) -> Patched:
    batch = recorded["batches"]["eleven_token_batch_8"]
    both = Pairs(gpt2.tokenize(batch["prompts"]), gpt2.tokenize(batch["corrupted_prompts"]))
    answers = [row[0] for row in batch["answers"]]
    counterparts = [row[1] for row in batch["answers"]]
    contrast = Contrast.between(gpt2, answers, counterparts)
    return patch(gpt2, both, contrast, "resid_pre")


@pytest.fixture(scope="module")
def grid() -> Array:
    """The recorded grid, (layer, pos)."""
    text = (DATA / "resid_pre_patching.json").read_text("utf-8")
    return np.array(json.loads(text)["value"])


def test_the_recorded_cells_are_zero_where_the_tokens_are_equal(
    gpt2_tokenizer: Tokenizer, recorded: dict[str, Any], grid: Array
) -> None:
    """Needs no weights: at layer 0 a position's stream is its token's embedding."""
    batch = recorded["batches"]["eleven_token_batch_8"]
    clean = gpt2_tokenizer.tokenize(batch["prompts"])
    corrupted = gpt2_tokenizer.tokenize(batch["corrupted_prompts"])
    differ = (clean.ids != corrupted.ids).any(0).tolist()
    assert grid.shape == (12, 11)
    assert (grid[0] != 0).tolist() == differ
    before = min(first_differences(corrupted, clean))
    assert before == 1
    assert (grid[:, :before] == 0).all()


def test_the_baselines(patched: Patched, recorded: dict[str, Any]) -> None:
    batch = recorded["batches"]["eleven_token_batch_8"]
    corrupted = batch["corrupted_logit_diff_lowercase"]["per_prompt"]
    clean = batch["logit_diff"]["lowercase"]["per_prompt"]
    np.testing.assert_allclose(patched.baselines.values, [corrupted, clean], atol=PRINTED)


def test_the_grid_of_layers_and_positions(patched: Patched, grid: Array) -> None:
    np.testing.assert_allclose(patched.normalised.values, grid, atol=CURVE)
    assert patched.raw.error["gap"] <= 1e-4
