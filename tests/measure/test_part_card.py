"""A card has what its corpus and behaviour allow, and says what is absent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import casestudy as cs
from casestudy.behaviour.windows import Windows
from casestudy.engine.batch import Measurement, run_batch
from casestudy.errors import BehaviourError, MeasureError, SiteError, StudyError
from casestudy.measure.attribution import head_attribution, neuron_attribution
from casestudy.measure.part_card import CardSettings, part, part_cards
from casestudy.measure.part_writes import (
    keep_for_share,
    ledger_share,
    promoted_tokens,
    source_tokens,
    token_effects,
)
from casestudy.measure.parts import HeadPart, NeuronPart
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.sites import Site
from casestudy.results import names
from casestudy.results.part_card import PartCard
from casestudy.results.result import Grid, Table
from tests.measure.cards import behaviour, corpus, only_activity, speaking
from tests.measure.worlds import D_VOCAB, VARIANTS, decoder

ALL = {
    *(names.PART_CONTEXTS, names.PART_VALUES, names.PART_SELECTIVITY, names.PART_LOSS),
    *(names.PART_SHARE, names.PART_READS, names.PART_READS_CONTEXTS, names.PART_ABLATION),
}


@pytest.mark.parametrize("variant", ["gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["head 1.2", "neuron 1.5"])
def test_a_card_of_everything(variant: str, name: str, tmp_path: Path) -> None:
    model = speaking(variant)
    card = part(model, name, behaviour=behaviour(), corpus=corpus(), k=4, window=9, loss_windows=5)
    found = {result.name for result in card.results}
    head = name.startswith("head")
    own = (
        {names.PART_SOURCES, names.PART_ATTENTION}
        if head
        else {names.PART_SIGNS, names.PART_TOKENS}
    )
    assert found - {names.mean(n) for n in found} >= ALL | own
    assert card.absent == ()
    assert bool(card.notes) == (variant == "gemma2")  # a norm after the MLP and the attention
    assert card.about["corpus"]["documents"] == 12
    assert card.about["corpus"]["resampled"] == "documents"
    card.write(tmp_path / "card")
    again = PartCard.read(tmp_path / "card")
    assert json.dumps(again.as_dict()) == json.dumps(card.as_dict())
    json.loads(json.dumps(card.as_dict(), allow_nan=False))


def test_what_was_not_given_is_absent() -> None:
    model = speaking("gpt2")
    bare = part(model, "neuron 1.5")
    assert [result.name for result in bare.results] == [names.PART_TOKENS]
    whats = {what for what, _ in bare.absent}
    assert whats == {
        *("Where it is active", "Its share of a logit difference", "What it reads"),
        *("Ablation on a behaviour", "Ablation on other text"),
    }
    head = part(model, "head 1.2", behaviour=behaviour())
    assert names.PART_SOURCES not in {r.name for r in head.results}
    assert ("What it writes", "no corpus was given, which has source tokens") in head.absent
    assert all(row["where"] == "prompts" for row in head.rows(names.PART_SELECTIVITY))


def test_prompts_without_a_contrast_are_left_out_and_said() -> None:
    asked = behaviour()
    broken = replace(asked.prompts[1], answer="w4")
    asked = replace(asked, prompts=(asked.prompts[0], broken, *asked.prompts[2:]))
    card = part(speaking("gpt2"), "head 1.2", behaviour=asked)
    ablation = card[names.PART_ABLATION]
    assert isinstance(ablation, Grid)
    assert ablation.axis("prompt").labels == ("0", "2", "3")
    assert any("1 of 4 prompts" in note for note in card.notes)


def test_first_tokens_of_longer_answers_and_a_single_prompt_are_said() -> None:
    model, asked = speaking("gpt2"), behaviour(2)
    assert not part(model, "head 0.1", behaviour=asked).notes
    longer = replace(asked.prompts[0], answer="w3 w4")
    notes = part(model, "head 0.1", behaviour=replace(asked, prompts=(longer,))).notes
    assert any("compare the first tokens" in note for note in notes)
    assert any("its mean over the prompts is its own output" in note for note in notes)


STOPS = (
    "It was late, and she left. Mr. Fox came in, so the day ended. Dr. Hill, who knew, said "
    "nothing. They went home. He asked Mrs. Brown to stay. It rained. "
) * 6


def test_the_bundled_models_parts_do_what_is_known_of_them() -> None:
    model, asked = cs.load("tiny"), cs.preset("full-stop-capitals")
    some = replace(asked, prompts=tuple(asked.prompts[i] for i in asked.main_prompts[:4]), main=())
    settings = CardSettings(k=3, window=64, loss_windows=2)
    chosen = ["neuron 4.547", "head 0.2"]
    neuron, head = part_cards(model, chosen, behaviour=some, corpus={"a": STOPS}, settings=settings)
    rows = {(r["kind"], r["against"]): r["auroc"] for r in neuron.rows(names.PART_SELECTIVITY)}
    assert rows["full stop: sentence end", "full stop: abbreviation"] > 0.9
    assert rows["full stop: sentence end", "comma"] > 0.9
    assert {row["token"] for row in neuron.rows(names.PART_TOKENS)} >= {" That", " But"}
    ablation = neuron[names.mean(names.PART_ABLATION)]
    attention = head[names.mean(names.PART_ATTENTION)]
    assert isinstance(ablation, Grid)
    assert isinstance(attention, Grid)
    assert float(ablation.select(kind="zero").values) < -0.2
    assert float(attention.select(role="first word").values) > 0.4


def test_bad_input_is_refused(tmp_path: Path) -> None:
    model = speaking("gpt2")
    with pytest.raises(SiteError, match="Did you mean"):
        part(model, "head 7.0")
    with pytest.raises(BehaviourError, match="no text"):
        part(model, "head 1.2", corpus={"a": " "}, window=9)
    with pytest.raises(MeasureError, match="fewer than the 20 contexts"):
        part(model, "head 1.2", corpus={"a": "w1 w2 w3 w4"}, window=9)
    with pytest.raises(MeasureError, match="k is 0"):
        part(model, "head 1.2", k=0)
    with pytest.raises(StudyError, match=r"card\.json is no card of a part"):
        PartCard.read(tmp_path)
    (tmp_path / "card.json").write_text('{"card": 99}')
    with pytest.raises(StudyError, match="a card of form 99"):
        PartCard.read(tmp_path)
    with pytest.raises(MeasureError, match=r"has no 'part\.x'"):
        part(model, "neuron 0.0")["part.x"]


# What it writes


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_its_share_is_its_row_of_the_attribution(variant: str) -> None:
    model, asked = speaking(variant), behaviour()
    for one, grid in (
        (HeadPart(1, 2), head_attribution(model, asked).select(layer="1", head="2")),
        (NeuronPart(1, 7), neuron_attribution(model, asked).select(layer="1", neuron="7")),
    ):
        keep = Measurement("part", lambda model, one=one: keep_for_share(model, one), lambda _: [])
        batch = run_batch(model, asked, range(len(asked)), [keep])
        found = ledger_share(batch, one)
        np.testing.assert_allclose(found.values, grid.values, atol=1e-9)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_token_effects_are_the_change_of_the_logits_at_a_held_scale(variant: str) -> None:
    """Before a soft cap, the mean over tokens subtracted, times the final norm's scale."""
    model, tokens = decoder(variant), [[1, 2, 3]]
    direction = NeuronPart(1, 7).written(model)
    (effects,) = token_effects(model, direction)
    normed = model.weights.final_norm is not None
    held = [Site.FINAL_SCALE] if normed else []
    clean = run(model, tokens, keep=[Site.FINAL_NORMED, *held])
    edits = [Edit.add(Site.FINAL_RESID, None, direction[0])]
    edits += [Edit.replace(site, None, clean[site]) for site in held]
    added = run(model, tokens, keep=[Site.FINAL_NORMED], edit=edits)
    change = (added[Site.FINAL_NORMED] - clean[Site.FINAL_NORMED])[0, 2] @ model.weights.W_U
    scale = clean[Site.FINAL_SCALE][0, 2] if normed else 1.0
    torch.testing.assert_close(effects, (change - change.mean()) * scale)


def test_promoted_tokens_are_those_of_the_largest_effects() -> None:
    model = speaking("gpt2")
    one = NeuronPart(2, 4)
    table = promoted_tokens(model, one)
    (effects,) = token_effects(model, one.written(model))
    order = effects.argsort(descending=True).tolist()
    sides = {
        side: [row["id"] for row in table.rows() if row["side"] == side]
        for side in ("promoted", "demoted")
    }
    assert sides == {"promoted": order, "demoted": order[::-1]}
    assert table.columns["token"][0] == model.tokenizer.label(order[0])
    assert len(order) == D_VOCAB


def test_sources_are_means_over_the_corpus_of_what_the_head_takes() -> None:
    model, one = speaking("llama"), HeadPart(1, 2)
    windows = list(Windows(corpus(), model.tokenizer, 9))
    found = only_activity(model, one, windows, k=1, most_windows=1)
    assert found.sources is not None
    table = source_tokens(model, one, found.sources)
    got = dict.fromkeys(range(D_VOCAB), 0.0)
    taken: dict[int, list[torch.Tensor]] = {}
    queries = 0
    for window in windows:
        ids = list(window.ids)
        trace = run(model, [ids], keep=[Site.PATTERN.at(1), Site.V.at(1)])
        pattern, values = trace[Site.PATTERN, 1][0, 2], trace[Site.V, 1][0, :, 1]
        queries += len(ids) - 1
        for p in range(1, len(ids)):
            got[ids[p]] += float(pattern[1:, p].sum())
            taken.setdefault(ids[p], []).append(values[p] - one.constant(model))
    rows = table.rows()
    assert [row["id"] for row in rows] == sorted(got, key=lambda id: -got[id])
    for row in rows[:4]:
        assert row["attention"] == pytest.approx(got[row["id"]] / queries)
        assert row["occurrences"] == len(taken[row["id"]])
        mean = torch.stack(taken[row["id"]]).mean(0) @ one.W_O(model)
        (effects,) = token_effects(model, mean[None])
        best = effects.argsort(descending=True)[:5]
        assert row["promoted"] == model.tokenizer.labels(best)
        assert row["own_effect"] == pytest.approx(float(effects[row["id"]]))
        assert row["own_rank"] == 1 + int((effects > effects[row["id"]]).sum())


def test_selectivity_is_of_the_positions_that_the_text_has(toy_model: cs.Model) -> None:
    text = "He slept, and woke. Then Mr. Fox left, too. It ended, so to say. " * 6
    card = part(toy_model, "head 1.2", corpus={"a": text}, window=16, k=5, loss_windows=2)
    rows = {(row["kind"], row["against"]): row for row in card.rows(names.PART_SELECTIVITY)}
    ends = rows["full stop: sentence end", "full stop: abbreviation"]
    windows = list(Windows({"a": text}, toy_model.tokenizer, 16))
    one = HeadPart(1, 2)
    sides: dict[str, list[float]] = {}
    for window in windows:
        trace = run(toy_model, [list(window.ids)], keep=one.keep(toy_model))
        values = one.activity(toy_model, trace)[0].tolist()
        for value, kind in list(zip(values, window.kinds, strict=True))[1:]:
            sides.setdefault(cs.behaviour.windows.KINDS[kind], []).append(value)
    a, b = (np.array(sides[f"full stop: {kind}"]) for kind in ("sentence end", "abbreviation"))
    assert (ends["n"], ends["n_against"]) == (len(a), len(b))
    area = ((a[:, None] > b).mean() + (a[:, None] >= b).mean()) / 2
    assert ends["auroc"] == pytest.approx(float(area), abs=1e-6)


def test_attention_by_role_is_that_of_every_head(toy_model: cs.Model) -> None:
    texts = ["It was late. She went home.", "He slept.", "No. Yes."]
    card = part(toy_model, "head 1.2", behaviour=texts)
    whole = cs.attention_by_role(toy_model, texts).select(layer="1", head="2")
    found = card[names.PART_ATTENTION]
    assert isinstance(found, Grid)
    assert found.axis("role").labels == whole.axis("role").labels
    np.testing.assert_allclose(found.values, whole.values, atol=1e-6)
    table = card.get(names.PART_SELECTIVITY)
    assert isinstance(table, Table)
