"""Do the layers and heads of GPT-2 small write what was recorded of them?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from casestudy.measure.attribution import head_attribution
from casestudy.measure.ledger import ledger
from casestudy.model.folding import rewrite
from casestudy.model.model import Model
from casestudy.results.names import BIAS
from tests.golden.test_predictions import behaviour

TOLERANCE = 1e-3


def test_layers(gpt2: Model, recorded: dict[str, Any]) -> None:
    batch = recorded["batches"]["eleven_token_batch_8"]
    layers = batch["layer_attribution"]
    grid = ledger(gpt2, behaviour(batch)).select(contrast="lowercase")
    for label, expected in zip(layers["labels"], layers["value"], strict=True):
        # "3_attn_out" is the ledger's "attn 3"
        layer, _, part = label.removesuffix("_out").partition("_")
        term = f"{part} {layer}" if layer.isdigit() else label
        found = grid.select(term=term).values.mean()
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=label)


@pytest.mark.parametrize("rewrites", [(), ("fold_value_biases",), ("fold_ln", "fold_value_biases")])
def test_heads(gpt2: Model, recorded: dict[str, Any], rewrites: tuple[str, ...]) -> None:
    """Recorded after TransformerLens's rewrites; heads come out alike without them."""
    batch = recorded["batches"]["eleven_token_batch_8"]
    grid = head_attribution(rewrite(gpt2, *rewrites), behaviour(batch))
    assert grid.axis("head").labels[-1] == BIAS
    heads = grid.select(contrast="lowercase").values[:, :-1].mean(-1)
    np.testing.assert_allclose(heads, batch["head_attribution"]["value"], atol=TOLERANCE)


def test_heads_and_biases_are_the_recorded_layers(gpt2: Model, recorded: dict[str, Any]) -> None:
    batch = recorded["batches"]["eleven_token_batch_8"]
    recorded_layers = batch["layer_attribution"]
    layers = dict(zip(recorded_layers["labels"], recorded_layers["value"], strict=True))
    grid = head_attribution(gpt2, behaviour(batch)).select(contrast="lowercase")
    for layer, total in enumerate(grid.values.sum(1).mean(-1)):
        expected = layers[f"{layer}_attn_out"]
        np.testing.assert_allclose(total, expected, atol=TOLERANCE, err_msg=str(layer))
