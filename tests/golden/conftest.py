"""GPT-2 small itself, where its weights are at hand; nothing is downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from casestudy.errors import ModelError
from casestudy.model.loading import load
from casestudy.model.model import Model

GPT2 = "CASESTUDY_GPT2"
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def gpt2() -> Model:
    """GPT-2 small as its checkpoint has it, from CASESTUDY_GPT2's folder or the local cache."""
    folder = os.environ.get(GPT2)
    if folder:
        return load(folder, device="cpu")
    try:
        return load("gpt2", device="cpu")
    except ModelError as missing:
        pytest.skip(
            "GPT-2's weights are not in the local Hugging Face cache: run "
            f"`hf download openai-community/gpt2`, or set {GPT2} to a folder that holds them "
            f"({missing.came})"
        )


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    """The figures that were printed from GPT-2 small in the notebook this project starts from."""
    figures: dict[str, Any] = json.loads((DATA / "gpt2_small.json").read_text("utf-8"))
    return figures
