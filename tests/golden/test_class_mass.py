"""Does GPT-2 small give each class of token the mass that was recorded?

Masses were printed to 0.01 %, with the ASCII patterns of the set `ascii-2024`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from casestudy.behaviour.classes import ASCII_2024
from casestudy.measure.class_mass import class_mass
from casestudy.model.model import Model
from tests.golden.conftest import DATA

RECORDED: dict[str, Any] = json.loads((DATA / "gpt2_class_masses.json").read_text("utf-8"))
PERCENT = 0.011  # printed to 0.01, ours rounded no better


@pytest.mark.parametrize("prompt", RECORDED["percent"])
def test_the_mass_of_each_class(gpt2: Model, prompt: str) -> None:
    masses = class_mass(gpt2, prompt, ASCII_2024)
    for name, percent in RECORDED["percent"][prompt].items():
        ours = 100 * float(masses.select(**{"class": name}).values[0])
        assert ours == pytest.approx(percent, abs=PERCENT), name


def test_the_recorded_set_is_the_one_described() -> None:
    """The record lists its patterns in order; ours are those."""
    described = [c.pattern for c in ASCII_2024.classes]
    assert RECORDED["about"]["classes"].count('r"') == len(described)
    text = RECORDED["about"]["classes"]
    places = [text.index(f'r"{pattern}"') for pattern in described]
    assert places == sorted(places)
