"""The lens adds up: its increments are the ledger's terms, and its end is the logit difference."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.batch import Measurement, run_batch
from casestudy.measure.attention import ATTENTION
from casestudy.measure.ledger import keep_for_ledger, ledger_terms
from casestudy.measure.lens import (
    LENS,
    TOP_DEPTHS,
    chosen_depths,
    depth_sites,
    lens,
    lens_by_role,
    logit_lens,
    measure_lens,
)
from casestudy.measure.predictions import predictions
from casestudy.model.decoder import apply_norm, unembed
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results.result import Grid, Result, Table
from casestudy.study.settings import Execution
from casestudy.study.study import study
from tests.measure.batches import alone, batch_of, rows, say, spoken
from tests.measure.worlds import VARIANTS, decoder

BOTH = Measurement("both", lambda model: [*LENS.keep(model), *keep_for_ledger(model)], measure_lens)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@settings(max_examples=20)
@given(st.sampled_from(sorted(VARIANTS)), LENGTHS)
def test_increments_are_the_ledgers_terms(variant: str, lengths: list[int]) -> None:
    model = decoder(variant)
    batch = batch_of(model, rows(lengths), BOTH)
    grid = measure_lens(batch)[0]
    assert isinstance(grid, Grid)
    depths = grid.axis("depth").labels
    for i, contrast in enumerate(batch.contrasts):
        names, values = ledger_terms(model, batch.trace, contrast)
        terms = dict(zip(names, values.numpy(), strict=True))
        steps = np.diff(grid.values[i], axis=0, prepend=0.0)
        expected = {"0_pre": terms.pop("embed") + terms.pop("pos_embed", 0.0)}
        for layer in range(model.config.n_layers):
            own = {"mid": terms.pop(f"attn {layer}"), "next": terms.pop(f"mlp {layer}")}
            after = "final_post" if layer == model.config.n_layers - 1 else f"{layer + 1}_pre"
            if model.config.parallel:
                expected[after] = own["mid"] + own["next"]
            else:
                expected |= {f"{layer}_mid": own["mid"], after: own["next"]}
        expected["logits"] = sum(terms.values())  # b_U and whatever else comes after the layers
        assert tuple(expected) == depths
        for step, depth in zip(steps, depths, strict=True):
            np.testing.assert_allclose(step, expected[depth], atol=1e-9, err_msg=depth)


@settings(max_examples=20)
@given(st.sampled_from(sorted(VARIANTS)), LENGTHS)
def test_with_its_own_norm_it_ends_at_the_logit_difference(
    variant: str, lengths: list[int]
) -> None:
    batch = batch_of(decoder(variant), rows(lengths), LENS)
    frozen, own = measure_lens(batch)[:2]
    assert isinstance(frozen, Grid)
    assert isinstance(own, Grid)
    values = [contrast.value(batch.logits).numpy() for contrast in batch.contrasts]
    np.testing.assert_allclose(own.values[:, -1], values, atol=1e-9)
    np.testing.assert_array_equal(frozen.values[:, -1], values)


@pytest.mark.parametrize("variant", ["gpt2", "gemma2"])
def test_classes_are_weighed_by_the_probabilities_of_each_depth(variant: str) -> None:
    """With its own norm, a class contrast is log p(A) - log p(B) of what that depth predicts."""
    batch = batch_of(decoder(variant), rows([5, 2]), LENS)
    own = measure_lens(batch)[1]
    assert isinstance(own, Grid)
    config, weights = batch.model.config, batch.model.weights
    stream = batch.trace.last((Site.RESID_PRE, 1))
    logits = unembed(config, weights, apply_norm(config, weights.final_norm, stream))
    p = logits.softmax(1)
    expected = (p[:, [0, 3, 5, 8]].sum(1) / p[:, [1, 2, 9]].sum(1)).log()
    found = own.select(contrast="classes", depth="1_pre").values
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_neighbours_do_not_matter(variant: str) -> None:
    batch = batch_of(decoder(variant), rows([5, 2, 7]), LENS)
    together = measure_lens(batch)[:2]
    for i in range(3):
        by_itself = measure_lens(alone(batch, i, LENS))[:2]
        for whole, part in zip(together, by_itself, strict=True):
            assert isinstance(whole, Grid)
            assert isinstance(part, Grid)
            np.testing.assert_allclose(whole.values[:, :, [i]], part.values, atol=1e-9)


def test_final_post_leaves_out_b_U(toy: Callable[..., Model]) -> None:
    """What the notebook's author met: the projection is not the logit difference."""
    model = toy(dtype="float64")
    asked = Behaviour("b", "?", (Prompt("Go.", answer=" He"), Prompt("Hello.", answer=" It")))
    grid = lens(model, asked)
    norm = model.weights.final_norm
    assert norm is not None
    assert norm.bias is not None
    b_U = norm.bias @ model.weights.W_U
    single = model.tokenizer.single
    step = grid.select(depth="logits").values - grid.select(depth="final_post").values
    for row, (he, it) in enumerate(((" he", " it"), ("He", "It"), ("he", "it"))):
        expected = [b_U[single(" He")] - b_U[single(he)], b_U[single(" It")] - b_U[single(it)]]
        np.testing.assert_allclose(step[row], expected, atol=1e-9)


def test_by_role_the_last_token_is_the_lens_and_every_other_its_own_prompts() -> None:
    """A prompt cut after a role's token has the same stream there: causal models look back only."""
    model = spoken(decoder("neox"))
    texts = [say(row) for row in rows([6, 3])]
    roles = {"early": (1,), "final": (-1,), "both": (1, -1)}
    prompts = tuple(Prompt(t, "w1", "w2", roles=roles) for t in texts)
    asked = Behaviour("b", "?", prompts, answers="given")
    grid, whole = lens_by_role(model, asked), lens(model, asked)
    assert grid.axis("depth").labels == whole.axis("depth").labels[:-1]
    final = grid.select(role="final").values
    np.testing.assert_allclose(final, whole.values[:, :-1], atol=1e-9)
    cut = tuple(Prompt(" ".join(t.split()[:2]), "w1", "w2") for t in texts)
    early = lens(model, Behaviour("b", "?", cut, answers="given")).values[:, :-1]
    np.testing.assert_allclose(grid.select(role="early").values, early, atol=1e-9)
    both = grid.select(role="both").values
    np.testing.assert_allclose(both, (early + final) / 2, atol=1e-9)
    assert np.isnan(grid.select(role="BOS").values).all()


def test_a_study_reads_roles_of_its_first_prompts(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casestudy.measure.lens.ROLE_PROMPTS", 2)
    texts = ("This is a sentence.", "Go.", "It was late. She went home.")
    asked = Behaviour("b", "?", tuple(Prompt(t, answer=" He") for t in texts))
    done = study(
        asked, toy_model, out=tmp_path / "s", only=["lens"], execution=Execution(chunk_tokens=1)
    )
    found, expected = done.grids["lens.by_role"], lens_by_role(toy_model, asked)
    np.testing.assert_allclose(found.values[..., :2], expected.values[..., :2], atol=1e-5)
    assert np.isnan(found.values[..., 2]).all()
    stop = done.grids["lens.by_role.mean"].select(role="final full stop")
    assert stop.n is not None
    assert (stop.n == 2).all()


def test_the_last_depth_predicts_what_the_model_predicts(toy_model: Model) -> None:
    texts = ["This is a sentence.", "Go."]
    top = logit_lens(toy_model, texts, top_k=3)
    expected = predictions(toy_model, texts, top_k=3)
    lengths = toy_model.tokenize(texts).lengths.tolist()
    last = [
        row
        for row in top.rows()
        if row["depth"] == "final_post" and row["pos"] == lengths[row["prompt"]] - 1
    ]
    assert [row["token"] for row in last] == expected.columns["token"]
    torch.testing.assert_close(
        torch.tensor([row["prob"] for row in last]),
        torch.tensor(expected.columns["prob"]),
        rtol=1e-4,
        atol=0,
    )
    depths = list(dict.fromkeys(top.columns["depth"]))
    assert depths == list(depth_sites(toy_model.config))
    assert len(top.rows()) == sum(lengths) * len(depths) * 3
    reads = [r["read"] for r in top.rows() if r["prompt"] == 1 and r["depth"] == "0_pre"]
    assert reads[::3] == toy_model.tokenizer.strings(toy_model.tokenize("Go.").rows()[0])


def test_a_small_batch_is_run_once_and_gives_what_further_runs_give(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ("This is a sentence.", "Go.", "It was late. She went home.")
    asked = Behaviour("b", "?", tuple(Prompt(t, answer=" He") for t in texts))

    def measured(measurement: Measurement) -> list[Result]:
        return measurement.measure(run_batch(toy_model, asked, range(len(texts)), [measurement]))

    both = (LENS, ATTENTION)
    with monkeypatch.context() as small:
        small.setattr("casestudy.measure.lens.KEPT_BYTES", 0)
        small.setattr("casestudy.measure.attention.KEPT_BYTES", 0)
        again = [measured(measurement) for measurement in both]

    def no_run(*_: object, **__: object) -> None:
        pytest.fail("a second run")

    monkeypatch.setattr("casestudy.measure.lens.run", no_run)
    monkeypatch.setattr("casestudy.measure.attention.run", no_run)
    once = [measured(measurement) for measurement in both]
    for one, other in zip([*once[0], *once[1]], [*again[0], *again[1]], strict=True):
        assert one.name == other.name
        if isinstance(one, Grid) and isinstance(other, Grid):
            assert one.axes == other.axes
            np.testing.assert_allclose(one.values, other.values, atol=1e-5, err_msg=one.name)
        elif isinstance(one, Table) and isinstance(other, Table):
            for name, column in one.columns.items():
                given: list[object] = list(other.columns[name])
                exact = not isinstance(column[0], float)
                assert column == (given if exact else pytest.approx(given, rel=1e-4)), name


@pytest.mark.parametrize("n_layers", [1, 15, 16, 30, 31, 32, 80, 200])
def test_a_study_looks_at_the_vocabulary_at_a_bounded_number_of_depths(n_layers: int) -> None:
    config = replace(decoder("llama").config, n_layers=n_layers)
    every, chosen = list(depth_sites(config)), chosen_depths(config)
    assert len(chosen) <= TOP_DEPTHS
    assert chosen == [depth for depth in every if depth in chosen]
    assert (chosen[0], chosen[-1]) == (every[0], every[-1])
    assert len(every) > TOP_DEPTHS or chosen == every
    places = [every.index(depth) for depth in chosen]
    assert len(set(np.diff(places)[:-1].tolist())) <= 1, "layers at equal distances"


def test_a_study_says_which_depths_it_left_out(
    toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Behaviour("b", "?", (Prompt("This is a sentence.", answer=" He"),))
    whole = logit_lens(toy_model, asked)
    depths = len(depth_sites(toy_model.config))
    assert "depths these" not in whole.about
    monkeypatch.setattr("casestudy.measure.lens.TOP_DEPTHS", 3)
    top = study(asked, toy_model, out=tmp_path / "s", only=["lens"]).tables["lens.top"]
    chosen = list(dict.fromkeys(top.columns["depth"]))
    assert f"of {depths} depths these {len(chosen)}" in top.about
    expected = [row for row in whole.rows() if row["depth"] in chosen]
    assert [row["token"] for row in top.rows()] == [row["token"] for row in expected]
    assert len(top.rows()) < len(whole.rows())
