"""Where heads look: rows of a pattern are shares, and roles take what is theirs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.batch import run_batch
from casestudy.measure.attention import (
    ATTENTION,
    LEAST_SHARE,
    attention_by_role,
    attention_pattern,
    attention_to_tokens,
    entropy,
    last_rows,
)
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.study.settings import Execution
from casestudy.study.study import study
from tests.measure.batches import alone, batch_of, rows, say, spoken
from tests.measure.worlds import VARIANTS, decoder


@settings(max_examples=20)
@given(st.sampled_from(sorted(VARIANTS)), st.integers(1, 8))
def test_every_row_of_a_pattern_sums_to_one(variant: str, n: int) -> None:
    grid = attention_pattern(spoken(decoder(variant)), say(rows([n])[0]))
    np.testing.assert_allclose(grid.values.sum(-1), 1, atol=1e-6)
    ahead = np.triu(np.ones((n, n), dtype=bool), 1)
    assert (grid.values[:, :, ahead] == 0).all()


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_last_row_is_the_prompts_own(variant: str) -> None:
    batch = batch_of(decoder(variant), rows([5, 2, 7]), ATTENTION)
    together = last_rows(batch)
    full = run(batch.model, batch.tokens, keep=[Site.PATTERN])
    for i, n in enumerate((5, 2, 7)):
        by_itself = last_rows(alone(batch, i, ATTENTION))
        np.testing.assert_allclose(together[:, i, :, :n], by_itself[:, 0], atol=1e-9)
        assert (together[:, i, :, n:] == 0).all()
        for layer in range(batch.model.config.n_layers):
            expected = full[Site.PATTERN, layer][i, :, n - 1]
            np.testing.assert_allclose(together[layer, i], expected, atol=1e-9)


def test_entropy_is_zero_for_one_key_and_ln_n_for_n_alike() -> None:
    import torch

    pattern = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(entropy(pattern), [0, np.log(3)], atol=1e-7)


def test_roles_take_what_their_positions_get(toy_model: Model) -> None:
    texts = ("It was late. She went home.", "no stop here")
    asked = Behaviour("b", "?", tuple(Prompt(t, roles={"mine": (1, -1)}) for t in texts))
    grid = attention_by_role(toy_model, asked)
    for i, text in enumerate(texts):
        rows = attention_pattern(toy_model, text).values[:, :, -1]
        own = grid.select(prompt=str(i))
        np.testing.assert_allclose(own.select(role="BOS").values, rows[..., 0], atol=1e-6)
        expected = rows[..., 1] + rows[..., -1]
        np.testing.assert_allclose(own.select(role="mine").values, expected, atol=1e-6)
    final = grid.select(role="final full stop").values
    assert np.isfinite(final[..., 0]).all()
    assert np.isnan(final[..., 1]).all(), "a role that a prompt lacks is absent, not zero"


def test_a_study_keeps_patterns_as_they_are(toy_model: Model, tmp_path: object) -> None:
    texts = ("Go.", "This is a sentence.", *(f"Prompt number {i}." for i in range(6)))
    asked = Behaviour("b", "?", tuple(Prompt(t, answer=" He") for t in texts))
    done = study(
        asked,
        toy_model,
        out=f"{tmp_path}/s",
        only=["attention", "lens"],
        execution=Execution(chunk_tokens=20),
    )
    shown = sorted(name for name in done.grids if name.startswith("pattern."))
    assert shown == [f"pattern.{i}" for i in range(5)]
    expected = attention_pattern(toy_model, texts[1])
    stored = done.grids["pattern.1"]
    assert stored.axes == expected.axes
    assert stored.axis("key_pos").labels[:2] == ("0:<|endoftext|>", "1:This")
    np.testing.assert_allclose(stored.values, expected.values, atol=1e-6)
    mean = done.grids["attention.last.mean"]
    assert mean.n is not None
    n = dict(zip(mean.axis("role").labels, mean.n[0, 0].tolist(), strict=True))
    assert n["BOS"] == len(texts)
    assert n["earlier full stops"] == 0
    assert np.isnan(mean.select(role="earlier full stops").values).all()
    assert sorted(set(done.tables["lens.top"].columns["prompt"])) == [0, 1, 2, 3, 4]


def test_every_token_with_a_share_worth_naming_is_listed_with_its_role(toy_model: Model) -> None:
    texts = ("The dogs of the king", "It was late. She went home.")
    prompts = (Prompt(texts[0], corrupted="The dog of the king"), Prompt(texts[1]))
    asked = Behaviour("b", "?", prompts)
    batch = run_batch(toy_model, asked, [0, 1], [ATTENTION])
    found = attention_to_tokens(batch).rows()
    for i, text in enumerate(texts):
        last = attention_pattern(toy_model, text).values[:, :, -1]
        listed = {(r["layer"], r["head"], r["pos"]): r["share"] for r in found if r["prompt"] == i}
        expected = np.argwhere(last >= LEAST_SHARE + 1e-6).tolist()
        assert {tuple(cell) for cell in expected} <= set(listed)
        for cell, share in listed.items():
            assert share == pytest.approx(last[cell], abs=1e-6)
            assert share >= LEAST_SHARE
    roles = {(r["prompt"], r["pos"]): r["role"] for r in found}
    ends = {i: max(pos for p, pos in roles if p == i) for i in (0, 1)}
    assert {role for (i, _), role in roles.items() if i == 0} >= {"BOS", "changed tokens"}
    assert roles[1, ends[1]] == "final full stop"


def test_only_main_prompts_are_listed_token_by_token(toy_model: Model) -> None:
    prompts = (Prompt("Go.", groups=("a",)), Prompt("Stay.", groups=("b",)))
    batch = run_batch(toy_model, Behaviour("b", "?", prompts, main=("b",)), [0, 1], [ATTENTION])
    assert {row["prompt"] for row in attention_to_tokens(batch).rows()} == {1}
