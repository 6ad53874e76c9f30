"""A distribution counts every prompt once, whatever their number, and says what it drew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from casestudy.results.result import Table
from casestudy.results.stats import mean_over_prompts
from casestudy.show import distribution, marks, svg
from casestudy.show.report import report_html
from casestudy.show.stored import StoredStudy
from casestudy.show.wording import Mean, Spread
from tests.show import studies
from tests.show.pages import Page

NO_DOTS = marks.Data([], {}, "logits")


def drawn(*lines: np.ndarray) -> distribution.Rows:
    labels = [f"row {i}" for i in range(len(lines))]
    return distribution.rows("row", labels, lines, [None] * len(lines), unit="x", dots=NO_DOTS)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(101, 300), st.integers(0)
)
def test_every_measured_value_is_in_one_bin(values: list[float], n: int, seed: int) -> None:
    many = np.random.default_rng(seed).normal(0, 3, n)
    few = np.array([*values, np.nan])
    counted = drawn(many, few).data
    counts = np.reshape(np.array(counted.columns["value"], dtype=float), (2, -1))
    assert counts.sum(1).tolist() == [n, len(values)]
    shares = np.reshape(np.array(counted.columns["share of the row"], dtype=float), (2, -1))
    assert shares.sum(1) == pytest.approx([1, 1])


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
@example(2882304.0, 1e-9)  # two neighbouring numbers
def test_bins_hold_everything_are_few_and_split_at_zero(low: float, width: float) -> None:
    values = np.array([low, low + width])
    edges = distribution.bins(values)
    slack = 1e-9 * np.abs(values).max()
    assert edges[0] <= low + slack
    assert edges[-1] >= low + width - slack
    assert 2 <= len(edges) <= distribution.MOST_BINS + 3
    assert not ((edges[:-1] < 0) & (edges[1:] > 0)).any()


def test_few_prompts_are_dots_and_many_are_counted() -> None:
    few, many = np.arange(distribution.MOST_DOTS), np.arange(distribution.MOST_DOTS + 1)
    assert svg.draw(drawn(few).mark).body.count("<circle") == len(few)
    assert svg.draw(drawn(many).mark).body.count("<circle") == 0
    assert 'class="bin pos"' in svg.draw(drawn(many).mark).body


def test_a_drawing_of_ten_thousand_is_as_small_as_one_of_two_hundred() -> None:
    rng = np.random.default_rng(0)
    small, large = (drawn(rng.normal(0, 1, n)) for n in (200, 10_000))
    assert len(svg.draw(large.mark).body) < 2 * len(svg.draw(small.mark).body)
    assert len(large.data.columns["value"]) < 100


def test_the_box_and_the_mean_stand_where_they_should() -> None:
    values = np.linspace(0, 100, 401)
    spread = Spread.of(values)
    assert spread is not None
    assert (spread.low, spread.first, spread.median, spread.third, spread.high) == pytest.approx(
        (5, 25, 50, 75, 95)
    )
    assert spread.positive == pytest.approx(400 / 401)
    assert Spread.of(np.array([np.nan])) is None
    drawn = distribution.rows(
        "row", ["a"], [values], [Mean(50.0, 40.0, 60.0, 401)], unit="x", dots=NO_DOTS
    )
    body = svg.draw(drawn.mark).body
    assert 'class="mean"' in body
    assert "n = 401" in body


def test_groups_of_many_prompts_are_drawn_listed_and_tested(tmp_path: Path) -> None:
    texts = studies.TEXTS * 200
    grid = studies.ledger(len(texts))[0]
    prompts = Table(
        "prompts",
        {
            "prompt": list(range(len(texts))),
            "text": list(texts),
            "groups": [["rare"] if i < 3 else [f"group {i % 4}"] for i in range(len(texts))],
        },
    )
    results = [grid, mean_over_prompts(grid), prompts]
    results.append(studies.by_group(grid, prompts.columns["groups"]))
    stored = StoredStudy.read(studies.write(tmp_path / "s", results, texts=texts))
    page = Page(report_html(stored))
    alt = next(a for a in page.alts if "by group, 5 groups" in a)
    assert "n = 200" in alt
    counted = next(f for f in page.figures if f["axes"][0][0] == "group" and f["unit"] == "prompts")
    rows = np.reshape(counted["columns"]["value"], (5, -1)).sum(1)
    assert sorted(rows.tolist()) == [3, 199, 199, 199, 200]
    assert "The groups in numbers" in page.text
    assert len(page.html) < 400_000, "nothing on the page may grow with the prompts"
