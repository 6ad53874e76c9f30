"""Values are TransformerLens 3.9.0's, call by call; see notebook_calls.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from casestudy.compat import transformer_lens
from casestudy.compat.transformer_lens import HookedTransformer
from tests.compat import notebook_calls

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(DATA / "transformerlens-3.9.0.safetensors")


@pytest.fixture(scope="module")
def load(toy_folder: Callable[..., Path]) -> Callable[..., Any]:
    folder = toy_folder(**notebook_calls.SHAPE)
    return partial(HookedTransformer.from_pretrained, str(folder), device="cpu")


@pytest.mark.parametrize("scenario", notebook_calls.SCENARIOS, ids=lambda s: s.__name__)
def test_what_a_notebook_gets_is_what_transformerlens_gave(
    scenario: Callable[..., dict[str, Tensor]],
    recorded: dict[str, Tensor],
    load: Callable[..., Any],
) -> None:
    prefix = f"{scenario.__name__}/"
    theirs = {k.removeprefix(prefix): x for k, x in recorded.items() if k.startswith(prefix)}
    ours = scenario(transformer_lens, load)
    assert ours.keys() == theirs.keys()
    different = []
    for name, expected in theirs.items():
        found = ours[name].detach()
        assert found.shape == expected.shape, name
        # 1e-4, the largest gap that TransformerLens itself allows to Hugging Face's values; of
        # sums of a dozen activations or products of gradients, 1e-5 of the largest
        bound = 1e-4 + 1e-5 * float(expected[expected.isfinite()].abs().max())
        close = torch.isclose(found.to(expected), expected, rtol=0, atol=bound, equal_nan=True)
        if not bool(close.all()):
            gap = float((found.to(expected) - expected).abs().max())
            different.append(f"{name}: {gap:.1e} of {float(expected.abs().max()):.1e}")
    assert not different


def test_the_parts_have_the_names_that_transformerlens_gives_them(load: Callable[..., Any]) -> None:
    expected = json.loads((DATA / "labels.json").read_text())
    assert notebook_calls.labels(transformer_lens, load) == expected
