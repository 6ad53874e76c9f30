"""Law 1 at the grain of heads and neurons, and what each of them really does."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.attribution import (
    ATTRIBUTION,
    HEADS,
    head_attribution,
    measure_attribution,
    measure_heads,
    neuron_attribution,
    top_neurons,
    top_of_sums,
    value_bias,
)
from casestudy.measure.ledger import ledger, ledger_terms
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.folding import rewrite
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results.names import BIAS, NEURON_COUNTS, NEURON_SUMS
from casestudy.results.result import Grid, Table
from casestudy.study.settings import Execution
from casestudy.study.study import study
from tests.measure.batches import alone, batch_of, rows
from tests.measure.worlds import VARIANTS, decoder

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=3)
TEXTS = ("Go.", "This is a sentence.", "It was late. She went home.", "Hello. Hello.", "No. Yes.")
ASKED = Behaviour("b", "?", tuple(Prompt(text, answer=" He") for text in TEXTS))


def grids(results: list[Grid | Table]) -> dict[str, Grid]:
    return {r.name: r for r in results if isinstance(r, Grid)}


@settings(max_examples=25)
@given(st.sampled_from(sorted(VARIANTS)), LENGTHS)
def test_heads_and_neurons_with_their_biases_are_the_ledgers_terms(
    variant: str, lengths: list[int]
) -> None:
    batch = batch_of(decoder(variant), rows(lengths), ATTRIBUTION)
    found = grids(measure_attribution(batch))
    heads, mlps = found["attribution.head"], found["attribution.mlp"]
    for i, contrast in enumerate(batch.contrasts):
        names, values = ledger_terms(batch.model, batch.trace, contrast)
        terms = dict(zip(names, values.numpy(), strict=True))
        for layer in range(batch.model.config.n_layers):
            np.testing.assert_allclose(
                heads.values[i, layer].sum(0), terms[f"attn {layer}"], atol=1e-9
            )
            np.testing.assert_allclose(
                mlps.values[i, layer].sum(0), terms[f"mlp {layer}"], atol=1e-9
            )
    for grid in (heads, mlps):
        assert grid.error["gap"] <= grid.error["bound"] <= 1e-8


@settings(max_examples=8)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from([8, 24]), st.integers(0, 3))
def test_it_closes_for_models_of_any_shape(
    toy: Callable[..., Model], layers: int, heads: int, width: int, seed: int
) -> None:
    model = toy("float64", n_layer=layers, n_head=heads, n_embd=width, seed=seed)
    account = ledger(model, ASKED)
    grid, neurons = head_attribution(model, ASKED), neuron_attribution(model, ASKED)
    assert grid.values.shape[1:3] == (layers, heads + 1)
    assert neurons.values.shape[1:3] == (layers, 4 * width + 1)
    for layer in range(layers):
        attn, mlp = (account.select(term=f"{part} {layer}").values for part in ("attn", "mlp"))
        np.testing.assert_allclose(grid.values[:, layer].sum(1), attn, atol=1e-9)
        np.testing.assert_allclose(neurons.values[:, layer].sum(1), mlp, atol=1e-9)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_it_closes_in_float32(variant: str) -> None:
    batch = batch_of(decoder(variant, dtype=torch.float32), rows([5, 2, 7]), ATTRIBUTION)
    for grid in grids(measure_attribution(batch)).values():
        if grid.error:
            assert grid.error["gap"] <= grid.error["bound"]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_neighbours_do_not_matter(variant: str) -> None:
    batch = batch_of(decoder(variant), rows([5, 2, 7]), ATTRIBUTION)
    whole = grids(measure_attribution(batch))
    parts = [grids(measure_attribution(alone(batch, i, ATTRIBUTION))) for i in range(3)]
    for name in ("attribution.head", "attribution.mlp"):
        for i, part in enumerate(parts):
            np.testing.assert_allclose(whole[name].values[..., [i]], part[name].values, atol=1e-9)
    np.testing.assert_allclose(
        whole[NEURON_SUMS].values, sum(part[NEURON_SUMS].values for part in parts), atol=1e-9
    )
    np.testing.assert_array_equal(
        whole[NEURON_COUNTS].values, sum(part[NEURON_COUNTS].values for part in parts)
    )


def test_a_head_is_what_is_lost_when_it_attends_to_nothing_but_its_bias() -> None:
    """A head whose values are only what they have in common gives what is in the bias row."""
    model = decoder("gpt2")
    batch = batch_of(model, rows([5, 3]), HEADS)
    (grid,) = measure_heads(batch)
    assert isinstance(grid, Grid)
    layer, head = 2, 1
    common = value_bias(model.config, model.weights.blocks[layer])
    scale = run(model, batch.tokens, keep=[Site.FINAL_SCALE])[Site.FINAL_SCALE]
    # in the last layer and with the MLP after it held still, nothing else can react
    clean = run(model, batch.tokens, keep=[Site.MLP_OUT], logits="last")
    without = run(
        model,
        batch.tokens,
        edit=[
            Edit.replace(Site.Z, layer, common[head], head=head),
            Edit.replace(Site.MLP_OUT, layer, clean[Site.MLP_OUT, layer]),
            Edit.replace(Site.FINAL_SCALE, None, scale),
        ],
        logits="last",
    )
    assert without.logits is not None
    for i, contrast in enumerate(batch.contrasts):
        lost = contrast.value(batch.logits) - contrast.value(without.logits)
        np.testing.assert_allclose(grid.values[i, layer, head], lost.numpy(), atol=1e-9)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_value_bias_belongs_to_no_head(variant: str) -> None:
    """Moving every value by a constant, and b_O back by as much, leaves all but the bias row."""
    model = decoder(variant)
    blocks = list(model.weights.blocks)
    attn = blocks[1].attn
    assert attn.b_V is not None
    assert attn.b_O is not None
    shift = attn.b_V.cos()
    groups = model.config.n_heads // model.config.n_kv_heads
    moved = torch.einsum("he,hed->d", shift.repeat_interleave(groups, 0), attn.W_O)
    attn = replace(attn, b_V=attn.b_V + shift, b_O=attn.b_O - moved)
    blocks[1] = replace(blocks[1], attn=attn)
    shifted = replace(model, weights=replace(model.weights, blocks=tuple(blocks)))
    for before, after in zip(*(of_heads(m) for m in (model, shifted)), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-9)


def of_heads(model: Model) -> list[np.ndarray]:
    (grid,) = measure_heads(batch_of(model, rows([5, 3]), HEADS))
    assert isinstance(grid, Grid)
    return [grid.values]


@pytest.mark.parametrize("variant", ["gpt2", "neox", "llama"])
def test_heads_are_alike_however_the_checkpoint_writes_its_biases(variant: str) -> None:
    """The exact rewrites move biases about; what a head does is not theirs to change."""
    model = decoder(variant)
    (expected,) = of_heads(model)
    for names in (["fold_value_biases"], ["fold_ln"], ["fold_ln", "fold_value_biases"]):
        np.testing.assert_allclose(of_heads(rewrite(model, *names))[0], expected, atol=1e-9)


def test_neurons_one_by_one_sum_to_what_the_study_keeps(toy_model64: Model) -> None:
    full = neuron_attribution(toy_model64, ASKED)
    assert full.axis("neuron").labels[-1] == BIAS
    assert full.error["gap"] <= full.error["bound"]
    account = ledger(toy_model64, ASKED)
    for layer in range(toy_model64.config.n_layers):
        np.testing.assert_allclose(
            full.values[:, layer].sum(1), account.select(term=f"mlp {layer}").values, atol=1e-9
        )
    table = top_neurons(toy_model64, ASKED, top=7)
    neurons = full.values[:, :, :-1]
    for i, contrast in enumerate(full.axis("contrast").labels):
        mine = [row for row in table.rows() if row["contrast"] == contrast]
        means = neurons[i].mean(-1)
        largest = np.sort(np.abs(means), axis=None)[::-1][:7]
        np.testing.assert_allclose([abs(row["mean"]) for row in mine], largest)
        for row in mine:
            values = neurons[i, row["layer"], row["neuron"]]
            assert row["mean"] == pytest.approx(values.mean())
            # Student's t for 4 degrees of freedom
            half = 2.776 * values.std(ddof=1) / np.sqrt(len(values))
            assert row["upper"] - row["lower"] == pytest.approx(2 * half)
            assert row["n"] == len(TEXTS)


def test_the_top_neurons_do_not_depend_on_chunks(toy_model64: Model, tmp_path: object) -> None:
    alone = study(ASKED, toy_model64, out=f"{tmp_path}/one", only=["attribution"])
    many = study(
        ASKED,
        toy_model64,
        out=f"{tmp_path}/many",
        only=["attribution"],
        execution=Execution(chunk_tokens=1),
    )
    assert NEURON_SUMS not in alone.grids
    one, other = alone.tables["attribution.neuron"], many.tables["attribution.neuron"]
    assert one.columns["neuron"] == other.columns["neuron"]
    np.testing.assert_allclose(one.columns["lower"], other.columns["lower"], atol=1e-12)
    plain = top_neurons(toy_model64, ASKED)
    assert one.columns["neuron"] == plain.columns["neuron"]
    np.testing.assert_allclose(one.columns["mean"], plain.columns["mean"], atol=1e-12)


def test_prompts_without_an_answer_do_not_count(toy_model64: Model) -> None:
    """NaN where there is no contrast, and neither a zero nor a lost neuron elsewhere."""
    asked = Behaviour("b", "?", (Prompt("Go."), *ASKED.prompts))
    grid = head_attribution(toy_model64, asked)
    found = top_neurons(toy_model64, asked, top=3)
    if np.isnan(grid.values[..., 0]).all():  # no capital among the first hundred
        assert found.columns["mean"] == top_neurons(toy_model64, ASKED, top=3).columns["mean"]
        assert set(found.columns["n"]) == {len(TEXTS)}
    else:
        assert set(found.columns["n"]) == {len(asked)}


def test_neurons_are_of_the_main_groups_prompts_as_every_mean_is(toy_model64: Model) -> None:
    grouped = tuple(
        replace(p, groups=("main",) if i < 3 else ("other",)) for i, p in enumerate(ASKED.prompts)
    )
    found = top_neurons(toy_model64, replace(ASKED, prompts=grouped, main=("main",)))
    alone = top_neurons(toy_model64, replace(ASKED, prompts=grouped[:3], main=("main",)))
    assert set(found.columns["n"]) == {3}
    for name, column in alone.columns.items():  # the other prompts change only the last bits
        numbers = not isinstance(column[0], str)
        assert found.columns[name] == (pytest.approx(column, rel=1e-12) if numbers else column)


def test_nothing_measured_gives_no_table() -> None:
    assert top_of_sums({}) == []
