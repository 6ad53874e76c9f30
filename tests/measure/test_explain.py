"""An attention score is exactly the sum of the pairs of components it is split over."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.errors import SiteError
from casestudy.measure.explain import explain_attention_score
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.weights import Norm
from tests.measure.batches import rows, say, spoken
from tests.measure.worlds import N_HEADS, N_LAYERS, VARIANTS, decoder

GRAINS = st.sampled_from(["layer", "head"])


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.integers(0, N_LAYERS - 1),
    st.integers(0, N_HEADS - 1),
    GRAINS,
    st.data(),
)
def test_it_closes(variant: str, layer: int, head: int, grain: str, data: st.DataObject) -> None:
    model = spoken(decoder(variant))
    (row,) = rows([7])
    window = (model.config.windows or (None,) * N_LAYERS)[layer] or 7
    query = data.draw(st.integers(0, 6))
    key = data.draw(st.integers(max(0, query - window + 1), query))
    grid = explain_attention_score(model, say(row), layer, head, query, key, grain=grain)
    assert grid.error["gap"] <= 1e-9
    scores = run(model, say(row), keep=[Site.ATTN_SCORES])[Site.ATTN_SCORES, layer]
    cap, total = model.config.attn_softcap, grid.values.sum()
    total = total if cap is None else cap * np.tanh(total / cap)
    assert total == pytest.approx(float(scores[0, head, query, key]), abs=1e-9)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_it_closes_in_float32(variant: str) -> None:
    model = spoken(decoder(variant, dtype=torch.float32))
    grid = explain_attention_score(model, say(rows([5])[0]), 2, 3, -1, -2, grain="head")
    assert grid.error["gap"] <= grid.error["bound"]


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_it_closes_where_queries_and_keys_are_normalised_per_head(kind: str) -> None:
    """With a bias too, and for StableLM's LayerNorm."""
    model = spoken(decoder("gemma3"))
    blocks = list(model.weights.blocks)
    attn = blocks[1].attn
    norms = [
        None if norm is None or norm.weight is None else Norm(norm.weight, norm.weight.sin())
        for norm in (attn.q_norm, attn.k_norm)
    ]
    if kind == "layer":
        blocks[1] = replace(blocks[1], attn=replace(attn, q_norm=norms[0], k_norm=norms[1]))
    config = replace(model.config, qk_norm_kind=kind)  # type: ignore[arg-type]
    weights = replace(model.weights, blocks=tuple(blocks))
    model = replace(model, config=config, weights=weights)
    grid = explain_attention_score(model, say(rows([4])[0]), 1, 2, 3, 2)
    assert grid.error["gap"] <= 1e-9


def test_a_components_row_is_what_the_score_loses_without_it() -> None:
    """Taking a component out of the query's stream, scales held, costs its row."""
    model = spoken(decoder("neox"))
    (row,) = rows([5])
    layer, head, query, key = 2, 1, 4, 1
    grid = explain_attention_score(model, say(row), layer, head, query, key)
    kept = [Site.MLP_OUT, Site.ATTN_SCALE, Site.ATTN_SCORES]
    clean = run(model, say(row), keep=kept)
    name = "mlp 1"
    without = run(
        model,
        say(row),
        keep=[Site.ATTN_SCORES],
        edit=[
            Edit(Site.ATTN_IN, layer, lambda x: x - _only(clean[Site.MLP_OUT, 1], query)),
            Edit.replace(Site.ATTN_SCALE, layer, clean[Site.ATTN_SCALE, layer]),
        ],
    )
    at = (0, head, query, key)
    lost = clean[Site.ATTN_SCORES, layer][at] - without[Site.ATTN_SCORES, layer][at]
    assert grid.select(query_component=name).values.sum() == pytest.approx(float(lost), abs=1e-9)


def _only(x: torch.Tensor, pos: int) -> torch.Tensor:
    """x at one position, zero elsewhere."""
    out = torch.zeros_like(x)
    out[:, pos] = x[:, pos]
    return out


def test_on_a_real_tokenizer_the_names_are_the_ledgers(toy_model: Model) -> None:
    grid = explain_attention_score(toy_model, "This is a sentence.", 1, 0, -1, 0)
    assert grid.axis("query_component").labels == ("embed", "pos_embed", "attn 0", "mlp 0", "bias")
    by_head = explain_attention_score(toy_model, "This is a sentence.", 1, 0, -1, 0, grain="head")
    assert by_head.axis("key_component").labels == (
        *("embed", "pos_embed", "head 0.0", "head 0.1", "head 0.2", "head 0.3", "attn 0 bias"),
        *("mlp 0", "bias"),
    )
    assert by_head.values.sum() == pytest.approx(grid.values.sum(), abs=1e-4)
    heads = by_head.values[2:7].sum(0)  # heads and their bias are the layer
    np.testing.assert_allclose(heads[[0, 1, 7, 8]], grid.values[2][[0, 1, 3, 4]], atol=1e-5)


def test_what_cannot_be_explained_is_refused(toy_model: Model) -> None:
    text = "This is a sentence."
    with pytest.raises(SiteError, match="cannot see the key at 3"):
        explain_attention_score(toy_model, text, 0, 0, 2, 3)
    with pytest.raises(SiteError, match="head 4"):
        explain_attention_score(toy_model, text, 0, 4, 2, 1)
    with pytest.raises(SiteError, match="position 99"):
        explain_attention_score(toy_model, text, 0, 0, 99, 1)
    with pytest.raises(SiteError, match="layer 7"):
        explain_attention_score(toy_model, text, 7, 0, 2, 1)
    model = spoken(decoder("gemma3"))
    with pytest.raises(SiteError, match="window"):
        explain_attention_score(model, say(rows([6])[0]), 0, 0, 5, 1)
