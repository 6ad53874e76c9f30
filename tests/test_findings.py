"""docs/findings.md says what docs/findings.json holds, and that is of the models it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from docs import (
    findings,
    findings_directions,
    findings_page,
    findings_parts,
    findings_tables,
    findings_two,
)

from casestudy.model.loading import load
from casestudy.model.model import Model

FOUND = json.loads(findings_page.RESULTS.read_text("utf-8"))
TINY = FOUND["tiny"]
PAGE = findings_page.PAGE.read_text("utf-8")


def test_the_pages_blocks_are_the_stored_figures() -> None:
    assert findings_page.filled(PAGE, FOUND) == PAGE, "stale: make findings"


def test_the_figures_are_the_bundled_models() -> None:
    ours = load("tiny").weight_hash
    assert {side["weight_hash"] for side in TINY.values()} == {ours}


def test_each_kind_of_stop_has_enough_contexts_or_the_page_says_what_the_books_hold() -> None:
    for model in FOUND.values():
        few = {kind: n for kind, n in model["mined"]["taken"].items() if n < 250}
        assert set(few) <= {"decimal point"}
        decimals = model["decimals"]
        assert decimals["n"] >= 250
        assert decimals["kept_out"] < 250 < decimals["found"]
        assert f"hold {decimals['found']:,} decimal points" in PAGE


@pytest.mark.real
def test_the_figures_are_the_published_models(smollm2: Model) -> None:
    theirs = FOUND["smollm2"]
    assert {x["weight_hash"] for x in theirs.values()} == {smollm2.weight_hash}


def test_what_is_written_by_hand_has_no_measured_figure() -> None:
    prose = PAGE
    for name in findings_page.BLOCKS:
        start, end = findings_page.ends(name)
        prose = prose.split(start)[0] + prose.split(end)[1]
    prose = prose.replace("95 % intervals", "")
    assert re.findall(r"(?<!GPT-)(?<!SmolLM)(?<!smollm)\d[\d.,]*", prose) == []


def test_other_figures_make_other_words() -> None:
    other = json.loads(json.dumps(TINY))
    other["mined"]["edits"][findings_tables.FIRST]["edited"]["mean"] = 9.0
    text = findings_page.places(other)
    assert "leaves its sign (+9.00 in the mean)" in text
    assert "So the start of the text is not what decides." in text


def test_what_decides_in_a_model_follows_from_its_figures() -> None:
    other = json.loads(json.dumps(FOUND))
    edits = other["smollm2"]["mined"]["edits"]
    edits[findings_tables.COMMA]["flips"] = 0.0
    for name in findings_two.CASE:
        edits[name]["flips"] = 1.0
    assert "Here the case of the text decides more often" in findings_two.short(other)
    edits[findings_tables.COMMA]["flips"] = 1.0
    assert "Here stop and case turn the preference round about as often" in findings_two.short(
        other
    )


def test_a_conclusion_the_figures_do_not_bear_out_is_not_written() -> None:
    other = json.loads(json.dumps(TINY))
    other["preset"]["noising"][0]["low"] = 0.1
    with pytest.raises(ValueError, match="One head does it"):
        findings_page.places(other)


def test_exact_patching_agrees_with_two_plain_runs() -> None:
    for side in (model[kind] for model in FOUND.values() for kind in ("preset", "mined")):
        assert side["by_hand"] == pytest.approx(side["noising"][0]["mean"], abs=2e-4)


def test_gpt2s_figures_are_the_recorded_ones() -> None:
    recorded = findings_page.recorded()
    assert recorded["mlps"] == pytest.approx(5.95, abs=0.005)
    assert recorded["attention"] == pytest.approx(1.18, abs=0.005)
    assert (recorded["head"], recorded["takes_over"]) == ("11.0", 6)
    assert recorded["head_share"] == pytest.approx(0.37, abs=0.005)


def test_without_the_books_the_mined_figures_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(findings, "measure_preset", lambda model, plan: ({"new": 1}, None))
    monkeypatch.setattr(findings, "measure_heads", lambda model: {"new": 2})
    found = findings.measure("tiny", tmp_path, TINY)
    kept = {key: TINY[key] for key in ("mined", "decimals", "parts", "direction")}
    assert found == {"preset": {"new": 1}, "heads": {"new": 2}, **kept}
    assert "the mined figures stay as they are" in capsys.readouterr().err


def test_words_on_single_parts_follow_from_their_figures() -> None:
    other = json.loads(json.dumps({"tiny": TINY, "smollm2": {}}))
    (first, *_), text = other["tiny"]["parts"]["cards"], findings_parts.parts_page(other)
    assert f"{first['part']} is larger at the sentence's" in text
    row = first["selective"][findings_parts.ABBREVIATION]
    row["low"], row["high"] = 0.2, 0.4
    assert f"{first['part']} is larger at the abbreviation's" in findings_parts.parts_page(other)
    row["high"] = 0.6
    assert f"{first['part']} does not tell the two apart" in findings_parts.parts_page(other)


def test_words_on_the_direction_are_its_figures() -> None:
    other = json.loads(json.dumps({"tiny": TINY, "smollm2": {}}))
    (row,) = (
        row for row in other["tiny"]["direction"]["steered"]
        if (row["method"], row["run"], row["coefficient"]) == ("trained", "corrupted", 1)
    )  # fmt: skip
    row |= {"mean": 7.25, "low": None}
    assert "corrupted prompts' contrast from" in findings_directions.directions_page(other)
    assert "to 7.25 logits" in findings_directions.directions_page(other)


def test_single_parts_alone_are_measured_over_the_beginnings_of_the_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(findings, "carriers", lambda model, plan: [])
    monkeypatch.setattr(findings_parts, "measure_direction", lambda name, model: {"new": 3})
    found = findings.measure_single("tiny", tmp_path, TINY)
    assert found == TINY | {"direction": {"new": 3}}
    assert "single parts stay as they are" in capsys.readouterr().err
    book = "A line.\n" * 9000
    (tmp_path / "book.txt").write_text(book)
    texts = findings_parts.beginnings(tmp_path, ["book.txt", "another.txt"])
    assert list(texts) == ["book.txt"]
    assert book.startswith(texts["book.txt"])
    assert findings_parts.BYTES - 8 <= len(texts["book.txt"]) <= findings_parts.BYTES


def test_edits_change_the_letters_they_name() -> None:
    text = "One day he came. Then Anna left."
    edited = {family.name: family.edit(text) for family in findings.EDITS}
    assert edited[findings_tables.OWN_LOWERED] == "One day he came. then Anna left."
    assert edited[findings_tables.REST_LOWERED] == "One day he came. Then anna left."
    assert edited[findings_tables.NO_STOPS] == "One day he came, Then Anna left."
    assert findings.several(text)
    assert not findings.several("One day he came.")


def assert_alike(new: Any, old: Any, where: str = "") -> None:
    if isinstance(old, dict):
        assert new.keys() == old.keys(), where
        for key, value in old.items():
            assert_alike(new[key], value, f"{where}.{key}")
    elif isinstance(old, list):
        assert len(new) == len(old), where
        for i, value in enumerate(old):
            assert_alike(new[i], value, f"{where}[{i}]")
    elif isinstance(old, float):
        # four digits are kept; float32 rounds otherwise on other machines
        assert new == pytest.approx(old, abs=2e-3), where
    else:
        assert new == old, where


@pytest.mark.large
def test_the_presets_figures_are_measured_again() -> None:
    made, _ = findings.measure_preset(load("tiny"), findings.PLANS["tiny"])
    assert_alike(json.loads(json.dumps(made)), TINY["preset"])
