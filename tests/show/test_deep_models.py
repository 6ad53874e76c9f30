"""A deep model's ledgers, circuits and lenses stay legible, and nothing of them is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.results.result import Axis, Grid, Table
from casestudy.results.stats import mean_over_prompts
from casestudy.show.report import write_report
from casestudy.show.sections.circuit import strongest_paths
from casestudy.show.sections.grouped_terms import MOST_TERMS, SINGLE, grouped
from casestudy.show.sections.ledger import lens_figure
from tests.show import studies
from tests.show.pages import Page


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_a_grouped_ledger_sums_to_the_same_and_leaves_the_largest_single(
    layers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    names = ["embed", *(f"{part} {i}" for i in range(layers) for part in ("attn", "mlp"))]
    names += [studies.B_U]
    values = rng.normal(0, 1, (len(names), 5))
    axes = (Axis("term", tuple(names)), Axis.count("prompt", 5))
    means = mean_over_prompts(Grid("ledger", values, axes, "logits"))
    found = grouped(means, values)
    labels = found.axis("term").labels
    assert found.values.sum() == pytest.approx(means.values.sum(), abs=1e-9)
    if len(names) <= MOST_TERMS:
        assert found is means
        return
    written = means.values[1:-1]
    largest = [names[1 + i] for i in np.argsort(-np.abs(written), kind="stable")[:SINGLE]]
    assert set(largest) <= set(labels)
    assert labels[0] == "embed"
    assert labels[-1] == studies.B_U
    assert len(labels) <= SINGLE + 4
    assert found.lower is not None
    assert found.upper is not None
    assert (found.lower <= found.values).all()
    assert (found.values <= found.upper).all()


def test_a_deep_models_report_has_every_term_folded(tmp_path: Path) -> None:
    results = [*studies.ledger(4, layers=30), *studies.tables(studies.TEXTS)]
    page = Page(write_report(studies.write(tmp_path / "s", results)).read_text(encoding="utf-8"))
    falls = [f for f in page.figures if f["axes"][0][0] == "term"]
    terms = results[1].axis("term").labels
    assert any(tuple(f["axes"][0][1][:-1]) == terms for f in falls)
    assert f"All {len(terms)} terms" in page.text
    for figure in falls:
        values, ends = figure["columns"]["value"], figure["columns"]["ends at"]
        assert ends[-2] == pytest.approx(values[-1], abs=1e-4)


NODES = ["embed", *(f"{part}{i}{end}" for i in range(4) for part, end in (("a", ".h0"), ("m", "")))]
NODES += ["logits"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(NODES) - 1), st.integers(0, len(NODES) - 1), st.floats(-3, 3)
        ).filter(lambda edge: edge[0] < edge[1]),
        max_size=40,
        unique_by=lambda edge: edge[:2],
    ),
    st.integers(1, 12),
)
def test_what_is_shown_of_a_large_circuit_are_whole_paths(
    edges: list[tuple[int, int, float]], most: int
) -> None:
    rows = [{"source": NODES[a], "target": NODES[b], "score": s} for a, b, s in edges]
    rows.sort(key=lambda row: -abs(row["score"]))
    shown = strongest_paths(rows, most)
    assert len(shown) <= most
    assert all(row in rows for row in shown)
    if len(rows) <= most:
        assert list(shown) == rows
    elif list(shown) != rows[:most]:  # no path fits where the strongest edges stand in
        sources, targets = {r["source"] for r in shown}, {r["target"] for r in shown}
        assert targets - {"logits"} <= sources
        assert sources - {"embed"} <= targets


def test_the_other_edges_are_counted(tmp_path: Path) -> None:
    n = 60
    columns = {
        "source": ["embed", "m0", *[f"a1.h{i}" for i in range(n)]],
        "target": ["m0", "logits", *["m2"] * n],
        "score": [5.0, 4.0, *[1.0 + i / 100 for i in range(n)]],
    }
    base = [*studies.ledger(4), *studies.tables(studies.TEXTS)]
    store = studies.write(tmp_path / "s", [*base, Table("circuit.edges", columns, "Edges.")])
    page = Page(write_report(store).read_text(encoding="utf-8"))
    assert "The strongest paths: 2 of 62 edges" in page.text
    assert "The other 60 edges" in page.text


@given(st.floats(-1e4, 1e4, allow_nan=False))
def test_a_second_reading_far_off_does_not_squash_the_first(far: float) -> None:
    depth = Axis("depth", ("0_pre", "0_mid", "final_post"))
    frozen = Grid("lens", np.array([0.1, 1.0, 2.0]), (depth,), "logits")
    own = Grid("lens.own_norm", np.array([far, 1.0, 2.0]), (depth,), "logits")
    figure = lens_figure(frozen, own)
    drawn = figure.mark.series[1].values  # type: ignore[union-attr]
    assert all(v is None or abs(v) <= 4.0 for v in drawn)
    assert (drawn[0] is None) == (not -2.0 <= far <= 4.0)
    assert ("beyond the frame" in str(figure.caption)) == (drawn[0] is None)
    assert far in [pytest.approx(v) for v in figure.data.columns["value"] if v is not None]


def test_positions_are_labelled_by_tokens_where_prompts_agree(tmp_path: Path) -> None:
    texts = ("The dogs ran", "The cats ran")
    axes = (Axis.count("layer", 2), Axis.count("pos", 4))
    grid = Grid("patching.resid_pre.position", np.full((2, 4), 0.5), axes, "share")
    store = studies.write(
        tmp_path / "s", [*studies.ledger(2), *studies.tables(texts), grid], texts=texts
    )
    page = Page(write_report(store).read_text(encoding="utf-8"))
    (figure,) = (f for f in page.figures if [name for name, _ in f["axes"]] == ["layer", "pos"])
    labels = figure["axes"][1][1]
    assert labels == ["0 <|endoftext|>", "1 The", "2 differs", "3 ·ran"]
