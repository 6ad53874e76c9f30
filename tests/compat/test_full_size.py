"""Every hook of one run at GPT-2's full size, against a recording too large to keep here.

    .venv-transformerlens-3/bin/python benchmarks/record_transformerlens.py \\
        --full FOLDER --out FILE
    CASESTUDY_GPT2_SIZED=FOLDER CASESTUDY_TRANSFORMERLENS_RUN=FILE \\
        .venv/bin/python -m pytest -m large tests/compat/test_full_size.py

FOLDER is a checkpoint of GPT-2's shape, random or not; with `--bridge` in an environment with
TransformerLens 4.x, FILE is its TransformerBridge's run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from casestudy.compat.transformer_lens import HookedTransformer
from tests.compat import notebook_calls

FOLDER, RUN = "CASESTUDY_GPT2_SIZED", "CASESTUDY_TRANSFORMERLENS_RUN"


@pytest.mark.large
@pytest.mark.skipif(
    not {FOLDER, RUN} <= os.environ.keys(), reason=f"set {FOLDER} and {RUN}; see this file's top"
)
def test_every_hook_that_both_have_agrees_at_full_size() -> None:
    model = HookedTransformer.from_pretrained(os.environ[FOLDER], device="cpu")
    theirs = load_file(Path(os.environ[RUN]))
    tokens = model.to_tokens(notebook_calls.FULL_SIZE_PROMPT)
    assert torch.equal(tokens, theirs.pop("tokens"))
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    ours = {**cache, "logits": logits}
    shared = sorted(ours.keys() & theirs.keys())
    assert set(ours) <= set(theirs), "a hook that TransformerLens does not have"
    gaps = {}
    for name in shared:
        x, y = ours[name], theirs[name]
        assert x.shape == y.shape, name
        here = y.isfinite()
        assert torch.equal(x[~here], y[~here]), name
        gaps[name] = float((x[here] - y[here]).abs().max())
    print(f"{len(shared)} hooks; largest gap {max(gaps.values()):.1e} at {max(gaps, key=gaps.get)}")
    assert max(gaps.values()) <= 1e-4
