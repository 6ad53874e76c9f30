"""docs/why-7.233-is-not-6.617.md: its arithmetic on recorded figures, and the same on a model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.measure.ledger import ledger
from casestudy.model.model import Model
from casestudy.results.names import B_U

ROOT = Path(__file__).resolve().parents[1]
RECORDED = json.loads((ROOT / "tests/golden/data/why_7233.json").read_text())
PAGE = (ROOT / "docs/why-7.233-is-not-6.617.md").read_text(encoding="utf-8")
# printed to 0.001: a difference of two printed figures is good to 0.001, a mean of eight to less
PRINTED = 0.0011


def test_the_means_are_the_means_of_their_prompts() -> None:
    for batch in ("ragged_five", "eleven_token_eight"):
        figures = RECORDED[batch]
        assert np.mean(figures["per_prompt"]) == pytest.approx(figures["original"], abs=PRINTED)


def test_the_second_check_has_the_gap_of_the_first() -> None:
    five, check = RECORDED["ragged_five"], RECORDED["answers_as_inputs"]
    gap = five["calculated"] - five["original"]
    calculated = check["calculated_as_printed"] * check["divided_by"] / check["rows"]
    assert gap == pytest.approx(0.616)
    assert calculated - gap == pytest.approx(check["original"], abs=PRINTED)


def test_padding_is_cleared() -> None:
    padded, alone = RECORDED["ragged_five"], RECORDED["eleven_token_eight"]
    assert padded["per_prompt"][3] == alone["per_prompt"][7] == 6.47


def test_the_page_states_the_recorded_figures() -> None:
    for figure in ("7.233", "6.617", "0.616", "7.140", "6.453", "0.687", "−3.219", "−3.191"):
        assert figure in PAGE
    assert f"{7.140 - 6.453:.3f}" == "0.687"
    assert f"{-3.219 * 4 / 5:.3f}" == "-2.575"


def test_b_U_depends_on_the_tokens_alone(toy: Callable[..., Model]) -> None:
    """Other prompts, of other lengths, with the same answers: the same gap, as in the notebook."""

    def b_U(*texts: str) -> np.ndarray:
        prompts = tuple(Prompt(text, " He", " he") for text in texts)
        grid = ledger(toy(), Behaviour("b", "?", prompts, answers="given"))
        return grid.select(term=B_U).values

    first = b_U("Go.", "It was late. She did not know.")
    second = b_U("Completely different.", "Yes")
    np.testing.assert_array_equal(first, second)
    assert np.abs(first).min() > 0
