"""Findings about single parts: each number is the card's, or the circuit's of heads and neurons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from casestudy.behaviour.counterfactual import FAMILIES, propose
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.circuits.neuron_card import neuron_circuit
from casestudy.circuits.neuron_circuit import NeuronChoices
from casestudy.claims.check import Outcome, check, read_findings
from casestudy.engine.batch import run_batch
from casestudy.errors import FindingError
from casestudy.measure.edit_scores import score
from casestudy.measure.pairs import pairs_of
from casestudy.measure.part_card import part
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results import names
from casestudy.results.part_card import PartCard
from casestudy.results.result import Grid
from tests.conftest import ROOT

FIRST = "first letter lowered"
TEXTS = ("It was late. She went home.", "No one knew. He ran.", "So it was. They left us.")
BEHAVIOUR = Behaviour("test", "Why?", tuple(map(Prompt, TEXTS)))
CHECKS = ROOT / "docs" / "checks"


def outcome(model: Model, behaviour: Behaviour = BEHAVIOUR, **row: Any) -> Outcome:
    finding = {"claim": "it is so", "at_least": -1e9} | row
    (found,) = check({"finding": [finding]}, model, behaviour=behaviour).outcomes
    return found


def mean_of(card: PartCard, name: str, **where: str) -> float:
    grid = card[names.mean(name)]
    assert isinstance(grid, Grid)
    return float(grid.select(**where).values)


@pytest.mark.parametrize("name", ["head 1.2", "neuron 1.5"])
def test_reading_and_ablation_are_the_cards(toy_model: Model, name: str) -> None:
    card = part(toy_model, name, behaviour=BEHAVIOUR)
    for kind in ("zero", "mean", "resample"):
        found = outcome(toy_model, measure="ablation", part=name, put_in=kind)
        expected = mean_of(card, names.PART_ABLATION, kind=kind)
        assert (found.value, found.n) == (pytest.approx(expected, abs=1e-5), 3)
    if name.startswith("neuron"):
        found = outcome(toy_model, measure="reads", part=name, term="mlp 0", among_first=1)
        expected = mean_of(card, names.PART_READS, input="input", component="mlp 0")
    else:
        role = card.about["reads_at"][names.PART_READS].split("“")[1].split("”")[0]
        asked = {"measure": "reads", "part": name, "role": role, "among_first": 1}
        found = outcome(toy_model, term="bias", side="query", **asked)
        expected = mean_of(card, names.PART_READS, side="query", component="bias")
    assert found.value == pytest.approx(expected, abs=1e-5)
    assert found.place is not None


def test_a_share_of_the_contrast_is_the_change_over_it(toy_model: Model) -> None:
    asked = {"measure": "ablation", "part": "neuron 0.7", "put_in": "zero"}
    change = outcome(toy_model, **asked)
    whole = outcome(toy_model, measure="logit_difference")
    share = outcome(toy_model, of="contrast", **asked)
    assert change.value is not None
    assert whole.value is not None
    assert share.value == pytest.approx(change.value / whole.value, rel=1e-4)
    assert share.unit == "share of the contrast (lowercase)"


def test_selectivity_counts_pairs_of_positions_within_each_prompt(toy_model: Model) -> None:
    found = outcome(toy_model, measure="selectivity", part="neuron 1.5", role="final full stop")
    batch = run_batch(toy_model, BEHAVIOUR, range(len(TEXTS)), [])
    trace = run(toy_model, batch.tokens, keep=[Site.MLP_POST.at(1)], logits="last")
    activity = trace[Site.MLP_POST, 1][..., 5].numpy()
    shares = []
    for row, end in zip(activity, batch.tokens.last.tolist(), strict=True):
        shares.append(np.mean([row[end] > row[p] for p in range(1, end)]))
    assert found.value == pytest.approx(np.mean(shares))
    # a role against itself among others: every pair is counted once, on one side or the other
    asked = {"measure": "selectivity", "part": "head 0.1"}
    one = outcome(toy_model, role="final full stop", against="earlier full stops", **asked)
    other = outcome(toy_model, role="earlier full stops", against="final full stop", **asked)
    assert one.value is not None
    assert other.value == pytest.approx(1 - one.value)


def test_the_first_nodes_are_judged_as_a_neuron_circuit_judges_them(toy_model: Model) -> None:
    texts = [f"{a} was {b}." for a in ("It", "He", "She") for b in ("late", "so", "mine")]
    asked = Behaviour("test", "Why?", tuple(map(Prompt, texts)))
    found = outcome(toy_model, asked, measure="circuit", edit=FIRST, first=40)
    batch = run_batch(toy_model, asked, range(len(texts)), [])
    families = [family for family in FAMILIES if family.name == FIRST]
    (scored,) = score(toy_model, propose(toy_model, batch.prompts, families), batch.contrasts[0])
    scored = scored.only(lambda pair: pair.aligned == "position")
    contrast = batch.contrasts[0][[pair.index for pair in scored.pairs]]
    pairs = pairs_of(toy_model, scored.pairs)
    card = neuron_circuit(toy_model, pairs, contrast, NeuronChoices(top=40, random_sets=1))
    expected = card.summary()["faithfulness on pairs held out"]
    assert (found.value, found.n) == (pytest.approx(expected["value"], abs=1e-4), expected["n"])
    assert found.lower == pytest.approx(expected["lower"], abs=1e-3)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"measure": "ablation", "part": "attn 1"}, "a head .* or a neuron"),
        ({"measure": "ablation", "part": "trained.safetensors"}, "a head .* or a neuron"),
        ({"measure": "ablation", "part": "head 0.1", "put_in": "one"}, "zero, mean, resample"),
        ({"measure": "ablation", "part": "head 9.1"}, "layers 0 to 1"),
        ({"measure": "reads", "part": "head 0.1", "term": "embed", "side": "key"}, "the role"),
        ({"measure": "reads", "part": "neuron 0.1", "term": "x"}, "embed, mlp 0"),
        ({"measure": "reads", "part": "neuron 0.1", "term": "embed", "side": "key"}, "input, gate"),
        ({"measure": "selectivity", "part": "head 0.1", "role": "final stop"}, "final full stop"),
        ({"measure": "circuit", "edit": FIRST, "first": 10**6}, "1 to"),
        ({"measure": "circuit", "edit": FIRST, "first": 0}, "1 and more"),
    ],
)
def test_what_cannot_be_found_is_refused_with_what_can(
    toy_model: Model, row: dict[str, Any], why: str
) -> None:
    with pytest.raises(FindingError, match=why):
        outcome(toy_model, **row)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"measure": "reads", "part": "neuron 0.1", "term": "mlp 1"}, "not before the part"),
        (
            {"measure": "selectivity", "part": "head 0.1", "role": "earlier full stops"},
            "no prompt has these positions",
        ),
        (
            {"measure": "reads", "part": "head 0.1", "term": "embed", "side": "key",
             "role": "earlier full stops"},
            "no prompt has the role",
        ),
    ],
)  # fmt: skip
def test_what_these_prompts_lack_is_not_measurable(
    toy_model: Model, row: dict[str, Any], why: str
) -> None:
    one = Behaviour("test", "Why?", (Prompt("It was late."),))
    found = outcome(toy_model, one, **row)
    assert found.verdict == "not measurable"
    assert why in found.why


@pytest.mark.parametrize("name", ["single-parts", "stops"])
@pytest.mark.slow
def test_what_is_said_of_the_bundled_models_parts_holds(name: str) -> None:
    found = check(CHECKS / f"{name}.toml")
    assert [one.claim for one in found.outcomes if one.verdict != "holds"] == []


@pytest.mark.real
def test_what_is_said_of_the_published_models_parts_holds(smollm2: Model) -> None:
    findings = read_findings(CHECKS / "single-parts-smollm2.toml")
    quick = [one for one in findings.asked if one.finding.measure in ("attribution", "attention")]
    assert len(quick) >= 5
    found = check(replace(findings, asked=tuple(quick)), smollm2)
    assert [one.claim for one in found.outcomes if one.verdict != "holds"] == []


@pytest.mark.real
@pytest.mark.parametrize("name", ["neuron 29.300", "head 20.2"])
def test_a_card_of_a_published_model_closes(smollm2: Model, name: str) -> None:
    card = part(smollm2, name, behaviour=BEHAVIOUR)
    for grid in (card[names.PART_READS], card[names.PART_ABLATION]):
        assert isinstance(grid, Grid)
        assert grid.error["gap"] <= grid.error["bound"]
    if name.startswith("neuron"):
        demoted = [row["token"] for row in card.rows(names.PART_TOKENS) if row["side"] == "demoted"]
        assert " for" in demoted[:6]
