"""Circuits of heads and neurons: exact node ablation, and the evidence of a known circuit."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.known_circuits import KNOWN, KnownCircuit

from casestudy.circuits.ablated import EdgeAblation
from casestudy.circuits.neuron_card import NeuronCard, neuron_circuit
from casestudy.circuits.neuron_circuit import (
    NeuronChoices,
    curve_sizes,
    neuron_choices,
    nodes_needed,
)
from casestudy.circuits.node_sets import NodeSet, evaluate_nodes
from casestudy.engine.packing import Budget
from casestudy.errors import MeasureError, SiteError
from casestudy.measure.halves import Half, split
from casestudy.measure.patching import Pairs, neurons, patch
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from tests.measure.worlds import VARIANTS, contrast, decoder, pairs

LENGTHS = [6, 4, 7]
KEPT = ["head 0.1", "head 2.3", "neuron 0.2", "neuron 1.0", "neuron 1.11", "neuron 2.5"]


def pair_of(lengths: list[int] = LENGTHS) -> Pairs:
    return Pairs(*pairs(lengths))


def by_hand(model: Model, one: Pairs, kept: NodeSet, zero: bool) -> torch.Tensor:
    """The logits of one pair with every other head and neuron replaced, by plain edits."""
    theirs = run(model, one.corrupted, keep=[Site.Z, Site.MLP_POST])
    edits = []
    for layer in range(model.config.n_layers):
        for site, live in ((Site.Z, kept.heads), (Site.MLP_POST, kept.neurons)):
            mask = torch.tensor(live[layer])
            mask = mask[:, None] if site is Site.Z else mask
            value = theirs[site, layer] * (0.0 if zero else 1.0)
            edits.append(Edit(site, layer, lambda x, m=mask, v=value: torch.where(m, x, v)))
    logits = run(model, one.clean, edit=edits, logits="last").logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_a_set_of_nodes_is_the_run_with_all_others_replaced(
    variant: str, ablation: EdgeAblation
) -> None:
    model, both, values = decoder(variant), pair_of(), contrast(3)
    kept = NodeSet.named(model.config, KEPT)
    found = evaluate_nodes(model, both, values, [kept, NodeSet.of(model.config)], ablation=ablation)
    for i in range(3):
        logits = by_hand(model, both[[i]], kept, ablation == "zero")
        assert found.values[0, i] == pytest.approx(float(values[[i]].value(logits)), abs=1e-9)
    for side, ends in ((both.clean, found.full), (both.corrupted, found.empty)):
        logits = run(model, side, logits="last").logits
        assert logits is not None
        if ablation == "corrupted" or side is both.clean:
            np.testing.assert_allclose(ends, values.value(logits).numpy(), atol=1e-9)
    assert found.faithfulness.shape == (2,)


def test_a_mean_of_one_prompt_is_that_prompt() -> None:
    model, one, values = decoder("llama"), pair_of([6]), contrast(1)
    sets = [NodeSet.named(model.config, KEPT), NodeSet.of(model.config)]
    means, corrupted = (
        evaluate_nodes(model, one, values, sets, ablation=kind).values
        for kind in ("mean", "corrupted")
    )
    np.testing.assert_allclose(means, corrupted, atol=1e-9)


def test_all_but_one_node_is_the_exact_patch_of_that_node() -> None:
    model, both, values = decoder("llama"), pair_of(), contrast(3)
    whole = NodeSet.of(model.config, True)
    names = ["head 1.2", "neuron 1.7"]
    sets = [whole.without(NodeSet.named(model.config, [name])) for name in names]
    found = evaluate_nodes(model, both, values, sets).values
    heads = patch(model, both, values, "z", direction="noising").raw.values
    single = neurons(model, both, values, [(1, 7)], direction="noising").raw.values
    np.testing.assert_allclose(found, [heads[1, 2], single[0]], atol=1e-9)


def test_values_do_not_depend_on_blocks() -> None:
    model, both, values = decoder("gpt2"), pair_of([6, 4, 7, 5]), contrast(4)
    sets = [NodeSet.named(model.config, KEPT[:n]) for n in range(len(KEPT))]
    whole = evaluate_nodes(model, both, values, sets)
    small = evaluate_nodes(model, both, values, sets, budget=Budget(memory=1))
    np.testing.assert_allclose(small.values, whole.values, atol=1e-12)


@cache
def known() -> KnownCircuit:
    return KNOWN["capital_after_full_stop"](12)


@cache
def card(**options: object) -> NeuronCard:
    choices = NeuronChoices(**options)  # type: ignore[arg-type]
    return neuron_circuit(known().model, known().pairs, known().contrast, choices)


def test_the_known_head_and_neuron_are_found_and_are_enough() -> None:
    found = card()
    assert {"head 0.0", "neuron 1.0"} <= set(found.circuit.names)
    assert found.circuit.n <= 4  # of 8 heads and 16 neurons
    figures = found.summary()
    held = figures["faithfulness on pairs held out"]
    assert held["value"] > 0.85
    assert held["n"] == figures["neurons"]["n"] == 6
    kinds = ("nodes anywhere", "nodes in the same layers", "neurons in the same layers")
    for kind in kinds:
        row = figures[f"faithfulness, random {kind}"]
        assert row["lower"] <= row["value"] <= row["upper"]
        assert row["value"] < 0.5
    without = figures["faithfulness of the model without the circuit's nodes"]
    assert abs(without["value"]) < 0.1
    assert without["lower"] <= without["value"] <= without["upper"]
    rows = {row["node"]: row for row in found["neuron_circuit.nodes"].rows()}  # type: ignore[union-attr]
    assert rows["neuron 1.0"]["faithfulness_lost"] > 0.8
    for row in rows.values():  # every mean has its interval
        for name in ("exact", "faithfulness_lost"):
            if row[name] is not None:
                assert row[f"{name}_lower"] <= row[name] + 1e-9
                assert row[name] <= row[f"{name}_upper"] + 1e-9
    assert np.sign(rows["neuron 1.0"]["score"]) == np.sign(rows["neuron 1.0"]["exact"]) == 1
    assert rows["rest of mlp 1"]["score"] is None
    assert abs(rows["rest of mlp 1"]["exact"]) < 0.2 * rows["neuron 1.0"]["exact"]
    edges = found["neuron_circuit.edges"].rows()  # type: ignore[union-attr]
    assert ("neuron 1.0", "logits") in {(row["source"], row["target"]) for row in edges}
    inside = {*found.circuit.names, "embed", "logits"}
    for row in edges:
        assert {row["source"], row["target"].split("<")[0]} <= inside


def test_the_size_and_some_sizes_alone_are_those_of_the_evidence() -> None:
    half = Half(known().pairs, known().contrast)
    (circuit, (search, judge)), [(two, _)] = nodes_needed(known().model, half, NeuronChoices(), [2])
    found = card()
    assert circuit.names == found.circuit.names
    figures = found.summary()
    assert search == pytest.approx(figures["faithfulness where it was looked for"]["value"])
    assert judge == pytest.approx(figures["faithfulness on pairs held out"]["value"])
    assert two.n == 2


def test_with_all_heads_only_neurons_are_chosen() -> None:
    found = card(heads="all", top=1)
    assert found.circuit.heads.all()
    assert found.circuit.names[-1] == "neuron 1.0"
    assert found.circuit.neurons.sum() == 1
    figures = found.summary()
    assert figures["faithfulness on pairs held out"]["value"] > 0.85
    assert "faithfulness of the model without the circuit's neurons" in figures


def test_controls_have_as_many_nodes_and_the_curve_ends_with_the_model() -> None:
    evidence = card().evidence
    assert evidence.curve.faithfulness[-1] == pytest.approx(1, abs=1e-6)
    assert [one.n for one in evidence.curve.sets] == list(evidence.sizes)
    assert curve_sizes(24) == (1, 2, 5, 10, 20, 24)
    assert {len(values) for values in evidence.controls.values()} == {10}
    drawn = card(seed=1, top=5).evidence
    assert drawn.circuit.n == 5


def test_a_threshold_is_a_share_of_the_difference() -> None:
    found = card(threshold=0.5)
    scores = found.evidence.scores
    assert found.circuit.n == int((np.abs(scores.flat) >= 0.5 * _whole()).sum())


def _whole() -> float:
    """The mean difference between the runs of the search pairs."""
    one, rows = known(), split(12, None, 0)[0]
    some = one.pairs[rows], one.contrast[rows]
    found = evaluate_nodes(one.model, *some, [NodeSet.of(one.model.config)])
    return float((found.full - found.empty).mean())


def test_a_card_is_saved_as_plain_data(tmp_path: Path) -> None:
    card().save(tmp_path / "card.json")
    data = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert data["card"] == 1
    assert data["circuit"] == card().circuit.names
    assert data["settings"]["method"] == "relp"
    assert data["mean_clean"] > data["mean_corrupted"]
    assert data["curve"][-1]["nodes"] == 24


def test_a_norm_after_the_mlps_leaves_out_the_edges_alone() -> None:
    model, both = decoder("gemma2"), pair_of([6, 4, 7, 5, 6, 5])
    found = neuron_circuit(model, both, contrast(6), NeuronChoices(top=4, random_sets=1))
    assert found.circuit.n == 4
    assert found.evidence.edges is None
    assert "edges" not in found.as_dict()


def test_bad_input_is_named() -> None:
    model, both, values = decoder("gpt2"), pair_of(), contrast(3)
    with pytest.raises(SiteError, match=r"no node 'neuron 7.2'.*neuron 2.11.*Did you mean"):
        NodeSet.named(model.config, ["neuron 7.2"])
    with pytest.raises(SiteError, match=r"head 0\.0 to head 2\.3"):
        NodeSet.named(model.config, ["mlp 1"])
    with pytest.raises(MeasureError, match="another model"):
        evaluate_nodes(model, both, values, [NodeSet.of(known().model.config)])
    with pytest.raises(MeasureError, match="no set"):
        evaluate_nodes(model, both, values, [])
    for wrong, match in (
        ({"threshold": 1e9}, r"threshold of 1e\+09 keeps none of 48 nodes"),
        ({"threshold": 0.0}, "keeps all of 48 nodes"),
        ({"top": 48}, "the first 48 keeps all"),
    ):
        with pytest.raises(MeasureError, match=match):
            neuron_circuit(model, both, values, NeuronChoices(**wrong))  # type: ignore[arg-type]
    with pytest.raises(MeasureError, match="a threshold and a number"):
        NeuronChoices(threshold=0.1, top=3)
    with pytest.raises(MeasureError, match="Did you mean 'ranked'"):
        inspect.unwrap(neuron_choices)(heads="rankd")
    same = replace(both, corrupted=both.clean)
    with pytest.raises(MeasureError, match="identical"):
        evaluate_nodes(model, same, values, [NodeSet.of(model.config)])
