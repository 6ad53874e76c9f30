"""Does a prompt's result depend on its neighbours? (It must not.)

Prompts of unequal length in one call equal each alone, to 1e-5 relative in float32: the only
difference left is the order in which a matrix product of another size adds its terms.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from casestudy.model.decoder import run
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens

SITES = (Site.RESID_PRE, Site.Q, Site.K, Site.Z, Site.PATTERN, Site.MLP_POST, Site.FINAL_NORMED)


def close(batched: Tensor, alone: Tensor) -> None:
    """Within 1e-5 of the largest magnitude at hand."""
    tolerance = 1e-5 * float(alone.abs().max())
    torch.testing.assert_close(batched, alone, rtol=1e-5, atol=tolerance)


def check(model: Model, tokens: Tokens) -> None:
    together = run(model, tokens, keep=SITES, logits="all")
    assert together.logits is not None
    last = run(model, tokens, logits="last").logits
    assert last is not None
    for i, row in enumerate(tokens.rows()):
        alone = run(model, Tokens.of([row]), keep=SITES, logits="all")
        assert alone.logits is not None
        close(together.logits[i, : len(row)], alone.logits[0])
        close(last[i], alone.logits[0, -1])
        for site in SITES:
            for layer in range(model.config.n_layers) if site.layered else (None,):
                key = site if layer is None else (site, layer)
                close(together.of(key, i), alone.of(key, 0))


@given(
    rows=st.lists(st.lists(st.integers(0, 8191), min_size=1, max_size=24), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    pad=st.integers(0, 8191),
)
@settings(max_examples=25)
def test_any_tokens_in_any_order(
    toy: Callable[..., Model], rows: list[list[int]], order: random.Random, pad: int
) -> None:
    order.shuffle(rows)
    check(toy(n_layer=3), Tokens.of(rows, pad=pad))


@given(texts=st.lists(st.text("aB .,é👍\x00", min_size=1, max_size=12), min_size=2, max_size=5))
@settings(max_examples=25)
def test_any_texts(toy_model: Model, texts: list[str]) -> None:
    check(toy_model, toy_model.tokenize(texts))


def test_the_padding_is_never_looked_at(toy_model: Model) -> None:
    """Bit for bit: what stands in the padding enters no sum at all."""
    rows = [[1, 2, 3, 4], [5]]
    a = run(toy_model, Tokens.of(rows, pad=0), logits="last").logits
    b = run(toy_model, Tokens.of(rows, pad=77), logits="last").logits
    assert a is not None
    assert b is not None
    assert torch.equal(a, b)


def test_on_real_weights() -> None:
    model = load("tiny", device="cpu")
    check(model, model.tokenize(["He left.", "The door was open, and nobody came in.", "A"]))
