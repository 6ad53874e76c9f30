"""A head made by hand to do one thing scores 1 at it; and kept profiles are the computed ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from casestudy.errors import MeasureError
from casestudy.measure import head_scores
from casestudy.measure.head_scores import (
    PROFILE,
    SCORES,
    copying,
    head_profile,
    measure_profile,
    repeated_tokens,
)
from casestudy.model.config import ModelConfig
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer
from casestudy.model.weights import MLP, Attention, Block, Weights
from tests.measure.batches import batch_of, rows
from tests.measure.worlds import VARIANTS, decoder

V, N = 12, 17  # tokens (the last is BOS), positions
SHARP = 200.0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASESTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(head_scores, "_known", {})


def scores(model: Model) -> dict[str, np.ndarray]:
    grid = head_profile(model)
    return dict(zip(grid.axis("score").labels, grid.values, strict=True))


def by_hand() -> Model:
    """Two layers of three heads over a stream [token | position | what the first layer wrote].

    Layer 0: head 0 looks one back and writes that token into the third part, head 1 looks at the
    same token (itself and its twin) far back, head 2 at BOS. Layer 1: head 0 looks for its own
    token in the third part, which is where an earlier copy was followed by this position, and
    copies the token there; head 1 copies with the sign turned; head 2 does nothing.
    """
    d = 2 * V + N
    token, place, wrote = slice(0, V), slice(V, V + N), slice(V + N, d)
    d_head = max(V, N)

    def empty(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64)

    W_Q, W_K, W_V = ([empty(3, d, d_head), empty(3, d, d_head)] for _ in range(3))
    W_O = [empty(3, d_head, d), empty(3, d_head, d)]
    one_back = torch.diag(torch.ones(N - 1, dtype=torch.float64), -1)  # row q, column q - 1
    same, where = torch.eye(V, dtype=torch.float64), torch.eye(N, dtype=torch.float64)

    W_Q[0][0, place, :N], W_K[0][0, place, :N] = SHARP * one_back, where
    W_V[0][0, token, :V], W_O[0][0, :V, wrote] = same, same
    # the same token, the more the earlier: a twin beats the token itself
    W_Q[0][1, token, :V], W_K[0][1, token, :V] = SHARP * same, same
    W_K[0][1, place, :V] = -torch.linspace(0, 0.5, N, dtype=torch.float64)[:, None]
    W_Q[0][2, place, 0] = SHARP
    W_K[0][2, V, 0] = 1.0  # position 0, which V dimensions of token precede

    W_Q[1][0, token, :V], W_K[1][0, wrote, :V] = SHARP * same, same
    W_V[1][0, token, :V], W_O[1][0, :V, token] = same, same
    W_V[1][1, token, :V], W_O[1][1, :V, token] = same, -same

    def block(layer: int) -> Block:
        attn = Attention(W_Q[layer], W_K[layer], W_V[layer], W_O[layer])
        return Block(attn, MLP(empty(d, 1), empty(1, d)))

    config = ModelConfig(
        family="by hand",
        n_layers=2,
        d_model=d,
        n_heads=3,
        n_kv_heads=3,
        d_head=d_head,
        d_mlp=1,
        d_vocab=V,
        n_ctx=N,
        attn_scale=(1.0, 1.0),
        activation="identity",
    )
    W_E, W_pos, W_U = empty(V, d), empty(N, d), empty(d, V)
    W_E[:, token], W_pos[:, place], W_U[token] = same, where, same
    weights = Weights(W_E, (block(0), block(1)), W_U, W_pos)
    words = HFTokenizer(WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    tokenizer = Tokenizer(words, V - 1, V - 1, True, N)
    return Model(config, weights, tokenizer, name="by hand")


def test_heads_made_to_do_one_thing_score_one_at_it() -> None:
    found = scores(by_hand())
    assert found["previous_token"][0, 0] == pytest.approx(1, abs=1e-6)
    assert found["duplicate_token"][0, 1] == pytest.approx(1, abs=1e-6)
    assert found["bos"][0, 2] == pytest.approx(1, abs=1e-6)
    assert found["induction"][1, 0] == pytest.approx(1, abs=1e-6)
    for head in ((0, 0), (0, 2)):
        assert found["entropy"][head] == pytest.approx(0, abs=1e-4)
    # and nobody else does
    assert found["induction"][0].max() < 0.2
    assert found["previous_token"][1, 0] < 0.2
    assert found["duplicate_token"][1, 0] < 0.2
    # a head with no scores at all spreads evenly: mean of ln(n keys) over the queries but BOS
    n = repeated_tokens(by_hand()).ids.shape[1]
    expected = np.log(np.arange(2, n + 1)).mean()
    assert found["entropy"][1, 2] == pytest.approx(expected, abs=1e-6)


def test_copying_is_one_for_a_head_that_copies_and_minus_one_for_one_that_forbids() -> None:
    found = copying(by_hand())
    # 12 eigenvalues of 1, but for the direction that centring over the vocabulary takes out
    assert float(found[1, 0]) == pytest.approx(1, abs=1e-9)
    assert float(found[1, 1]) == pytest.approx(-1, abs=1e-9)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_copying_is_that_of_the_whole_circuit(variant: str) -> None:
    """The eigenvalues of the d_vocab × d_vocab matrix, which the module never makes."""
    model = decoder(variant)
    config, weights = model.config, model.weights

    def fold(norm: object, x: Tensor) -> Tensor:
        weight = getattr(norm, "weight", None)
        if norm is None or weight is None:
            return x
        if config.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        return x * (weight + config.norm_weight_offset)

    found = copying(model)
    for layer, block in enumerate(weights.blocks):
        for head in range(config.n_heads):
            kv = head // (config.n_heads // config.n_kv_heads)
            seen = fold(block.attn_norm, weights.W_E) @ block.attn.W_V[kv]
            written = fold(block.attn_post_norm, seen @ block.attn.W_O[head])
            logits = fold(weights.final_norm, written) @ weights.W_U
            whole = torch.linalg.eigvals(logits - logits.mean(-1, keepdim=True))
            expected = whole.real.sum() / whole.abs().sum()
            assert float(found[layer, head]) == pytest.approx(float(expected), abs=1e-6)


def test_copying_of_float32_weights_is_that_of_float64(toy_model: Model) -> None:
    exact = copying(toy_model.to(dtype=torch.float64))
    torch.testing.assert_close(copying(toy_model), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_family_has_a_profile(variant: str) -> None:
    found = scores(decoder(variant))
    for name in ("previous_token", "duplicate_token", "induction"):
        assert ((found[name] >= 0) & (found[name] <= 1 + 1e-9)).all()
    assert (np.abs(found["copying"]) <= 1 + 1e-9).all()
    assert ((found["bos"] > 0) & (found["bos"] < 1)).all(), "the first token is the sink"


def test_the_random_tokens_repeat_and_hold_nothing_special(toy_model: Model) -> None:
    for row in repeated_tokens(toy_model, seed=3).rows():
        half = (len(row) - 1) // 2
        assert row[0] == toy_model.tokenizer.bos_id
        assert row[1 : 1 + half] == row[1 + half :]
        assert len(set(row)) == half + 1
        assert not any(toy_model.tokenizer.is_special(i) for i in row[1:])
    again, other = (repeated_tokens(toy_model, seed=s) for s in (3, 4))
    assert repeated_tokens(toy_model, seed=3).rows() == again.rows() != other.rows()


def test_it_is_computed_once_and_kept(toy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = head_profile(toy_model)
    (path,) = head_scores._cache_folder().iterdir()
    assert path.name.startswith(toy_model.weight_hash)
    monkeypatch.setattr(head_scores, "_known", {})
    monkeypatch.setattr(head_scores, "_profile", None)  # must not be asked again
    np.testing.assert_array_equal(head_profile(toy_model).values, first.values)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"scores": [1]}', '{"scores": "x"}', "\0\xff"])
def test_a_damaged_cache_is_computed_again(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    first = head_profile(toy_model)
    (path,) = head_scores._cache_folder().iterdir()
    path.write_text(damage, encoding="latin-1")
    monkeypatch.setattr(head_scores, "_known", {})
    np.testing.assert_array_equal(head_profile(toy_model).values, first.values)
    assert np.array(json.loads(path.read_text())["scores"]).shape == first.values.shape


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CASESTUDY_CACHE", str(tmp_path / "file"))
    assert head_profile(toy_model).values.shape[0] == len(SCORES)


def test_a_model_without_room_for_repetition_is_refused() -> None:
    model = decoder("gpt2")
    small = replace(model, config=replace(model.config, n_ctx=3))
    with pytest.raises(MeasureError, match="a context of 3"):
        head_profile(small)
    batch = replace(batch_of(model, rows([2]), PROFILE), model=small)
    assert measure_profile(batch) == [], "a study goes on without it"
