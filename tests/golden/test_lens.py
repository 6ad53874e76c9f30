"""Does the lens of GPT-2 small rise as recorded, and is what it leaves out b_U?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from casestudy.behaviour.contrast import Contrast
from casestudy.measure.ledger import keep_for_ledger, ledger, ledger_terms
from casestudy.measure.lens import lens
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from casestudy.results.names import B_U, LOGITS
from casestudy.results.result import Grid
from tests.golden.test_predictions import behaviour

CURVE = 1e-3
PRINTED = 0.0011  # printed to 0.001


def main(grid: Grid) -> Grid:
    return grid.select(contrast="lowercase")


def test_the_curve(gpt2: Model, recorded: dict[str, Any]) -> None:
    batch = recorded["batches"]["eleven_token_batch_8"]
    curve = batch["logit_lens_accumulated"]
    grid = main(lens(gpt2, behaviour(batch)))
    assert grid.axis("depth").labels == (*curve["labels"], LOGITS)
    np.testing.assert_allclose(grid.values.mean(-1)[:-1], curve["value"], atol=CURVE)


@pytest.mark.parametrize("name", ["ragged_batch", "eleven_token_batch_8"])
def test_both_checks_with_b_U_restored(gpt2: Model, recorded: dict[str, Any], name: str) -> None:
    """7.233 is the projection and 6.617 the logits; the step between them is b_U."""
    batch = recorded["batches"][name]
    check = batch["lens_check_lowercase"]
    grid = main(lens(gpt2, behaviour(batch)))
    calculated = grid.select(depth="final_post").values.mean()
    original = grid.select(depth=LOGITS).values.mean()
    assert calculated == pytest.approx(check["calculated"], abs=PRINTED)
    assert original == pytest.approx(check["original"], abs=PRINTED)
    b_U = main(ledger(gpt2, behaviour(batch))).select(term=B_U).values.mean()
    assert calculated + b_U == pytest.approx(original, abs=1e-4)


def test_the_answers_themselves_as_inputs(gpt2: Model, recorded: dict[str, Any]) -> None:
    """The notebook's last check ran rows of two answer tokens, and divided five rows by four."""
    batch = recorded["batches"]["ragged_batch"]
    check = batch["top_answers_check"]
    tokens = Tokens.of(check["tokens"])
    contrast = Contrast.between(
        gpt2, [a[0] for a in batch["answers"]], [a[1] for a in batch["answers"]]
    )
    assert torch.equal(contrast.ids, tokens.ids)
    trace = run(gpt2, tokens, keep=keep_for_ledger(gpt2), logits="last")
    names, values = ledger_terms(gpt2, trace, contrast)
    b_U = values[names.index(B_U)].sum()
    total = values.sum()
    calculated = float(total - b_U) / check["divided_by"]
    assert calculated == pytest.approx(check["calculated_as_printed"], abs=PRINTED)
    assert float(total) / check["rows"] == pytest.approx(check["original"], abs=PRINTED)


def test_the_recorded_curve_is_the_recorded_layers_summed(recorded: dict[str, Any]) -> None:
    """Without the weights: the two recordings agree on what they leave out."""
    batch = recorded["batches"]["eleven_token_batch_8"]
    curve, layers = batch["logit_lens_accumulated"], batch["layer_attribution"]
    sums = np.cumsum(layers["value"])[1:]  # the first depth has embedding and positions
    np.testing.assert_allclose(sums, curve["value"], atol=1e-5)
    assert curve["note"] == layers["note"] == "without b_U"
