"""Each text is run once, and its value is that of a run alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.counterfactual import propose
from casestudy.engine import batch
from casestudy.engine.batch import of_last_logits
from casestudy.engine.workers import cores_set
from casestudy.measure.edit_scores import pair_values
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from tests.behaviour.test_counterfactual import a_contrast
from tests.measure.worlds import decoder


def test_a_text_that_several_families_make_is_run_once(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, ...]] = []

    def running(model: Model, tokens: Tokens, **more: Any) -> Any:
        ran.extend(map(tuple, tokens.rows()))
        return run(model, tokens, **more)

    monkeypatch.setattr(batch, "run", running)
    prompts = ["It is here. It is there.", "it is here. it is there.", "go"]
    proposals = propose(toy_model, prompts)
    texts = [text for p in proposals.pairs for text in (p.clean.text, p.corrupted.text)]
    values = pair_values(toy_model, proposals, a_contrast(toy_model, 3))
    assert values.shape == (2, len(proposals.pairs))
    assert len(ran) == len(set(ran)) == len(set(texts)) < len(texts)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 3))
def test_logits_of_many_prompts_are_those_of_each_alone(lengths: list[int], cores: int) -> None:
    model = decoder("llama")
    rows = [[(7 * i + j) % model.config.d_vocab for j in range(n)] for i, n in enumerate(lengths)]
    with cores_set(cores), torch.no_grad():
        read = list(of_last_logits(model, Tokens.of(rows), lambda logits, _: logits))
    assert sorted(i for some, _ in read for i in some) == list(range(len(rows)))
    for some, logits in read:
        for i, found in zip(some, logits, strict=True):
            alone = run(model, Tokens.of([rows[i]]), logits="last").logits
            assert alone is not None
            np.testing.assert_allclose(found.numpy(), alone[0].numpy(), atol=1e-10)
