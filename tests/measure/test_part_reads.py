"""What a part reads: its splits sum to its input, and are those of the plain way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.measure.explain import explain_attention_score
from casestudy.measure.part_reads import Choice, InputPositions, neuron_inputs, score_parts
from casestudy.measure.parts import HeadPart, NeuronPart
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.model.weights import Norm
from tests.measure.batches import rows, say, spoken
from tests.measure.worlds import N_HEADS, N_LAYERS, VARIANTS, decoder


def reading(lengths: list[int], positions: list[int]) -> InputPositions:
    return InputPositions(Tokens.of(rows(lengths)), positions, tuple(map(str, range(len(lengths)))))


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.integers(0, N_LAYERS - 1),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.data(),
)
def test_a_neurons_inputs_are_the_sum_of_what_wrote_the_stream(
    variant: str, layer: int, lengths: list[int], data: st.DataObject
) -> None:
    model, part = decoder(variant), NeuronPart(layer, 5)
    positions = [data.draw(st.integers(0, n - 1)) for n in lengths]
    read = reading(lengths, positions)
    grid = neuron_inputs(model, part, read)
    assert grid.error["gap"] <= grid.error["bound"] == 1e-9
    sites = {"input": Site.MLP_PRE, "gate": Site.MLP_GATE}
    assert set(grid.axis("input").labels) <= set(sites)
    for label in grid.axis("input").labels:
        trace = run(model, read.tokens, keep=[sites[label].at(layer)])
        value = [float(trace[sites[label], layer][i, p, 5]) for i, p in enumerate(positions)]
        sums = grid.select(input=label).values.sum(0)
        np.testing.assert_allclose(sums, value, atol=1e-9)
    # in a parallel block the layer's own attention is not read
    own = f"head {layer}.0" in grid.axis("component").labels
    assert own == (not model.config.parallel)


def test_a_row_is_what_the_input_loses_without_the_component() -> None:
    """A layer's MLP taken out of the stream, the scale of the norm held."""
    model, part = decoder("llama"), NeuronPart(2, 3)
    read = reading([5], [4])
    grid = neuron_inputs(model, part, read)
    clean = run(model, read.tokens, keep=[Site.MLP_OUT, Site.MLP_SCALE, Site.MLP_GATE])
    taken = clean[Site.MLP_OUT, 1]
    edits = [
        Edit.add(Site.MLP_IN, 2, -taken),
        Edit.replace(Site.MLP_SCALE, 2, clean[Site.MLP_SCALE, 2]),
    ]
    without = run(model, read.tokens, keep=[Site.MLP_GATE.at(2)], edit=edits)
    lost = (clean[Site.MLP_GATE, 2] - without[Site.MLP_GATE, 2])[0, 4, 3]
    row = grid.select(input="gate", component="mlp 1", prompt="0").values
    assert float(row) == pytest.approx(float(lost))


def choice_of(data: st.DataObject, model: Model, layer: int, query: int) -> Choice:
    window = (model.config.windows or (None,) * N_LAYERS)[layer] or query + 1
    visible = list(range(max(0, query - window + 1), query + 1))
    chosen = data.draw(st.lists(st.sampled_from(visible), min_size=1, max_size=2, unique=True))
    others = tuple(p for p in visible if p not in chosen)
    return Choice(tuple(chosen), others)


def differences(
    model: Model, row: list[int], layer: int, head: int, query: int, choice: Choice
) -> tuple[dict[str, float], dict[str, float]]:
    """Query-side and key-side terms, from the splits of single scores."""
    sides: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for keys, sign in ((choice.chosen, 1), (choice.others, -1)):
        for key in keys:
            grid = explain_attention_score(
                spoken(model), say(row), layer, head, query, key, grain="head"
            )
            for axis, side in enumerate(sides):
                for label, value in zip(
                    grid.axes[axis].labels, grid.values.sum(1 - axis), strict=True
                ):
                    side[label] = side.get(label, 0.0) + sign * float(value) / len(keys)
    return sides


@settings(max_examples=16)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.integers(0, N_LAYERS - 1),
    st.integers(0, N_HEADS - 1),
    st.data(),
)
def test_a_difference_of_scores_is_split_as_single_scores_are(
    variant: str, layer: int, head: int, data: st.DataObject
) -> None:
    model = decoder(variant)
    lengths, queries = [7, 5], [data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))]
    choices = [choice_of(data, model, layer, query) for query in queries]
    if not all(choice.others for choice in choices):
        return
    read = reading(lengths, queries)
    grid = score_parts(model, HeadPart(layer, head), read, choices)
    assert grid.error["gap"] <= grid.error["bound"] == 1e-9
    for i, row in enumerate(read.tokens.rows()):
        expected = differences(model, row, layer, head, queries[i], choices[i])
        for side, terms in zip(("query", "key"), expected, strict=True):
            one = grid.select(side=side, prompt=str(i))
            assert one.axis("component").labels == tuple(terms)
            np.testing.assert_allclose(one.values, list(terms.values()), atol=1e-9)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_normalised_queries_and_keys_with_a_bias_close_too(kind: str) -> None:
    model = decoder("gemma3")
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
    read, choice = reading([6], [3]), Choice((2,), (0, 1, 3))
    grid = score_parts(model, HeadPart(1, 2), read, [choice])
    assert grid.error["gap"] <= 1e-9
    expected = differences(model, read.tokens.rows()[0], 1, 2, 3, choice)
    for side, terms in zip(("query", "key"), expected, strict=True):
        found = grid.select(side=side, prompt="0").values
        np.testing.assert_allclose(found, list(terms.values()), atol=1e-9)


@pytest.mark.parametrize("variant", ["gpt2", "llama", "olmo2"])
def test_they_close_in_float32(variant: str) -> None:
    model = decoder(variant, dtype=torch.float32)
    read = reading([6, 4], [5, 3])
    choices = [Choice((0,), (2, 3)), Choice((1, 2), (0,))]
    for grid in (
        score_parts(model, HeadPart(2, 1), read, choices),
        neuron_inputs(model, NeuronPart(2, 1), read),
    ):
        assert grid.error["gap"] <= grid.error["bound"]
