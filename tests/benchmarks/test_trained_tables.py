"""Are the tables of docs/circuits.md on trained models those that were measured?"""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest
from docs import neurons_table, scores_table
from docs.markers import parts, put, table


@pytest.mark.parametrize(
    ("name", "script"), [("correlations", scores_table), ("neurons", neurons_table)]
)
def test_the_page_has_what_is_kept(name: str, script: ModuleType) -> None:
    kept = json.loads(script.KEPT.read_text("utf-8"))
    assert list(kept) == list(scores_table.MODELS)
    _, made, _ = parts(scores_table.PAGE.read_text("utf-8"), name)
    assert made == f"\n{script.made(kept)}\n"
    for behaviour in scores_table.BEHAVIOURS:
        assert made.count(f"| {behaviour} |") >= len(scores_table.MODELS)


def test_the_table_of_splits_has_what_is_kept_and_all_its_splits() -> None:
    model, behaviour = neurons_table.SPLIT
    rows = json.loads(neurons_table.KEPT.read_text("utf-8"))[model][behaviour]["splits"]
    _, made, _ = parts(scores_table.PAGE.read_text("utf-8"), "splits")
    assert made == f"\n{neurons_table.split_table(rows)}\n"
    assert tuple((row["pairs"], row["seed"]) for row in rows) == neurons_table.SPLITS


def test_correlations_leave_out_what_was_not_measured() -> None:
    a, b = np.array([1.0, 2, 4, np.nan, 9]), np.array([1.0, 8, 64, 3, np.nan])
    pearson, spearman = scores_table.correlations(a, b)
    assert spearman == pytest.approx(1)
    assert pearson == pytest.approx(np.corrcoef([1, 2, 4], [1, 8, 64])[0, 1])
    assert scores_table.correlations(a, -b)[1] == pytest.approx(-1)


def test_each_methods_first_neurons_are_patched_once_and_as_many_at_random() -> None:
    rng = np.random.default_rng(1)
    estimates = [rng.normal(size=(4, 100)) for _ in range(2)]
    chosen = scores_table.some_neurons(estimates)
    assert len(set(chosen)) == len(chosen)
    for values in estimates:
        best = np.argsort(-np.abs(values), None)[: scores_table.FIRST]
        assert {divmod(int(i), 100) for i in best} <= set(chosen)
    assert len(chosen) >= scores_table.RANDOM


def test_tables_are_put_between_their_marks(tmp_path) -> None:  # type: ignore[no-untyped-def]
    page = tmp_path / "page.md"
    before, made, after = parts(scores_table.PAGE.read_text("utf-8"), "neurons")
    page.write_text(before + made + after, "utf-8")
    put(page, "neurons", table(["a", "n"], [["x", "1"]]))
    assert parts(page.read_text("utf-8"), "neurons") == (
        *(before, "\n| a | n |\n| --- | --: |\n| x | 1 |\n\n", after),
    )
