"""docs/findings.md says what docs/findings.json holds, and that is of the bundled model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from docs import findings, findings_page

from casestudy.model.loading import load

FOUND = json.loads(findings_page.RESULTS.read_text("utf-8"))
PAGE = findings_page.PAGE.read_text("utf-8")


def test_the_pages_blocks_are_the_stored_figures() -> None:
    assert findings_page.filled(PAGE, FOUND) == PAGE, "stale: make findings"


def test_the_figures_are_the_bundled_models() -> None:
    ours = load("tiny").weight_hash
    assert {side: FOUND[side]["weight_hash"] for side in FOUND} == {"preset": ours, "mined": ours}


def test_what_is_written_by_hand_has_no_measured_figure() -> None:
    prose = PAGE
    for name in findings_page.BLOCKS:
        start, end = findings_page.ends(name)
        prose = prose.split(start)[0] + prose.split(end)[1]
    assert re.findall(r"(?<!GPT-)\d[\d.,]*", prose.replace("95 % intervals", "")) == []


def test_other_figures_make_other_words() -> None:
    other = json.loads(json.dumps(FOUND))
    other["mined"]["edits"][findings_page.FIRST]["edited"]["mean"] = 9.0
    text = findings_page.places(other)
    assert "leaves its sign (+9.00 in the mean)" in text
    assert "So the start of the text is not what decides." in text


def test_a_conclusion_the_figures_do_not_bear_out_is_not_written() -> None:
    other = json.loads(json.dumps(FOUND))
    other["preset"]["noising"][0]["low"] = 0.1
    with pytest.raises(ValueError, match="One head does it"):
        findings_page.places(other)


def test_exact_patching_agrees_with_two_plain_runs() -> None:
    for side in FOUND.values():
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
    monkeypatch.setattr(findings, "measure_preset", lambda model: ({"new": 1}, None))
    found = findings.measure(tmp_path, FOUND)
    assert found == {"preset": {"new": 1}, "mined": FOUND["mined"]}
    assert "the mined figures stay as they are" in capsys.readouterr().err


def test_edits_change_the_letters_they_name() -> None:
    text = "One day he came. Then Anna left."
    edited = {family.name: family.edit(text) for family in findings.EDITS}
    assert edited[findings_page.OWN_LOWERED] == "One day he came. then Anna left."
    assert edited[findings_page.REST_LOWERED] == "One day he came. Then anna left."
    assert edited[findings_page.NO_STOPS] == "One day he came, Then Anna left."
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


@pytest.mark.slow
def test_the_presets_figures_are_measured_again() -> None:
    made, _ = findings.measure_preset(load("tiny"))
    assert_alike(json.loads(json.dumps(made)), FOUND["preset"])
